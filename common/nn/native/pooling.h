// 3x3 pooling with a padding of one pixel, which neither a maximum nor an average counts.
#pragma once

#include <algorithm>

#include "stages.h"

namespace metasearch {

enum PoolKind : int { MAXIMUM, AVERAGE };
constexpr int NUM_POOLS = 2;

// Calls body(y, x, top, bottom, left, right) for all output pixels, with the window that each one sees.
template <class Body>
void for_windows(Size in, int stride, Size out, Body body) {
    for (int y = 0; y < out.height; ++y)
        for (int x = 0; x < out.width; ++x)
            body(y, x, std::max(y * stride - 1, 0), std::min(y * stride + 2, in.height), std::max(x * stride - 1, 0),
                 std::min(x * stride + 2, in.width));
}

template <class Real>
void pool(int which, Grid<const Real> in, Size in_size, int stride, Grid<Real> out, Size out_size, int channels) {
    for_windows(in_size, stride, out_size, [&](int y, int x, int top, int bottom, int left, int right) {
        const Real share = Real(1) / ((bottom - top) * (right - left));
        for (int c = 0; c < channels; c += LANES<Real>) {
            Vector<Real> result = load(in.at(top, left) + c);
            for (int v = top; v < bottom; ++v)
                for (int u = left + (v == top); u < right; ++u) {
                    const Vector<Real> value = load(in.at(v, u) + c);
                    if (which == MAXIMUM)  // NaN stays, as in torch
                        result = (result >= value) | (result != result) ? result : value;
                    else
                        result += value;
                }
            store(out.at(y, x) + c, which == MAXIMUM ? result : result * share);
        }
    });
}

// Adds to in_gradient. The gradient of a maximum goes to the first pixel that has it, row by row.
template <class Real>
void pool_backward(int which, Grid<const Real> in, Size in_size, int stride, Grid<const Real> out,
                   Grid<const Real> out_gradient, Size out_size, Grid<Real> in_gradient, int channels) {
    for_windows(in_size, stride, out_size, [&](int y, int x, int top, int bottom, int left, int right) {
        const Real share = Real(1) / ((bottom - top) * (right - left));
        for (int c = 0; c < channels; c += LANES<Real>) {
            Vector<Real> left_over = load(out_gradient.at(y, x) + c);
            if (which == AVERAGE) left_over *= share;
            const Vector<Real> maximum = load(out.at(y, x) + c);
            for (int v = top; v < bottom; ++v)
                for (int u = left; u < right; ++u) {
                    Real* to = in_gradient.at(v, u) + c;
                    if (which == AVERAGE) {
                        store(to, load(to) + left_over);
                    } else {
                        const auto here = load(in.at(v, u) + c) == maximum;
                        store(to, load(to) + (here ? left_over : Vector<Real>{}));
                        left_over = here ? Vector<Real>{} : left_over;
                    }
                }
        }
    });
}

}  // namespace metasearch
