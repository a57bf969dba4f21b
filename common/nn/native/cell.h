// What a cell is made of, and how it is set up. Its passes are in forward.h and backward.h.
#pragma once

#include <omp.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "interface.h"
#include "memory.h"
#include "packing.h"
#include "pooling.h"
#include "stages.h"
#include "statistics.h"

namespace metasearch {

constexpr int NUM_INPUTS = 2;
constexpr int POOL_KINDS[NUM_POOLS] = {MAX_POOL, AVG_POOL};

inline int padded(int channels) { return (channels + GROUP - 1) / GROUP * GROUP; }

template <class Real>
Grid<Real> image_of(Buffer<Real>& maps, int n, Size size, int channels) {
    return plain(maps.data() + size_t(n) * size.pixels() * channels, size, channels);
}

// Copies pixels from one number of channels to another; what is new is zero.
template <class Real>
void copy_channels(const Real* from, int from_channels, Real* to, int to_channels, size_t pixels) {
    const int shared = std::min(from_channels, to_channels);
    for (size_t i = 0; i < pixels; ++i, from += from_channels, to += to_channels) {
        std::copy(from, from + shared, to);
        std::fill(to + shared, to + to_channels, Real(0));
    }
}

template <class Real>
void rectify_into(Grid<const Real> in, Grid<Real> out, Size size, int channels) {
    everywhere<Real>(size.height, size.width, channels,
                     [&](int y, int x, int c) { store(out.at(y, x) + c, rectify<Real>(load(in.at(y, x) + c))); });
}

// One op on one edge that has weights: one stage, or two with or without BatchNorm and ReLU between them.
template <class Real>
struct Branch {
    int edge, column, node;
    Stage<Real> first;
    std::optional<Stage<Real>> second;
    bool normalized_between = false;
    int first_weight = 0;  // index of its first tensor
    Size middle_size{}, out_size{};
    Buffer<Real> middle, out;  // of all images
    Normalization<Real> middle_norm, norm;
    // Backward
    BackwardNorm<Real> middle_backward, backward;
    Buffer<Real> middle_gradient;

    size_t num_weights() const { return first.num_weights() + (second ? second->num_weights() : 0); }
    int second_weight() const { return first_weight + (normalized_between ? 2 : 1); }
};

// ReLU, 1x1 convolution or factorized reduction, BatchNorm: what makes a source of an input of the cell.
template <class Real>
struct Fit {
    Stage<Real> stage;
    const Real* input;
    TrueChannels channels;
    Size in_size{};
    int first_weight = 0;
    Buffer<Real> padded_input;
    Buffer<Real> out;  // normalized once `Cell::run_first_stages` has seen it
    Normalization<Real> norm;

    Grid<const Real> image(int n) const {
        return plain(input + size_t(n) * in_size.pixels() * stage.in_channels, in_size, stage.in_channels);
    }
};

// A map that edges start from, and what several of them share.
template <class Real>
struct Source {
    const Real* data = nullptr;
    ptrdiff_t pixel = 0;
    Size size{};
    int stride = 1;
    std::optional<Fit<Real>> fit;
    std::vector<int> edges;
    std::vector<Branch<Real>> branches;
    bool pools[NUM_POOLS] = {false, false};
    Buffer<Real> pooled[NUM_POOLS];
    Normalization<Real> pool_norm[NUM_POOLS];

    Grid<const Real> image(int n) const {
        return {data + size_t(n) * size.pixels() * pixel, size.width * pixel, pixel};
    }
    size_t num_weights() const {
        size_t total = fit ? fit->stage.num_weights() : 0;
        for (const Branch<Real>& branch : branches) total += branch.num_weights();
        return total;
    }
};

// Scratch maps of one thread: bordered ones are large enough for a source, `fit_input` and its gradient for an input.
template <class Real>
struct Scratch {
    Buffer<Real> input, input_gradient, middle, middle_gradient, direct, bordered_between;
    Buffer<Real> gradient, between;  // plain
    Buffer<Real> fit_input, fit_gradient;

    Scratch(Size size, int channels, size_t fit_size, bool is_backward)
        : input(size.bordered() * channels),
          input_gradient(is_backward ? size.bordered() * channels : 0),
          middle(size.bordered() * channels),
          middle_gradient(is_backward ? size.bordered() * channels : 0),
          direct(is_backward ? size.bordered() * channels : 0),
          bordered_between(is_backward ? size.bordered() * channels : 0),
          gradient(is_backward ? size_t(size.pixels()) * channels : 0),
          between(size_t(size.pixels()) * channels),
          fit_input(fit_size),
          fit_gradient(is_backward ? fit_size : 0) {}
};

template <class Real>
class Cell {
   public:
    // Writes `output`. The inputs and the output stay where they are until `backward` has run.
    Cell(const MetasearchCell& description, const Real* const* inputs, const Real* mixture, const Real* const* weights,
         Real* output);
    void backward(const Real* output_gradient, Real* const* input_gradients, Real* mixture_gradient,
                  Real* const* weight_gradients);

   private:
    int num_edges() const { return num_nodes_ * (num_nodes_ + 3) / 2; }
    bool is_active(int edge, int column) const { return active_[edge * num_columns_ + column] != 0; }
    double weight_of(int edge, int column) const { return mixture_[edge * num_columns_ + column]; }
    int column_of(int kind) const;
    Grid<Real> node_image(Real* nodes, int node, int n) const {
        const ptrdiff_t pixel = ptrdiff_t(num_nodes_) * channels_;
        return {nodes + size_t(n) * out_.pixels() * pixel + ptrdiff_t(node) * channels_, out_.width * pixel, pixel};
    }
    void make_scratch(bool is_backward);

    // Set-up
    int set_up_fit(const MetasearchCell& description, int input, const Real* data, const Real* const* weights, int next);
    void set_up_branches(const Real* const* weights, int next);
    std::optional<Branch<Real>> branch_of(int kind, int stride, int& next) const;

    // Forward
    void fit(Source<Real>& source);
    void run_first_stages(Source<Real>& source);
    void run_second_stages(Source<Real>& source);
    void mix(Source<Real>& source, std::vector<bool>& begun);
    void clear_node(int node);

    // Backward
    struct WeightSums;
    void sum_gradients(Source<Real>& source, Real* mixture_gradient);
    void second_stages_backward(Source<Real>& source, WeightSums& sums);
    GradientSums first_stages_backward(Source<Real>& source, WeightSums& sums, Real* gradient, bool accumulate);
    void fit_backward(Source<Real>& source, WeightSums& sums, Buffer<Real>& gradient, const GradientSums& of_map,
                      Real* input_gradient);

    template <class Body>
    void for_images(Body body) const {
#pragma omp parallel for schedule(static) num_threads(num_threads_)
        for (int n = 0; n < batch_; ++n) body(n, omp_get_thread_num());
    }

    int batch_, true_channels_, channels_, num_nodes_, num_columns_, num_threads_;
    Size in_, out_;
    std::vector<int> kinds_;
    std::vector<unsigned char> active_;
    std::vector<Real> mixture_;
    std::vector<Source<Real>> sources_;
    std::vector<int> target_;  // of each edge
    Buffer<Real> padded_nodes_, node_gradients_;
    BackwardNorm<Real> pool_backward_[NUM_POOLS];
    Real* nodes_ = nullptr;
    std::vector<Scratch<Real>> scratch_;
};

template <class Real>
int Cell<Real>::column_of(int kind) const {
    const auto found = std::find(kinds_.begin(), kinds_.end(), kind);
    return found == kinds_.end() ? -1 : int(found - kinds_.begin());
}

template <class Real>
void Cell<Real>::make_scratch(bool is_backward) {
    size_t fit_size = 0;
    for (const Source<Real>& source : sources_)
        if (source.fit)
            fit_size = std::max(fit_size, source.fit->in_size.bordered() * source.fit->stage.in_channels);
    scratch_.clear();
    for (int thread = 0; thread < num_threads_; ++thread) scratch_.emplace_back(in_, channels_, fit_size, is_backward);
}

template <class Real>
int Cell<Real>::set_up_fit(const MetasearchCell& d, int input, const Real* data, const Real* const* weights, int next) {
    Source<Real>& source = sources_[input];
    Fit<Real>& fit = source.fit.emplace();
    const bool reduces = d.input_strides[input] == 2;
    fit.stage.kind = reduces ? StageKind::REDUCE : StageKind::POINTWISE;
    fit.stage.stride = reduces ? 2 : 1;
    fit.channels = {d.input_channels[input], d.channels};
    fit.stage.in_channels = padded(fit.channels.in);
    fit.stage.out_channels = channels_;
    fit.in_size = {d.input_heights[input], d.input_widths[input]};
    fit.first_weight = next;
    fit.input = data;
    if (fit.stage.in_channels != fit.channels.in) {
        const size_t pixels = size_t(batch_) * fit.in_size.pixels();
        fit.padded_input = Buffer<Real>(pixels * fit.stage.in_channels);
        copy_channels(data, fit.channels.in, fit.padded_input.data(), fit.stage.in_channels, pixels);
        fit.input = fit.padded_input.data();
    }
    pack(fit.stage, fit.channels, weights + next);
    fit.out = Buffer<Real>(size_t(batch_) * in_.pixels() * channels_);
    source.data = fit.out.data();
    source.pixel = channels_;
    return next + fit.stage.num_matrices();
}

// An op with weights, without what depends on its edge; none for the others. `next` moves past its tensors.
template <class Real>
std::optional<Branch<Real>> Cell<Real>::branch_of(int kind, int stride, int& next) const {
    Branch<Real> branch;
    branch.first_weight = next;
    const auto stage = [&](StageKind kind, int kernel, int stride, int dilation) {
        Stage<Real> made;
        made.kind = kind;
        made.kernel = kernel;
        made.stride = stride;
        made.dilation = dilation;
        made.in_channels = made.out_channels = channels_;
        return made;
    };
    const auto separable = [&](int kernel) {
        branch.first = stage(StageKind::SEPARABLE, kernel, stride, 1);
        branch.second = stage(StageKind::SEPARABLE, kernel, 1, 1);
        branch.normalized_between = true;
        next += 4;
    };
    const auto dilated = [&](int kernel) {
        branch.first = stage(StageKind::SEPARABLE, kernel, stride, 2);
        next += 2;
    };
    switch (kind) {
        case NONE:
        case MAX_POOL:
        case AVG_POOL: return std::nullopt;
        case SKIP:
            if (stride == 1) return std::nullopt;
            branch.first = stage(StageKind::REDUCE, 1, 2, 1);
            next += 2;
            break;
        case SEP_CONV_3: separable(3); break;
        case SEP_CONV_5: separable(5); break;
        case SEP_CONV_7: separable(7); break;
        case DIL_CONV_3: dilated(3); break;
        case DIL_CONV_5: dilated(5); break;
        case CONV_7X1_1X7:
            branch.first = stage(StageKind::ROW, 7, stride, 1);
            branch.second = stage(StageKind::COLUMN, 7, stride, 1);
            next += 2;
            break;
        default: throw std::invalid_argument("unknown kind of op");
    }
    return branch;
}

template <class Real>
void Cell<Real>::set_up_branches(const Real* const* weights, int next) {
    for (int node = 0, edge = 0; node < num_nodes_; ++node)
        for (int number = 0; number < node + NUM_INPUTS; ++number, ++edge) {
            Source<Real>& source = sources_[number];
            source.edges.push_back(edge);
            target_.push_back(node);
            for (int column = 0; column < num_columns_; ++column) {
                for (int which = 0; which < NUM_POOLS; ++which)
                    if (kinds_[column] == POOL_KINDS[which] && is_active(edge, column)) source.pools[which] = true;
                std::optional<Branch<Real>> branch = branch_of(kinds_[column], source.stride, next);
                if (!branch || !is_active(edge, column)) continue;
                branch->edge = edge;
                branch->column = column;
                branch->node = node;
                branch->middle_size = branch->first.out_size(source.size);
                branch->out_size = branch->second ? branch->second->out_size(branch->middle_size) : branch->middle_size;
                const TrueChannels channels = {true_channels_, true_channels_};
                pack(branch->first, channels, weights + branch->first_weight);
                if (branch->second) pack(*branch->second, channels, weights + branch->second_weight());
                source.branches.push_back(std::move(*branch));
            }
        }
}

}  // namespace metasearch
