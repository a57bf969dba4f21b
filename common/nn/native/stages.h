// A stage is a linear map from one map to another, without batch statistics: the part of an op between two BatchNorms.
#pragma once

#include "kernels.h"
#include "memory.h"

namespace metasearch {

constexpr int BORDER = 4;  // zeros around a map that a stage reads: the reach of a 5x5 kernel of dilation 2

enum class StageKind { SEPARABLE, POINTWISE, ROW, COLUMN, REDUCE };

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

// Weights are packed (packing.h): depthwise [K, K, channels]; matrices [in, out], one after the other.
template <class Real>
struct Stage {
    StageKind kind;
    int kernel = 1, stride = 1, dilation = 1;
    int in_channels = 0, out_channels = 0;  // padded to GROUP; equal in a SEPARABLE stage
    Buffer<Real> depthwise_weights, flipped, matrices, transposed;

    int num_matrices() const {
        switch (kind) {
            case StageKind::REDUCE: return 2;
            case StageKind::ROW:
            case StageKind::COLUMN: return kernel;
            default: return 1;
        }
    }
    size_t matrix_size() const { return size_t(in_channels) * out_channels; }
    size_t num_depthwise() const { return kind == StageKind::SEPARABLE ? size_t(kernel) * kernel * in_channels : 0; }
    size_t num_weights() const { return num_depthwise() + num_matrices() * matrix_size(); }
    Size out_size(Size in) const {
        if (kind == StageKind::ROW) return {in.height, in.halved(stride).width};
        if (kind == StageKind::COLUMN) return {in.halved(stride).height, in.width};
        return in.halved(stride);
    }

    // in: bordered. out: written; `watch` sees it. scratch: a plain map of the output's size.
    template <class Watch>
    void forward(Grid<const Real> in, Size in_size, Grid<Real> out, Real* scratch, Watch watch) const {
        const Size size = out_size(in_size);
        if (kind == StageKind::SEPARABLE) {
            const Grid<Real> between = plain(scratch, size, in_channels);
            run_depthwise(in.from(-reach(), -reach()), depthwise_weights.data(), stride == 1, between, size, false);
            multiply<Real>(between, in_channels, matrices.data(), out, out_channels, size.height, size.width, false,
                           watch);
            return;
        }
        const int last = num_matrices() - 1;
        for (int n = 0; n < last; ++n)
            multiply<Real>(tap(in, n), in_channels, matrix(n), out, out_channels, size.height, size.width, n > 0);
        multiply<Real>(tap(in, last), in_channels, matrix(last), out, out_channels, size.height, size.width, last > 0,
                       watch);
    }

    // Whether `backward` reaches every pixel inside by one step, so that it can write instead of add.
    bool writes_everywhere() const {
        return stride == 1 && (kind == StageKind::SEPARABLE || kind == StageKind::POINTWISE);
    }

    // in_grad: bordered; added to, or written if `accumulate` is false (only if `writes_everywhere`). weights_grad: as
    // packed, added to. scratch: a plain map of the output's size, and a bordered one whose border is zero.
    void backward(Grid<const Real> in, Size in_size, Grid<const Real> out_grad, Grid<Real> in_grad, Real* weights_grad,
                  Real* scratch, Real* bordered_scratch, bool accumulate = true) const {
        const Size size = out_size(in_size);
        if (kind == StageKind::SEPARABLE) {
            const Grid<Real> between = plain(scratch, size, in_channels);
            run_depthwise(in.from(-reach(), -reach()), depthwise_weights.data(), stride == 1, between, size, false);
            multiply_weights<Real>(between, in_channels, out_grad, out_channels, size.height, size.width,
                                   weights_grad + num_depthwise());
            const Grid<Real> gradient = bordered(bordered_scratch, size, in_channels);
            multiply<Real>(out_grad, out_channels, transposed.data(), gradient, in_channels, size.height, size.width,
                           false);
            run_depthwise_weights(in.from(-reach(), -reach()), gradient, size, weights_grad);
            if (stride == 1)
                run_depthwise(gradient.from(-reach(), -reach()), flipped.data(), true, in_grad, size, accumulate);
            else
                run_depthwise_scatter(in_grad.from(-reach(), -reach()), gradient, size);
            return;
        }
        for (int n = 0; n < num_matrices(); ++n) {
            multiply_weights<Real>(tap(in, n), in_channels, out_grad, out_channels, size.height, size.width,
                                   weights_grad + n * matrix_size());
            multiply<Real>(out_grad, out_channels, transposed.data() + n * matrix_size(), tap(in_grad, n), in_channels,
                           size.height, size.width, accumulate || n > 0);
        }
    }

   private:
    int reach() const { return dilation * (kernel / 2); }
    const Real* matrix(int n) const { return matrices.data() + n * matrix_size(); }

    // What the n-th matrix multiplies: the input, moved by a tap and thinned by the stride.
    template <class Value>
    Grid<Value> tap(Grid<Value> in, int n) const {
        switch (kind) {
            case StageKind::ROW: return in.from(0, n - reach()).every(1, stride);
            case StageKind::COLUMN: return in.from(n - reach(), 0).every(stride, 1);
            case StageKind::REDUCE: return in.from(n, n).every(2, 2);  // even pixels, then odd ones
            default: return in;
        }
    }

    // Calls run with the kernel's size as a compile-time constant.
    template <class Run>
    void for_kernel(Run run) const {
        kernel == 3 ? run(Count<3>{}) : kernel == 5 ? run(Count<5>{}) : run(Count<7>{});
    }
    // `dense`: with a stride of 1, whatever the stage's is.
    void run_depthwise(Grid<const Real> in, const Real* weights, bool dense, Grid<Real> out, Size size,
                       bool accumulate) const {
        for_kernel([&](auto k) {
            constexpr int K = decltype(k)::value;
            if (!dense)
                depthwise<K, Real>(in, weights, stride, dilation, out, size.height, size.width, in_channels, accumulate);
            else if (dilation == 1)
                depthwise_dense<K, 1, Real>(in, weights, out, size.height, size.width, in_channels, accumulate);
            else
                depthwise_dense<K, 2, Real>(in, weights, out, size.height, size.width, in_channels, accumulate);
        });
    }
    void run_depthwise_scatter(Grid<Real> in_grad, Grid<const Real> out_grad, Size size) const {
        for_kernel([&](auto k) {
            depthwise_scatter<decltype(k)::value, Real>(in_grad, depthwise_weights.data(), stride, dilation, out_grad,
                                                        size.height, size.width, in_channels);
        });
    }
    void run_depthwise_weights(Grid<const Real> in, Grid<const Real> out_grad, Size size, Real* weights_grad) const {
        for_kernel([&](auto k) {
            metasearch::depthwise_weights<decltype(k)::value, Real>(in, stride, dilation, out_grad, size.height,
                                                                    size.width, in_channels, weights_grad);
        });
    }
};

}  // namespace metasearch
