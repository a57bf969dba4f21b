// The C interface: for each precision, `forward` returns a cell that `backward` may be called on once, or null and a
// problem; `release` ends it. README.md explains what lies behind it.
#include <cstdio>
#include <exception>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "backward.h"
#include "cell.h"
#include "forward.h"

namespace metasearch {
namespace {

template <class Real>
void* forward(const MetasearchCell* description, const Real* const* inputs, const Real* mixture,
              const Real* const* weights, Real* output, char* problem, size_t problem_size) {
    try {
        return new Cell<Real>(*description, inputs, mixture, weights, output);
    } catch (const std::exception& error) {
        std::snprintf(problem, problem_size, "%s", error.what());
        return nullptr;
    }
}

template <class Real>
int backward(void* cell, const Real* output_gradient, Real* const* input_gradients, Real* mixture_gradient,
             Real* const* weight_gradients, char* problem, size_t problem_size) {
    try {
        static_cast<Cell<Real>*>(cell)->backward(output_gradient, input_gradients, mixture_gradient, weight_gradients);
        return 0;
    } catch (const std::exception& error) {
        std::snprintf(problem, problem_size, "%s", error.what());
        return 1;
    }
}

}  // namespace
}  // namespace metasearch

extern "C" {
#define INTERFACE(NAME, REAL)                                                                                          \
    void* metasearch_forward_##NAME(const MetasearchCell* description, const REAL* const* inputs,                      \
                                    const REAL* mixture, const REAL* const* weights, REAL* output, char* problem,      \
                                    size_t problem_size) {                                                             \
        return metasearch::forward<REAL>(description, inputs, mixture, weights, output, problem, problem_size);        \
    }                                                                                                                  \
    int metasearch_backward_##NAME(void* cell, const REAL* output_gradient, REAL* const* input_gradients,              \
                                   REAL* mixture_gradient, REAL* const* weight_gradients, char* problem,               \
                                   size_t problem_size) {                                                              \
        return metasearch::backward<REAL>(cell, output_gradient, input_gradients, mixture_gradient, weight_gradients,  \
                                          problem, problem_size);                                                      \
    }                                                                                                                  \
    void metasearch_release_##NAME(void* cell) { delete static_cast<metasearch::Cell<REAL>*>(cell); }
INTERFACE(float32, float)
INTERFACE(float64, double)
#undef INTERFACE
// What `library.py` compares with its own, to know another version by.
size_t metasearch_description_bytes() { return sizeof(MetasearchCell); }
// Memory that torch frees stays with the process: maps of every step would otherwise be fresh pages, each cleared first.
void metasearch_keep_memory() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that glibc allows
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
}
void metasearch_clear() { metasearch::Pool::shared().clear(); }
size_t metasearch_held_bytes() { return metasearch::Pool::shared().held(); }
}
