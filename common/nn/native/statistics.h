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
            Distances<Real> distances{middle};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) distances.add(load(map.at(y, x) + c));
            take(c, pixels, distances);
        }
        count += pixels;
    }

    // Has `run(watch)` write a map of so many pixels, and adds it on the way. Distances are taken from the mean so far:
    // as near to this map's own mean as the variance of both tells.
    template <class Real, class Run>
    void add_written_by(Run run, Grid<const Real> map, int height, int width, int channels) {
        if (count == 0) {
            run(Unwatched{});
            add<Real>(map, height, width, channels);
            return;
        }
        run(Watch{this, double(height) * width});
        count += double(height) * width;
    }
    void merge(const Moments& other) {
        if (other.count == 0) return;
        for (size_t c = 0; c < mean.size(); ++c) merge(int(c), other.count, other.mean[c], other.squares[c]);
        count += other.count;
    }

   private:
    // Sums of distances from a value near the mean, and of their squares.
    template <class Real>
    struct Distances {
        Vector<Real> from, sum{}, squares{};
        void add(Vector<Real> value) {
            const Vector<Real> distance = value - from;
            sum += distance;
            squares += distance * distance;
        }
    };
    struct Watch {  // for `multiply`
        Moments* moments;
        double pixels;
        template <class Real>
        Distances<Real> at(int c) const {
            Distances<Real> distances{};
            for (int lane = 0; lane < LANES<Real>; ++lane) distances.from[lane] = Real(moments->mean[c + lane]);
            return distances;
        }
        template <class Real>
        void take(int c, const Distances<Real>& distances) {
            moments->take(c, pixels, distances);
        }
    };

    template <class Real>
    void take(int c, double pixels, const Distances<Real>& distances) {
        for (int lane = 0; lane < LANES<Real>; ++lane) {
            const double rest = distances.sum[lane] / pixels;
            merge(c + lane, pixels, distances.from[lane] + rest, distances.squares[lane] - rest * rest * pixels);
        }
    }
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

    // Calls gradient_at(y, x, c) once for every vector. `norm` null: times the map itself.
    template <class Real, class Gradient>
    void add(Gradient gradient_at, Grid<const Real> map, const Normalization<Real>* norm, int height, int width,
             int channels) {
        for (int c = 0; c < channels; c += LANES<Real>) {
            const Vector<Real> mean = norm ? load(norm->mean.data() + c) : Vector<Real>{};
            Vector<Real> sum = {}, product = {};
            for (int y = 0; y < height; ++y)
                for (int x = 0; x < width; ++x) {
                    const Vector<Real> value = gradient_at(y, x, c);
                    sum += value;
                    product += value * (load(map.at(y, x) + c) - mean);
                }
            for (int lane = 0; lane < LANES<Real>; ++lane) {
                plain[c + lane] += sum[lane];
                with_map[c + lane] += double(product[lane]) * (norm ? double(norm->scale[c + lane]) : 1.0);
            }
        }
    }
    void merge(const GradientSums& other, double weight = 1) {
        for (size_t c = 0; c < plain.size(); ++c) {
            plain[c] += weight * other.plain[c];
            with_map[c] += weight * other.with_map[c];
        }
    }
};

// The gradient before a BatchNorm and a factor behind it, as a * (gradient after) + b * map + c.
template <class Real>
struct BackwardNorm {
    std::vector<Real> a, b, c;

    // `map` is the one before the BatchNorm, or the normalized one.
    void set(const Normalization<Real>& norm, double factor, const GradientSums& sums, bool map_is_normalized = false) {
        const size_t channels = norm.mean.size();
        a.resize(channels);
        b.resize(channels);
        c.resize(channels);
        for (size_t i = 0; i < channels; ++i) {
            const double scale = norm.scale[i];
            const double slope = -scale * factor * sums.with_map[i] / norm.count * (map_is_normalized ? 1.0 : scale);
            a[i] = Real(factor * scale);
            b[i] = Real(slope);
            c[i] = Real(-scale * factor * sums.plain[i] / norm.count - (map_is_normalized ? 0.0 : slope * norm.mean[i]));
        }
    }
};

}  // namespace metasearch
