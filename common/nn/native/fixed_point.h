// Sums of vectors in fixed point: exact, so the same bits in any order, on any processor and from any build.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// A product that is not rounded before it is added to (FMA) would be another number in some builds than in others.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#define METASEARCH_ROUND_EACH
#elif defined(__GNUC__)
#define METASEARCH_ROUND_EACH __attribute__((optimize("fp-contract=off")))
#else
#define METASEARCH_ROUND_EACH
#endif

namespace metasearch {

// Between 2^52 and 2^53 doubles are the whole numbers, and their bits count up with them. Hence for |x| <= 2^51 the bits
// of x + WHOLE are those of WHOLE plus x rounded to the nearest whole number, half to even.
constexpr double WHOLE = 6755399441055744.0;  // 1.5 * 2^52
constexpr uint64_t WHOLE_BITS = 0x4338000000000000;

// totals += round(vectors[k] * factors[k]) for `COUNT` vectors at once: totals are what costs most to read and write.
template <int COUNT, class Real>
METASEARCH_ROUND_EACH inline void add_group(uint64_t* __restrict totals, const Real* const* vectors,
                                            const double* factors, size_t begin, size_t end) {
    const Real* values[COUNT];
    double scales[COUNT];
    for (int k = 0; k < COUNT; ++k) {
        values[k] = vectors[k];
        scales[k] = factors[k];
    }
    for (size_t i = begin; i < end; ++i) {
        uint64_t total = totals[i];
        for (int k = 0; k < COUNT; ++k) {
            const double shifted = static_cast<double>(values[k][i]) * scales[k] + WHOLE;
            uint64_t bits;
            std::memcpy(&bits, &shifted, sizeof bits);
            total += bits;
        }
        totals[i] = total - COUNT * WHOLE_BITS;  // modulo 2^64, as all sums here
    }
}

// totals[i] += sum over k of round(vectors[k][i] * factors[k]), where no product is beyond +-2^51.
template <class Real>
void add_fixed_point(uint64_t* totals, const Real* const* vectors, const double* factors, int count, size_t size) {
    constexpr int TOGETHER = 8;
    constexpr size_t BLOCK = 2048;  // totals of a block stay in the L1 cache until all vectors are added
    for (size_t begin = 0; begin < size; begin += BLOCK) {
        const size_t end = std::min(begin + BLOCK, size);
        int k = 0;
        for (; k + TOGETHER <= count; k += TOGETHER) add_group<TOGETHER>(totals, vectors + k, factors + k, begin, end);
        for (; k < count; ++k) add_group<1>(totals, vectors + k, factors + k, begin, end);
    }
}

// totals[i] = totals[i] / divisor, as bits of a double: in place, since fresh memory costs more than the division.
inline void divide_fixed_point(uint64_t* totals, double divisor, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        const double mean = static_cast<double>(static_cast<int64_t>(totals[i])) / divisor;
        std::memcpy(totals + i, &mean, sizeof mean);
    }
}

}  // namespace metasearch
