// A cell's backward pass: sources from the last to the first, and for each one phase by phase (README.md).
#pragma once

#include "cell.h"
#include "forward.h"

namespace metasearch {

// Gradients of a source's weights, as packed: those of its branches, then those of its fit. Each thread sums by itself.
template <class Real>
struct Cell<Real>::WeightSums {
    std::vector<Buffer<Real>> of_thread;

    WeightSums(const Source<Real>& source, int num_threads) {
        for (int thread = 0; thread < num_threads; ++thread) {
            of_thread.emplace_back(source.num_weights());
            of_thread.back().zero();
        }
    }
    Real* total() {
        for (size_t thread = 1; thread < of_thread.size(); ++thread)
            for (size_t i = 0; i < of_thread[0].size(); ++i) of_thread[0].data()[i] += of_thread[thread].data()[i];
        return of_thread[0].data();
    }
};

template <class Real>
void Cell<Real>::backward(const Real* output_gradient, Real* const* input_gradients, Real* mixture_gradient,
                          Real* const* weight_gradients) {
    const size_t pixels = size_t(batch_) * out_.pixels() * num_nodes_;
    node_gradients_ = Buffer<Real>(pixels * channels_);
    copy_channels(output_gradient, true_channels_, node_gradients_.data(), channels_, pixels);
    make_scratch(true);
    std::fill(mixture_gradient, mixture_gradient + num_edges() * num_columns_, Real(0));
    for (int number = int(sources_.size()) - 1; number >= 0; --number) {
        Source<Real>& source = sources_[number];
        WeightSums sums(source, num_threads_);
        sum_gradients(source, mixture_gradient);
        second_stages_backward(source, sums);
        if (source.fit) {
            Buffer<Real> gradient(size_t(batch_) * source.size.pixels() * channels_);
            const GradientSums of_map = first_stages_backward(source, sums, gradient.data(), false);
            fit_backward(source, sums, gradient, of_map, input_gradients[number]);
        } else {
            first_stages_backward(source, sums, node_gradients_.data() + ptrdiff_t(number - NUM_INPUTS) * channels_, true);
        }
        const Real* packed = sums.total();
        const TrueChannels channels = {true_channels_, true_channels_};
        for (const Branch<Real>& branch : source.branches) {
            unpack(branch.first, channels, packed, weight_gradients + branch.first_weight);
            packed += branch.first.num_weights();
            if (!branch.second) continue;
            unpack(*branch.second, channels, packed, weight_gradients + branch.second_weight());
            packed += branch.second->num_weights();
        }
        if (source.fit) unpack(source.fit->stage, source.fit->channels, packed, weight_gradients + source.fit->first_weight);
    }
    scratch_.clear();
    node_gradients_ = Buffer<Real>();
}

// The gradients of architecture weights, and the coefficients of every BatchNorm's backward pass.
template <class Real>
void Cell<Real>::sum_gradients(Source<Real>& source, Real* mixture_gradient) {
    struct Item {
        int edge, column;
        Branch<Real>* branch;
        int pool;  // -1: none
    };
    std::vector<Item> items;
    for (Branch<Real>& branch : source.branches) items.push_back({branch.edge, branch.column, &branch, -1});
    for (const int edge : source.edges)
        for (int column = 0; column < num_columns_; ++column) {
            if (!is_active(edge, column)) continue;
            for (int which = 0; which < NUM_POOLS; ++which)
                if (kinds_[column] == POOL_KINDS[which]) items.push_back({edge, column, nullptr, which});
            if (kinds_[column] == SKIP && source.stride == 1) items.push_back({edge, column, nullptr, -1});
        }
    std::vector<std::vector<GradientSums>> sums(num_threads_);
    for (auto& of_thread : sums) of_thread.assign(items.size(), GradientSums(channels_));
    for_images([&](int n, int thread) {
        for (size_t i = 0; i < items.size(); ++i) {
            const Item& item = items[i];
            const Grid<Real> gradient = node_image(node_gradients_.data(), target_[item.edge], n);
            Grid<const Real> map = source.image(n);
            const Normalization<Real>* norm = nullptr;
            if (item.branch != nullptr) {
                map = image_of(item.branch->out, n, out_, channels_);
                norm = &item.branch->norm;
            } else if (item.pool >= 0) {
                map = image_of(source.pooled[item.pool], n, out_, channels_);
                norm = &source.pool_norm[item.pool];
            }
            sums[thread][i].template add<Real>([&](int y, int x, int c) { return load(gradient.at(y, x) + c); }, map,
                                               norm, out_.height, out_.width, channels_);
        }
    });
    std::vector<GradientSums> of_pools(NUM_POOLS, GradientSums(channels_));
    for (size_t i = 0; i < items.size(); ++i) {
        GradientSums& sum = sums[0][i];
        for (int thread = 1; thread < num_threads_; ++thread) sum.merge(sums[thread][i]);
        const Item& item = items[i];
        double total = 0;
        for (int c = 0; c < true_channels_; ++c) total += sum.with_map[c];
        mixture_gradient[item.edge * num_columns_ + item.column] = Real(total);
        const double weight = weight_of(item.edge, item.column);
        if (item.branch != nullptr) item.branch->backward.set(item.branch->norm, weight, sum);
        if (item.pool >= 0) of_pools[item.pool].merge(sum, weight);
    }
    for (int which = 0; which < NUM_POOLS; ++which)
        if (source.pools[which]) pool_backward_[which].set(source.pool_norm[which], 1.0, of_pools[which]);
}

// a * gradient + b * map + c, into a plain map.
template <class Real>
void through_norm(const BackwardNorm<Real>& norm, Grid<const Real> gradient, Grid<const Real> map, Grid<Real> out,
                  Size size, int channels) {
    for (int c = 0; c < channels; c += LANES<Real>) {
        const Vector<Real> a = load(norm.a.data() + c), b = load(norm.b.data() + c), offset = load(norm.c.data() + c);
        for (int y = 0; y < size.height; ++y)
            for (int x = 0; x < size.width; ++x)
                store(out.at(y, x) + c, a * load(gradient.at(y, x) + c) + b * load(map.at(y, x) + c) + offset);
    }
}

// Backward through the second halves of separable convolutions, up to the statistics in their middle.
template <class Real>
void Cell<Real>::second_stages_backward(Source<Real>& source, WeightSums& weight_sums) {
    std::vector<std::vector<GradientSums>> sums(num_threads_);
    for (auto& of_thread : sums) of_thread.assign(source.branches.size(), GradientSums(channels_));
    bool any = false;
    for (Branch<Real>& branch : source.branches)
        if (branch.normalized_between) {
            any = true;
            branch.middle_gradient = Buffer<Real>(size_t(batch_) * branch.middle_size.pixels() * channels_);
        }
    if (!any) return;
    for (Scratch<Real>& scratch : scratch_) {
        scratch.middle.zero();
        scratch.bordered_between.zero();
    }
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = scratch_[thread];
        Real* weights_grad = weight_sums.of_thread[thread].data();
        for (size_t b = 0; b < source.branches.size(); ++b) {
            Branch<Real>& branch = source.branches[b];
            Real* second_grad = weights_grad + branch.first.num_weights();
            weights_grad += branch.num_weights();
            if (!branch.normalized_between) continue;
            const Size size = branch.middle_size;
            const Grid<Real> active = bordered(scratch.middle.data(), size, channels_);
            activate(branch, n, active, channels_);
            const Grid<Real> out_gradient = plain(scratch.gradient.data(), out_, channels_);
            through_norm<Real>(branch.backward, node_image(node_gradients_.data(), branch.node, n),
                               image_of(branch.out, n, out_, channels_), out_gradient, out_, channels_);
            const Grid<Real> gradient = bordered(scratch.middle_gradient.data(), size, channels_);
            branch.second->backward(active, size, out_gradient, gradient, second_grad, scratch.between.data(),
                                    scratch.bordered_between.data(), false);
            const Grid<Real> kept = image_of(branch.middle_gradient, n, size, channels_);
            const auto keep = [&](int y, int x, int c) {
                const Vector<Real> value = load(gradient.at(y, x) + c);
                const Vector<Real> passed = load(active.at(y, x) + c) > 0 ? value : Vector<Real>{};
                store(kept.at(y, x) + c, passed);
                return passed;
            };
            sums[thread][b].template add<Real>(keep, image_of(branch.middle, n, size, channels_), &branch.middle_norm,
                                               size.height, size.width, channels_);
        }
    });
    for (size_t b = 0; b < source.branches.size(); ++b) {
        Branch<Real>& branch = source.branches[b];
        if (!branch.normalized_between) continue;
        for (int thread = 1; thread < num_threads_; ++thread) sums[0][b].merge(sums[thread][b]);
        branch.middle_backward.set(branch.middle_norm, 1.0, sums[0][b]);
    }
}

// Backward through everything else, to the gradient of the source's map; returns its sums with that map.
template <class Real>
GradientSums Cell<Real>::first_stages_backward(Source<Real>& source, WeightSums& weight_sums, Real* gradient,
                                               bool accumulate) {
    const auto edge_weight = [&](int edge, int column) {
        return column >= 0 && is_active(edge, column) ? Real(weight_of(edge, column)) : Real(0);
    };
    const int skip = source.stride == 1 ? column_of(SKIP) : -1;
    const bool any_branch = !source.branches.empty();
    const bool any_pool = source.pools[MAXIMUM] || source.pools[AVERAGE];
    std::vector<GradientSums> sums(num_threads_, GradientSums(channels_));
    for (Scratch<Real>& scratch : scratch_) {
        scratch.input.zero();
        scratch.bordered_between.zero();
    }
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = scratch_[thread];
        Real* first_grad = weight_sums.of_thread[thread].data();
        const Grid<const Real> in = source.image(n);
        const Grid<Real> rectified = bordered(scratch.input.data(), source.size, channels_);
        if (any_branch) rectify_into(in, rectified, source.size, channels_);
        if (any_pool) scratch.direct.zero();
        const Grid<Real> in_gradient = bordered(scratch.input_gradient.data(), source.size, channels_);
        const Grid<Real> direct = bordered(scratch.direct.data(), source.size, channels_);
        bool begun = false;
        for (Branch<Real>& branch : source.branches) {
            const Size size = branch.middle_size;
            if (!begun && !branch.first.writes_everywhere()) {
                scratch.input_gradient.zero();
                begun = true;
            }
            Grid<const Real> first_gradient = plain(scratch.gradient.data(), size, channels_);
            if (branch.normalized_between) {
                through_norm<Real>(branch.middle_backward, image_of(branch.middle_gradient, n, size, channels_),
                                   image_of(branch.middle, n, size, channels_),
                                   plain(scratch.gradient.data(), size, channels_), size, channels_);
            } else {
                const Grid<Real> last = plain(scratch.gradient.data(), out_, channels_);
                through_norm<Real>(branch.backward, node_image(node_gradients_.data(), branch.node, n),
                                   image_of(branch.out, n, out_, channels_), last, out_, channels_);
                if (branch.second) {
                    scratch.middle.zero();
                    scratch.middle_gradient.zero();
                    const Grid<Real> middle = bordered(scratch.middle.data(), size, channels_);
                    const Grid<Real> kept = image_of(branch.middle, n, size, channels_);
                    everywhere<Real>(size.height, size.width, channels_, [&](int y, int x, int c) {
                        store(middle.at(y, x) + c, load(kept.at(y, x) + c));
                    });
                    const Grid<Real> middle_gradient = bordered(scratch.middle_gradient.data(), size, channels_);
                    branch.second->backward(middle, size, last, middle_gradient,
                                            first_grad + branch.first.num_weights(), scratch.between.data(),
                                            scratch.bordered_between.data());
                    first_gradient = middle_gradient;
                }
            }
            branch.first.backward(rectified, source.size, first_gradient, in_gradient, first_grad,
                                  scratch.between.data(), scratch.bordered_between.data(), begun);
            begun = true;
            first_grad += branch.num_weights();
        }
        for (int which = 0; which < NUM_POOLS; ++which) {
            if (!source.pools[which]) continue;
            const int column = column_of(POOL_KINDS[which]);
            const Grid<Real> pooled = image_of(source.pooled[which], n, out_, channels_);
            const Grid<Real> total = plain(scratch.gradient.data(), out_, channels_);
            const BackwardNorm<Real>& norm = pool_backward_[which];
            everywhere<Real>(out_.height, out_.width, channels_, [&](int y, int x, int c) {
                Vector<Real> sum = {};
                for (const int edge : source.edges)
                    sum += edge_weight(edge, column) *
                           load(node_image(node_gradients_.data(), target_[edge], n).at(y, x) + c);
                store(total.at(y, x) + c, load(norm.a.data() + c) * sum +
                                              load(norm.b.data() + c) * load(pooled.at(y, x) + c) +
                                              load(norm.c.data() + c));
            });
            pool_backward<Real>(which, in, source.size, source.stride, pooled, total, out_, direct, channels_);
        }
        const Grid<Real> to = {gradient + size_t(n) * source.size.pixels() * source.pixel,
                               source.size.width * source.pixel, source.pixel};
        const auto finish = [&](int y, int x, int c) {
            Vector<Real> sum = {};
            if (any_branch) {
                const Vector<Real> value = load(in_gradient.at(y, x) + c);
                sum = load(rectified.at(y, x) + c) > 0 ? value : sum;
            }
            if (any_pool) sum += load(direct.at(y, x) + c);
            if (skip >= 0)
                for (const int edge : source.edges)
                    sum += edge_weight(edge, skip) *
                           load(node_image(node_gradients_.data(), target_[edge], n).at(y, x) + c);
            if (accumulate) sum += load(to.at(y, x) + c);
            store(to.at(y, x) + c, sum);
            return sum;
        };
        if (source.fit)
            sums[thread].template add<Real>(finish, in, nullptr, source.size.height, source.size.width, channels_);
        else
            everywhere<Real>(source.size.height, source.size.width, channels_, finish);
    });
    for (Branch<Real>& branch : source.branches) branch.middle_gradient = Buffer<Real>();
    for (int thread = 1; thread < num_threads_; ++thread) sums[0].merge(sums[thread]);
    return sums[0];
}

// From the gradient of the source's map, and its sums with that map, to the gradient of the cell's input.
template <class Real>
void Cell<Real>::fit_backward(Source<Real>& source, WeightSums& weight_sums, Buffer<Real>& gradient,
                              const GradientSums& of_map, Real* input_gradient) {
    Fit<Real>& fit = *source.fit;
    BackwardNorm<Real> norm;
    norm.set(fit.norm, 1.0, of_map, true);
    const int in_channels = fit.stage.in_channels;
    const size_t before = source.num_weights() - fit.stage.num_weights();
    for (Scratch<Real>& scratch : scratch_) scratch.fit_input.zero();
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = scratch_[thread];
        const Grid<Real> out_gradient = plain(scratch.gradient.data(), source.size, channels_);
        through_norm<Real>(norm, image_of(gradient, n, source.size, channels_), source.image(n), out_gradient,
                           source.size, channels_);
        const Grid<Real> rectified = bordered(scratch.fit_input.data(), fit.in_size, in_channels);
        rectify_into(fit.image(n), rectified, fit.in_size, in_channels);
        const Grid<Real> in_gradient = bordered(scratch.fit_gradient.data(), fit.in_size, in_channels);
        if (!fit.stage.writes_everywhere()) scratch.fit_gradient.zero();
        fit.stage.backward(rectified, fit.in_size, out_gradient, in_gradient, weight_sums.of_thread[thread].data() + before,
                           static_cast<Real*>(nullptr), static_cast<Real*>(nullptr), !fit.stage.writes_everywhere());
        const int channels = fit.channels.in;
        Real* to = input_gradient + size_t(n) * fit.in_size.pixels() * channels;
        for (int y = 0; y < fit.in_size.height; ++y)
            for (int x = 0; x < fit.in_size.width; ++x, to += channels) {
                const Real *value = in_gradient.at(y, x), *passed = rectified.at(y, x);
                for (int c = 0; c < channels; ++c) to[c] = passed[c] > 0 ? value[c] : Real(0);
            }
    });
}

}  // namespace metasearch
