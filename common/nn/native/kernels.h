// Loops over the pixels of one image. Maps are NHWC: a pixel's channels lie together, padded to a multiple of GROUP.
// Every loop handles LANES of them at once, in one vector of the processor that the library is built for.
#pragma once

#include <cstddef>
#include <cstring>

namespace metasearch {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int GROUP = 16;
constexpr int TILE = 8;  // pixels whose results are held in registers together
template <class Real>
constexpr int LANES = VECTOR_BYTES / int(sizeof(Real));

template <class Real>
struct Vectors;
template <>
struct Vectors<float> {
    typedef float type __attribute__((vector_size(VECTOR_BYTES)));
    typedef float stored __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(float)), may_alias));
};
template <>
struct Vectors<double> {
    typedef double type __attribute__((vector_size(VECTOR_BYTES)));
    typedef double stored __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(double)), may_alias));
};
template <class Real>
using Vector = typename Vectors<Real>::type;

template <class Real>
inline Vector<Real> load(const Real* from) {
    return *reinterpret_cast<const typename Vectors<Real>::stored*>(from);
}

template <class Real>
inline void store(Real* to, Vector<Real> value) {
    *reinterpret_cast<typename Vectors<Real>::stored*>(to) = value;
}

template <class Real>
inline Vector<Real> rectify(Vector<Real> value) {
    return value < 0 ? Vector<Real>{} : value;  // NaN stays NaN
}

// A grid of pixels: `at(y, x)` is where the channels of a pixel begin.
template <class Real>
struct Grid {
    Real* data;
    ptrdiff_t row;    // from a pixel to the one below it
    ptrdiff_t pixel;  // from a pixel to the one at its right

    Real* at(ptrdiff_t y, ptrdiff_t x) const { return data + y * row + x * pixel; }
    Grid from(ptrdiff_t y, ptrdiff_t x) const { return {at(y, x), row, pixel}; }
    Grid every(int stride_y, int stride_x) const { return {data, row * stride_y, pixel * stride_x}; }
    operator Grid<const Real>() const { return {data, row, pixel}; }
};

// Calls body(x, count) for tiles of at most TILE pixels of a row; `count` is a compile-time constant there.
template <int COUNT>
struct Count {
    static constexpr int value = COUNT;
};
template <class Body>
inline void in_tiles(int width, Body body) {
    int x = 0;
    for (; x + TILE <= width; x += TILE) body(x, Count<TILE>{});
    if (x + 4 <= width) {
        body(x, Count<4>{});
        x += 4;
    }
    for (; x < width; ++x) body(x, Count<1>{});
}

// out[y, x] (+)= sum over taps of weights[ky, kx] * in[y * stride + ky * dilation, x * stride + kx * dilation].
// weights: [K, K, channels]. `in` begins at the first tap of the first output.
template <int K, class Real>
void depthwise(Grid<const Real> in, const Real* weights, int stride, int dilation, Grid<Real> out, int height,
               int width, int channels, bool accumulate) {
    for (int c = 0; c < channels; c += LANES<Real>)
        for (int y = 0; y < height; ++y)
            in_tiles(width, [&](int x, auto count) {
                constexpr int N = decltype(count)::value;
                Vector<Real> sum[N];
                for (int n = 0; n < N; ++n) sum[n] = accumulate ? load(out.at(y, x + n) + c) : Vector<Real>{};
                for (int ky = 0; ky < K; ++ky)
                    for (int kx = 0; kx < K; ++kx) {
                        const Vector<Real> weight = load(weights + (ky * K + kx) * channels + c);
                        const Real* first = in.at(y * stride + ky * dilation, x * stride + kx * dilation) + c;
                        for (int n = 0; n < N; ++n) sum[n] += weight * load(first + n * stride * in.pixel);
                    }
                for (int n = 0; n < N; ++n) store(out.at(y, x + n) + c, sum[n]);
            });
}

// `depthwise` of stride 1: what neighbouring pixels share of the input is loaded once.
template <int K, int DILATION, class Real>
void depthwise_dense(Grid<const Real> in, const Real* weights, Grid<Real> out, int height, int width, int channels,
                     bool accumulate) {
    constexpr bool HOLDS_WEIGHTS = K == 3 && VECTOR_BYTES == 64;  // in registers, of which there are enough
    for (int c = 0; c < channels; c += LANES<Real>) {
        Vector<Real> held[K * K];
        for (int k = 0; HOLDS_WEIGHTS && k < K * K; ++k) held[k] = load(weights + k * channels + c);
        for (int y = 0; y < height; ++y)
            in_tiles(width, [&](int x, auto count) {
                constexpr int N = decltype(count)::value;
                Vector<Real> sum[N], value[N + (K - 1) * DILATION];
                for (int n = 0; n < N; ++n) sum[n] = accumulate ? load(out.at(y, x + n) + c) : Vector<Real>{};
                for (int ky = 0; ky < K; ++ky) {
                    const Real* first = in.at(y + ky * DILATION, x) + c;
                    for (int i = 0; i < N + (K - 1) * DILATION; ++i) value[i] = load(first + i * in.pixel);
                    for (int kx = 0; kx < K; ++kx) {
                        const int k = ky * K + kx;
                        const Vector<Real> weight = HOLDS_WEIGHTS ? held[k] : load(weights + k * channels + c);
                        for (int n = 0; n < N; ++n) sum[n] += weight * value[n + kx * DILATION];
                    }
                }
                for (int n = 0; n < N; ++n) store(out.at(y, x + n) + c, sum[n]);
            });
    }
}

// The transpose of `depthwise` for any stride: in_grad[...] += weights[ky, kx] * out_grad[y, x].
template <int K, class Real>
void depthwise_scatter(Grid<Real> in_grad, const Real* weights, int stride, int dilation, Grid<const Real> out_grad,
                       int height, int width, int channels) {
    for (int c = 0; c < channels; c += LANES<Real>)
        for (int y = 0; y < height; ++y)
            for (int ky = 0; ky < K; ++ky)
                for (int kx = 0; kx < K; ++kx) {
                    const Vector<Real> weight = load(weights + (ky * K + kx) * channels + c);
                    for (int x = 0; x < width; ++x) {
                        Real* to = in_grad.at(y * stride + ky * dilation, x * stride + kx * dilation) + c;
                        store(to, load(to) + weight * load(out_grad.at(y, x) + c));
                    }
                }
}

// weights_grad[ky, kx] += sum over pixels of in[...] * out_grad[y, x].
template <int K, class Real>
void depthwise_weights(Grid<const Real> in, int stride, int dilation, Grid<const Real> out_grad, int height, int width,
                       int channels, Real* weights_grad) {
    // Rows of taps whose sums are held in registers together.
    constexpr int ROWS = K == 3 || (K == 5 && VECTOR_BYTES == 64) ? K : 1;
    for (int c = 0; c < channels; c += LANES<Real>)
        for (int first = 0; first < K; first += ROWS) {
            Vector<Real> sum[ROWS * K] = {};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) {
                    const Vector<Real> gradient = load(out_grad.at(y, x) + c);
                    for (int r = 0; r < ROWS; ++r) {
                        const Real* row = in.at(y * stride + (first + r) * dilation, x * stride) + c;
                        for (int kx = 0; kx < K; ++kx)
                            sum[r * K + kx] += gradient * load(row + kx * dilation * in.pixel);
                    }
                }
            for (int k = 0; k < ROWS * K; ++k) {
                Real* to = weights_grad + (first * K + k) * channels + c;
                store(to, load(to) + sum[k]);
            }
        }
}

// What `multiply` tells of the vectors that it writes: nothing.
struct Unwatched {
    template <class Real>
    struct Seen {
        void add(Vector<Real>) {}
    };
    template <class Real>
    Seen<Real> at(int) {
        return {};
    }
    template <class Real>
    void take(int, const Seen<Real>&) {}
};

// out[y, x] (+)= in[y, x] times a matrix [in_channels, out_channels], for all pixels. `watch` sees what is written.
template <class Real, class Watch = Unwatched>
void multiply(Grid<const Real> in, int in_channels, const Real* matrix, Grid<Real> out, int out_channels, int height,
              int width, bool accumulate, Watch watch = {}) {
    if (in.row == width * in.pixel && out.row == width * out.pixel) {  // no gaps: one long row, with fewer short tiles
        width *= height;
        height = 1;
    }
    for (int c = 0; c < out_channels; c += LANES<Real>) {
        auto seen = watch.template at<Real>(c);
        for (int y = 0; y < height; ++y)
            in_tiles(width, [&](int x, auto count) {
                constexpr int N = decltype(count)::value;
                Vector<Real> sum[N];
                for (int n = 0; n < N; ++n) sum[n] = accumulate ? load(out.at(y, x + n) + c) : Vector<Real>{};
                const Real* first = in.at(y, x);
                for (int k = 0; k < in_channels; ++k) {
                    const Vector<Real> weight = load(matrix + k * out_channels + c);
                    for (int n = 0; n < N; ++n) sum[n] += first[n * in.pixel + k] * weight;
                }
                for (int n = 0; n < N; ++n) {
                    store(out.at(y, x + n) + c, sum[n]);
                    seen.add(sum[n]);
                }
            });
        watch.take(c, seen);
    }
}

// matrix_grad[k, c] += sum over pixels of in[y, x, k] * out_grad[y, x, c].
template <class Real>
void multiply_weights(Grid<const Real> in, int in_channels, Grid<const Real> out_grad, int out_channels, int height,
                      int width, Real* matrix_grad) {
    constexpr int ROWS = VECTOR_BYTES == 64 ? 16 : 8;  // of the matrix, whose sums fit in registers together
    for (int c = 0; c < out_channels; c += LANES<Real>)
        for (int k = 0; k < in_channels; k += ROWS) {
            Vector<Real> sum[ROWS] = {};
            for (int y = 0; y < height; ++y) {
                const Real* value = in.at(y, 0) + k;
                const Real* gradient = out_grad.at(y, 0) + c;
                for (int x = 0; x < width; ++x, value += in.pixel, gradient += out_grad.pixel) {
                    const Vector<Real> loaded = load(gradient);
                    for (int n = 0; n < ROWS; ++n) sum[n] += value[n] * loaded;
                }
            }
            for (int n = 0; n < ROWS; ++n) {
                Real* to = matrix_grad + (k + n) * out_channels + c;
                store(to, load(to) + sum[n]);
            }
        }
}

// Calls body(y, x, c) for all pixels and vectors of channels.
template <class Real, class Body>
inline void everywhere(int height, int width, int channels, Body body) {
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < channels; c += LANES<Real>) body(y, x, c);
}

}  // namespace metasearch
