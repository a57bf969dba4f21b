// The C interface of fixed_point.h.
#include "fixed_point.h"

extern "C" {
#define INTERFACE(NAME, REAL)                                                                                          \
    void metasearch_add_fixed_point_##NAME(int64_t* totals, const REAL* const* vectors, const double* factors,         \
                                           int count, size_t size) {                                                   \
        metasearch::add_fixed_point<REAL>(reinterpret_cast<uint64_t*>(totals), vectors, factors, count, size);         \
    }
INTERFACE(float32, float)
INTERFACE(float64, double)
#undef INTERFACE

void metasearch_divide_fixed_point(int64_t* totals, double divisor, size_t size) {
    metasearch::divide_fixed_point(reinterpret_cast<uint64_t*>(totals), divisor, size);
}
}
