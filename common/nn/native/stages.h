// A stage is a linear map from one map to another, without batch statistics: the part of an op between two BatchNorms.
#pragma once

#include <vector>

#include "kernels.h"
#include "memory.h"

namespace metasearch {

constexpr int BORDER = 4;  // zeros around a map that a stage reads: the reach of a 5x5 kernel of dilation 2

enum class StageKind { SEPARABLE, ROW, COLUMN, REDUCE };

// Height and width of a map.
struct Size {
    int height, width;
    int pixels() const { return height * width; }
    Size halved(int stride) const { return {(height + stride - 1) / stride, (width + stride - 1) / stride}; }
    size_t bordered() const { return size_t(height + 2 * BORDER) * (width + 2 * BORDER); }
};

// A map of one image, without and with a border; `bordered` begins at the first pixel inside.
template <class Real>
Grid<Real> plain(Real* data, Size size, int channels) {
    return {data, ptrdiff_t(size.width) * channels, channels};
}
template <class Real>
Grid<Real> bordered(Real* data, Size size, int channels) {
    const ptrdiff_t row = ptrdiff_t(size.width + 2 * BORDER) * channels;
    return {data + BORDER * row + BORDER * channels, row, channels};
}

// Weights are packed with channels padded to GROUP: depthwise [K, K, channels]; matrices [in, out], one after the other.
template <class Real>
struct Stage {
    StageKind kind;
    int kernel = 1, stride = 1, dilation = 1;
    int channels = 0;
    Buffer<Real> depthwise_weights, flipped, matrices, transposed;

    int num_matrices() const {
        return kind == StageKind::SEPARABLE ? 1 : kind == StageKind::REDUCE ? 2 : kernel;
    }
    size_t matrix_size() const { return size_t(channels) * channels; }
    size_t num_depthwise() const { return kind == StageKind::SEPARABLE ? size_t(kernel) * kernel * channels : 0; }
    size_t num_weights() const { return num_depthwise() + num_matrices() * matrix_size(); }
    Size out_size(Size in) const {
        if (kind == StageKind::ROW) return {in.height, in.halved(stride).width};
        if (kind == StageKind::COLUMN) return {in.halved(stride).height, in.width};
        return in.halved(stride);
    }
    int reach() const { return dilation * (kernel / 2); }

    // What the n-th matrix multiplies: the input, moved by a tap and thinned by the stride.
    template <class Value>
    Grid<Value> tap(Grid<Value> in, int n) const {
        if (kind == StageKind::ROW) return in.from(0, n - reach()).every(1, stride);
        if (kind == StageKind::COLUMN) return in.from(n - reach(), 0).every(stride, 1);
        return in.from(n, n).every(2, 2);  // REDUCE: even pixels, then odd ones
    }

    // in: bordered. out: written. scratch: a plain map of the output's size.
    void forward(Grid<const Real> in, Size in_size, Grid<Real> out, Real* scratch) const {
        const Size size = out_size(in_size);
        if (kind == StageKind::SEPARABLE) {
            const Grid<Real> between = plain(scratch, size, channels);
            run_depthwise(in.from(-reach(), -reach()), depthwise_weights.data(), stride, between, size, false);
            multiply<Real>(between, matrices.data(), out, size.height, size.width, channels, false);
            return;
        }
        for (int n = 0; n < num_matrices(); ++n)
            multiply<Real>(tap(in, n), matrices.data() + n * matrix_size(), out, size.height, size.width, channels,
                           n > 0);
    }

    // in_grad: bordered, added to. weights_grad: as packed, added to. scratch: two plain maps of the output's size and
    // one bordered one, whose border is zero.
    void backward(Grid<const Real> in, Size in_size, Grid<const Real> out_grad, Grid<Real> in_grad, Real* weights_grad,
                  Real* scratch, Real* bordered_scratch) const {
        const Size size = out_size(in_size);
        if (kind == StageKind::SEPARABLE) {
            const Grid<Real> between = plain(scratch, size, channels);
            run_depthwise(in.from(-reach(), -reach()), depthwise_weights.data(), stride, between, size, false);
            multiply_weights<Real>(between, out_grad, size.height, size.width, channels,
                                   weights_grad + num_depthwise());
            const Grid<Real> gradient = bordered(bordered_scratch, size, channels);
            multiply<Real>(out_grad, transposed.data(), gradient, size.height, size.width, channels, false);
            run_depthwise_weights(in.from(-reach(), -reach()), gradient, size, weights_grad);
            if (stride == 1)
                run_depthwise(gradient.from(-reach(), -reach()), flipped.data(), 1, in_grad, size, true);
            else
                run_depthwise_scatter(in_grad.from(-reach(), -reach()), gradient, size);
            return;
        }
        for (int n = 0; n < num_matrices(); ++n) {
            multiply_weights<Real>(tap(in, n), out_grad, size.height, size.width, channels,
                                   weights_grad + n * matrix_size());
            multiply<Real>(out_grad, transposed.data() + n * matrix_size(), tap(in_grad, n), size.height, size.width,
                           channels, true);
        }
    }

   private:
    void run_depthwise(Grid<const Real> in, const Real* weights, int step, Grid<Real> out, Size size,
                       bool accumulate) const {
        const auto run = [&](auto k) {
            depthwise<decltype(k)::value, Real>(in, weights, step, dilation, out, size.height, size.width, channels,
                                                accumulate);
        };
        kernel == 3 ? run(Count<3>{}) : kernel == 5 ? run(Count<5>{}) : run(Count<7>{});
    }
    void run_depthwise_scatter(Grid<Real> in_grad, Grid<const Real> out_grad, Size size) const {
        const auto run = [&](auto k) {
            depthwise_scatter<decltype(k)::value, Real>(in_grad, depthwise_weights.data(), stride, dilation, out_grad,
                                                        size.height, size.width, channels);
        };
        kernel == 3 ? run(Count<3>{}) : kernel == 5 ? run(Count<5>{}) : run(Count<7>{});
    }
    void run_depthwise_weights(Grid<const Real> in, Grid<const Real> out_grad, Size size, Real* weights_grad) const {
        const auto run = [&](auto k) {
            metasearch::depthwise_weights<decltype(k)::value, Real>(in, stride, dilation, out_grad, size.height,
                                                                    size.width, channels, weights_grad);
        };
        kernel == 3 ? run(Count<3>{}) : kernel == 5 ? run(Count<5>{}) : run(Count<7>{});
    }
};

}  // namespace metasearch
