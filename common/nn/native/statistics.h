// Batch statistics of maps, image by image: exact to rounding whatever the mean, the same for a given number of threads.
#pragma once

#include <cmath>
#include <vector>

#include "kernels.h"

namespace metasearch {

constexpr double EPSILON = 1e-5;  // of BatchNorm

// Mean and sum of squared distances from it, of one channel each, over more and more pixels.
struct Moments {
    double count = 0;
    std::vector<double> mean, squares;

    explicit Moments(int channels) : mean(channels), squares(channels) {}

    template <class Real>
    void add(Grid<const Real> map, int height, int width, int channels) {
        const double pixels = double(height) * width;
        for (int c = 0; c < channels; c += LANES<Real>) {
            Vector<Real> sum = {};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) sum += load(map.at(y, x) + c);
            const Vector<Real> middle = sum / Real(pixels);
            Vector<Real> distances = {}, rest = {};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) {
                    const Vector<Real> distance = load(map.at(y, x) + c) - middle;
                    distances += distance * distance;
                    rest += distance;
                }
            for (int lane = 0; lane < LANES<Real>; ++lane) {
                const double left = rest[lane] / pixels;  // what rounding left of the mean
                merge(c + lane, pixels, middle[lane] + left, distances[lane] - left * left * pixels);
            }
        }
        count += pixels;
    }
    void merge(const Moments& other) {
        if (other.count == 0) return;
        for (size_t c = 0; c < mean.size(); ++c) merge(int(c), other.count, other.mean[c], other.squares[c]);
        count += other.count;
    }

   private:
    // Chan, Golub and LeVeque (1979): the moments of a union from those of its parts.
    void merge(int c, double pixels, double other_mean, double other_squares) {
        const double total = count + pixels, distance = other_mean - mean[c];
        mean[c] += distance * pixels / total;
        squares[c] += other_squares + distance * distance * count * pixels / total;
    }
};

// What BatchNorm does to a map: (map - mean) * scale.
template <class Real>
struct Normalization {
    std::vector<Real> mean, scale;
    double count = 0;

    void set(const Moments& moments) {
        count = moments.count;
        mean.resize(moments.mean.size());
        scale.resize(moments.mean.size());
        for (size_t c = 0; c < mean.size(); ++c) {
            mean[c] = Real(moments.mean[c]);
            scale[c] = Real(1.0 / std::sqrt(std::max(moments.squares[c], 0.0) / count + EPSILON));
        }
    }
};

// Sums over pixels of a gradient, and of the gradient times the normalized map that it belongs to.
struct GradientSums {
    std::vector<double> plain, with_map;

    explicit GradientSums(int channels) : plain(channels), with_map(channels) {}

    // `norm` null: times the map itself.
    template <class Real>
    void add(Grid<const Real> gradient, Grid<const Real> map, const Normalization<Real>* norm, int height, int width,
             int channels) {
        for (int c = 0; c < channels; c += LANES<Real>) {
            const Vector<Real> mean = norm ? load(norm->mean.data() + c) : Vector<Real>{};
            Vector<Real> sum = {}, product = {};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) {
                    const Vector<Real> value = load(gradient.at(y, x) + c);
                    sum += value;
                    product += value * (load(map.at(y, x) + c) - mean);
                }
            for (int lane = 0; lane < LANES<Real>; ++lane) {
                plain[c + lane] += sum[lane];
                with_map[c + lane] += double(product[lane]) * (norm ? double(norm->scale[c + lane]) : 1.0);
            }
        }
    }
    void merge(const GradientSums& other) {
        for (size_t c = 0; c < plain.size(); ++c) {
            plain[c] += other.plain[c];
            with_map[c] += other.with_map[c];
        }
    }
};

// The gradient before a BatchNorm and a factor behind it, as a * (gradient after) + b * (map before) + c.
template <class Real>
struct BackwardNorm {
    std::vector<Real> a, b, c;

    void set(const Normalization<Real>& norm, double factor, const std::vector<double>& sum,
             const std::vector<double>& sum_with_map) {
        const size_t channels = norm.mean.size();
        a.resize(channels);
        b.resize(channels);
        c.resize(channels);
        for (size_t i = 0; i < channels; ++i) {
            const double scale = norm.scale[i];
            const double slope = -scale * scale * sum_with_map[i] / norm.count;
            a[i] = Real(factor * scale);
            b[i] = Real(slope);
            c[i] = Real(-scale * sum[i] / norm.count - slope * norm.mean[i]);
        }
    }
};

}  // namespace metasearch
