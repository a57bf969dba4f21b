// A cell of the supernet, forward and backward; README.md explains layout and phases. The C functions are at the end.
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "memory.h"
#include "stages.h"
#include "statistics.h"

extern "C" {
// Kinds of op, in the order of `library.KINDS`.
enum MetasearchKind {
    NONE,
    MAX_POOL,
    AVG_POOL,
    SKIP,
    SEP_CONV_3,
    SEP_CONV_5,
    SEP_CONV_7,
    DIL_CONV_3,
    DIL_CONV_5,
    CONV_7X1_1X7,
};
struct MetasearchCell {
    int batch, channels, height, width;  // of the two inputs
    int stride;                          // of the edges that start in them
    int num_nodes, num_columns, num_threads;
    const int* kinds;             // [columns]
    const unsigned char* active;  // [edges, columns]
};
}

namespace metasearch {
namespace {

// A weight tensor of torch: channels are not padded, taps lie innermost.
template <class Real>
struct Weights {
    const Real* const* first;
    int count;
};

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
};

// A map that edges start from, and what several of them share.
template <class Real>
struct Source {
    const Real* data = nullptr;
    ptrdiff_t pixel = 0;
    Size size{}, out_size{};
    int stride = 1;
    std::vector<int> edges;
    std::vector<Branch<Real>> branches;
    bool pools[2] = {false, false};
    Buffer<Real> pooled[2];
    Normalization<Real> pool_norm[2];

    Grid<const Real> image(int n) const {
        return {data + size_t(n) * size.pixels() * pixel, size.width * pixel, pixel};
    }
};

template <class Real>
Grid<Real> image_of(Buffer<Real>& maps, int n, Size size, int channels) {
    return plain(maps.data() + size_t(n) * size.pixels() * channels, size, channels);
}

template <class Real>
void copy_channels(const Real* from, ptrdiff_t from_pixel, Real* to, ptrdiff_t to_pixel, size_t pixels, int channels,
                   int padded) {
    for (size_t i = 0; i < pixels; ++i, from += from_pixel, to += to_pixel) {
        std::copy(from, from + channels, to);
        std::fill(to + channels, to + padded, Real(0));
    }
}

// Scratch maps of one thread, of the size of a source.
template <class Real>
struct Scratch {
    Buffer<Real> input, input_gradient, middle, middle_gradient, direct, gradient, between, bordered_between;

    Scratch(Size size, int channels)
        : input(size.bordered() * channels),
          input_gradient(size.bordered() * channels),
          middle(size.bordered() * channels),
          middle_gradient(size.bordered() * channels),
          direct(size.bordered() * channels),
          gradient(size_t(size.pixels()) * channels),
          between(size_t(size.pixels()) * channels),
          bordered_between(size.bordered() * channels) {}
};

template <class Real>
class Cell {
   public:
    Cell(const MetasearchCell& description, const Real* input0, const Real* input1, const Real* mixture,
         const Real* const* weights, Real* output);
    void backward(const Real* output_gradient, Real* const* input_gradients, Real* mixture_gradient,
                  Real* const* weight_gradients);

   private:
    int num_edges() const { return num_nodes_ * (num_nodes_ + 3) / 2; }
    bool is_active(int edge, int column) const { return active_[edge * num_columns_ + column] != 0; }
    double weight_of(int edge, int column) const { return mixture_[edge * num_columns_ + column]; }
    int pool_column(int pool) const;
    Grid<Real> node_image(Real* nodes, int node, int n) const {
        const ptrdiff_t pixel = ptrdiff_t(num_nodes_) * channels_;
        return {nodes + size_t(n) * out_.pixels() * pixel + ptrdiff_t(node) * channels_, out_.width * pixel, pixel};
    }

    void set_up(const Real* const* weights);
    void pack(Stage<Real>& stage, const Real* const* weights) const;
    void unpack(const Stage<Real>& stage, const Real* packed, Real* const* weights) const;
    void run_first_stages(Source<Real>& source);
    void run_second_stages(Source<Real>& source);
    void mix(Source<Real>& source, std::vector<bool>& begun);
    void pool(int which, Grid<const Real> in, Size in_size, int stride, Grid<Real> out, Size out_size) const;
    void pool_backward(int which, Grid<const Real> in, Size in_size, int stride, Grid<const Real> out,
                       Grid<const Real> out_gradient, Size out_size, Grid<Real> in_gradient) const;
    void sum_gradients(Source<Real>& source, Real* mixture_gradient);
    void second_stages_backward(Source<Real>& source, std::vector<Buffer<Real>>& weight_sums);
    void first_stages_backward(Source<Real>& source, std::vector<Buffer<Real>>& weight_sums, Real* gradient,
                               ptrdiff_t pixel, bool accumulate);
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
    Buffer<Real> padded_inputs_[2], padded_nodes_, node_gradients_;
    BackwardNorm<Real> pool_backward_[2];
    Real* nodes_ = nullptr;
    std::vector<std::unique_ptr<Scratch<Real>>> scratch_;
};

constexpr int POOL_KINDS[2] = {MAX_POOL, AVG_POOL};

template <class Real>
int Cell<Real>::pool_column(int pool) const {
    const auto found = std::find(kinds_.begin(), kinds_.end(), POOL_KINDS[pool]);
    return found == kinds_.end() ? -1 : int(found - kinds_.begin());
}

template <class Real>
Cell<Real>::Cell(const MetasearchCell& d, const Real* input0, const Real* input1, const Real* mixture,
                 const Real* const* weights, Real* output)
    : batch_(d.batch),
      true_channels_(d.channels),
      channels_((d.channels + GROUP - 1) / GROUP * GROUP),
      num_nodes_(d.num_nodes),
      num_columns_(d.num_columns),
      num_threads_(std::max(1, std::min(d.num_threads, d.batch))),
      in_{d.height, d.width},
      out_(in_.halved(d.stride)),
      kinds_(d.kinds, d.kinds + d.num_columns),
      active_(d.active, d.active + num_edges() * d.num_columns),
      mixture_(mixture, mixture + num_edges() * d.num_columns) {
    const bool padded = channels_ != true_channels_;
    Real* nodes = output;
    if (padded) {
        padded_nodes_ = Buffer<Real>(size_t(batch_) * out_.pixels() * num_nodes_ * channels_);
        nodes = padded_nodes_.data();
    }
    nodes_ = nodes;
    for (int source = 0; source < num_nodes_ + 1; ++source) {
        sources_.emplace_back();
        Source<Real>& s = sources_.back();
        s.stride = source < 2 ? d.stride : 1;
        s.size = source < 2 ? in_ : out_;
        s.out_size = out_;
        if (source < 2) {
            const Real* input = source == 0 ? input0 : input1;
            if (padded) {
                const size_t pixels = size_t(batch_) * in_.pixels();
                padded_inputs_[source] = Buffer<Real>(pixels * channels_);
                copy_channels(input, true_channels_, padded_inputs_[source].data(), channels_, pixels, true_channels_,
                              channels_);
                input = padded_inputs_[source].data();
            }
            s.data = input;
            s.pixel = channels_;
        } else {
            s.data = nodes + ptrdiff_t(source - 2) * channels_;
            s.pixel = ptrdiff_t(num_nodes_) * channels_;
        }
    }
    for (int node = 0, edge = 0; node < num_nodes_; ++node)
        for (int source = 0; source < node + 2; ++source, ++edge) {
            target_.push_back(node);
            sources_[source].edges.push_back(edge);
        }
    set_up(weights);
    for (int thread = 0; thread < num_threads_; ++thread)
        scratch_.push_back(std::make_unique<Scratch<Real>>(in_, channels_));
    std::vector<bool> begun(num_nodes_, false);
    for (Source<Real>& source : sources_) {
        // A node that nothing has reached yet is zero; its own edges start from it all the same.
        const int node = int(&source - sources_.data()) - 2;
        if (node >= 0 && !begun[node]) {
            for_images([&](int n, int) {
                const Grid<Real> map = node_image(nodes, node, n);
                everywhere<Real>(out_.height, out_.width, channels_,
                           [&](int y, int x, int c) { store(map.at(y, x) + c, Vector<Real>{}); });
            });
            begun[node] = true;
        }
        run_first_stages(source);
        run_second_stages(source);
        mix(source, begun);
    }
    for (int node = 0; node < num_nodes_; ++node)
        if (!begun[node])
            for_images([&](int n, int) {
                const Grid<Real> map = node_image(nodes, node, n);
                everywhere<Real>(out_.height, out_.width, channels_,
                           [&](int y, int x, int c) { store(map.at(y, x) + c, Vector<Real>{}); });
            });
    if (padded) {
        const size_t pixels = size_t(batch_) * out_.pixels() * num_nodes_;
        for (size_t i = 0; i < pixels; ++i)
            std::copy(nodes + i * channels_, nodes + i * channels_ + true_channels_, output + i * true_channels_);
    }
    scratch_.clear();
}

// Branches, with their weights packed.
template <class Real>
void Cell<Real>::set_up(const Real* const* weights) {
    int next = 0;
    std::vector<int> source_of;
    for (int node = 0; node < num_nodes_; ++node)
        for (int source = 0; source < node + 2; ++source) source_of.push_back(source);
    for (int edge = 0; edge < num_edges(); ++edge)
        for (int column = 0; column < num_columns_; ++column) {
            Source<Real>& source = sources_[source_of[edge]];
            const int kind = kinds_[column];
            if (kind == MAX_POOL || kind == AVG_POOL) {
                if (is_active(edge, column)) source.pools[kind == AVG_POOL] = true;
                continue;
            }
            if (kind == NONE || (kind == SKIP && source.stride == 1)) continue;
            Branch<Real> branch;
            branch.edge = edge;
            branch.column = column;
            branch.node = target_[edge];
            branch.first_weight = next;
            const auto stage = [&](StageKind kind, int kernel, int stride, int dilation) {
                Stage<Real> made;
                made.kind = kind;
                made.kernel = kernel;
                made.stride = stride;
                made.dilation = dilation;
                made.channels = channels_;
                return made;
            };
            const auto separable = [&](int kernel) {
                branch.first = stage(StageKind::SEPARABLE, kernel, source.stride, 1);
                branch.second = stage(StageKind::SEPARABLE, kernel, 1, 1);
                branch.normalized_between = true;
                next += 4;
            };
            const auto dilated = [&](int kernel) {
                branch.first = stage(StageKind::SEPARABLE, kernel, source.stride, 2);
                next += 2;
            };
            switch (kind) {
                case SEP_CONV_3: separable(3); break;
                case SEP_CONV_5: separable(5); break;
                case SEP_CONV_7: separable(7); break;
                case DIL_CONV_3: dilated(3); break;
                case DIL_CONV_5: dilated(5); break;
                case SKIP:
                    branch.first = stage(StageKind::REDUCE, 1, 2, 1);
                    next += 2;
                    break;
                case CONV_7X1_1X7:
                    branch.first = stage(StageKind::ROW, 7, source.stride, 1);
                    branch.second = stage(StageKind::COLUMN, 7, source.stride, 1);
                    next += 2;
                    break;
                default: throw std::invalid_argument("unknown kind of op");
            }
            if (!is_active(edge, column)) continue;
            branch.middle_size = branch.first.out_size(source.size);
            branch.out_size = branch.second ? branch.second->out_size(branch.middle_size) : branch.middle_size;
            pack(branch.first, weights + branch.first_weight);
            if (branch.second) {
                pack(*branch.second, weights + branch.first_weight + (branch.normalized_between ? 2 : 1));
                branch.middle = Buffer<Real>(size_t(batch_) * branch.middle_size.pixels() * channels_);
            }
            branch.out = Buffer<Real>(size_t(batch_) * branch.out_size.pixels() * channels_);
            source.branches.push_back(std::move(branch));
        }
    for (Source<Real>& source : sources_)
        for (int which = 0; which < 2; ++which)
            if (source.pools[which])
                source.pooled[which] = Buffer<Real>(size_t(batch_) * out_.pixels() * channels_);
}

// torch: depthwise [channels, 1, K, K]; pointwise [out, in, 1, 1]; row [out, in, 1, K]; column [out, in, K, 1].
template <class Real>
void Cell<Real>::pack(Stage<Real>& stage, const Real* const* weights) const {
    const int taps = stage.kernel * stage.kernel;
    if (stage.kind == StageKind::SEPARABLE) {
        stage.depthwise_weights = Buffer<Real>(stage.num_depthwise());
        stage.flipped = Buffer<Real>(stage.num_depthwise());
        stage.depthwise_weights.zero();
        stage.flipped.zero();
        for (int c = 0; c < true_channels_; ++c)
            for (int tap = 0; tap < taps; ++tap) {
                stage.depthwise_weights.data()[tap * channels_ + c] = weights[0][c * taps + tap];
                stage.flipped.data()[(taps - 1 - tap) * channels_ + c] = weights[0][c * taps + tap];
            }
    }
    stage.matrices = Buffer<Real>(stage.num_matrices() * stage.matrix_size());
    stage.transposed = Buffer<Real>(stage.num_matrices() * stage.matrix_size());
    stage.matrices.zero();
    stage.transposed.zero();
    const int even = true_channels_ / 2;
    for (int n = 0; n < stage.num_matrices(); ++n)
        for (int out = 0; out < true_channels_; ++out)
            for (int in = 0; in < true_channels_; ++in) {
                Real value;
                if (stage.kind == StageKind::SEPARABLE)
                    value = weights[1][out * true_channels_ + in];
                else if (stage.kind == StageKind::REDUCE) {
                    if ((out < even) != (n == 0)) continue;
                    value = weights[n][(out - n * even) * true_channels_ + in];
                } else
                    value = weights[0][(out * true_channels_ + in) * stage.kernel + n];
                stage.matrices.data()[n * stage.matrix_size() + in * channels_ + out] = value;
                stage.transposed.data()[n * stage.matrix_size() + out * channels_ + in] = value;
            }
}

template <class Real>
void Cell<Real>::unpack(const Stage<Real>& stage, const Real* packed, Real* const* weights) const {
    const int taps = stage.kernel * stage.kernel;
    if (stage.kind == StageKind::SEPARABLE)
        for (int c = 0; c < true_channels_; ++c)
            for (int tap = 0; tap < taps; ++tap) weights[0][c * taps + tap] = packed[tap * channels_ + c];
    const Real* matrices = packed + stage.num_depthwise();
    const int even = true_channels_ / 2;
    for (int n = 0; n < stage.num_matrices(); ++n)
        for (int out = 0; out < true_channels_; ++out)
            for (int in = 0; in < true_channels_; ++in) {
                const Real value = matrices[n * stage.matrix_size() + in * channels_ + out];
                if (stage.kind == StageKind::SEPARABLE)
                    weights[1][out * true_channels_ + in] = value;
                else if (stage.kind == StageKind::REDUCE) {
                    if ((out < even) == (n == 0)) weights[n][(out - n * even) * true_channels_ + in] = value;
                } else
                    weights[0][(out * true_channels_ + in) * stage.kernel + n] = value;
            }
}

template <class Real>
void rectify_into(Grid<const Real> in, Grid<Real> out, Size size, int channels) {
    everywhere<Real>(size.height, size.width, channels,
               [&](int y, int x, int c) { store(out.at(y, x) + c, rectify<Real>(load(in.at(y, x) + c))); });
}

// Everything that needs no statistics: first stages of all branches, second ones that follow at once, pools.
template <class Real>
void Cell<Real>::run_first_stages(Source<Real>& source) {
    std::vector<std::vector<Moments>> moments(num_threads_);
    for (auto& of_thread : moments) of_thread.assign(source.branches.size() + 2, Moments(channels_));
    for (auto& scratch : scratch_) {
        scratch->input.zero();
        scratch->middle.zero();
    }
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = *scratch_[thread];
        const Grid<const Real> in = source.image(n);
        const Grid<Real> rectified = bordered(scratch.input.data(), source.size, channels_);
        rectify_into(in, rectified, source.size, channels_);
        for (size_t b = 0; b < source.branches.size(); ++b) {
            Branch<Real>& branch = source.branches[b];
            Size size = branch.middle_size;
            Grid<Real> out = image_of(branch.second ? branch.middle : branch.out, n, size, channels_);
            branch.first.forward(rectified, source.size, out, scratch.between.data());
            if (branch.second && !branch.normalized_between) {
                const Grid<Real> middle = bordered(scratch.middle.data(), size, channels_);
                scratch.middle.zero();
                everywhere<Real>(size.height, size.width, channels_,
                           [&](int y, int x, int c) { store(middle.at(y, x) + c, load(out.at(y, x) + c)); });
                out = image_of(branch.out, n, branch.out_size, channels_);
                branch.second->forward(middle, size, out, scratch.between.data());
                size = branch.out_size;
            }
            moments[thread][b].template add<Real>(out, size.height, size.width, channels_);
        }
        for (int which = 0; which < 2; ++which)
            if (source.pools[which]) {
                const Grid<Real> out = image_of(source.pooled[which], n, out_, channels_);
                pool(which, in, source.size, source.stride, out, out_);
                moments[thread][source.branches.size() + which].template add<Real>(out, out_.height, out_.width,
                                                                                    channels_);
            }
    });
    for (int thread = 1; thread < num_threads_; ++thread)
        for (size_t i = 0; i < moments[0].size(); ++i) moments[0][i].merge(moments[thread][i]);
    for (size_t b = 0; b < source.branches.size(); ++b) {
        Branch<Real>& branch = source.branches[b];
        (branch.normalized_between ? branch.middle_norm : branch.norm).set(moments[0][b]);
    }
    for (int which = 0; which < 2; ++which)
        if (source.pools[which]) source.pool_norm[which].set(moments[0][source.branches.size() + which]);
}

// relu(BatchNorm(middle)) of one image.
template <class Real>
void activate(Branch<Real>& branch, int n, Grid<Real> out, int channels) {
    const Grid<Real> middle = image_of(branch.middle, n, branch.middle_size, channels);
    const Normalization<Real>& norm = branch.middle_norm;
    everywhere<Real>(branch.middle_size.height, branch.middle_size.width, channels, [&](int y, int x, int c) {
        const Vector<Real> value = (load(middle.at(y, x) + c) - load(norm.mean.data() + c)) * load(norm.scale.data() + c);
        store(out.at(y, x) + c, rectify<Real>(value));
    });
}

// The second halves of separable convolutions.
template <class Real>
void Cell<Real>::run_second_stages(Source<Real>& source) {
    std::vector<std::vector<Moments>> moments(num_threads_);
    for (auto& of_thread : moments) of_thread.assign(source.branches.size(), Moments(channels_));
    for (auto& scratch : scratch_) scratch->middle.zero();
    const bool any = std::any_of(source.branches.begin(), source.branches.end(),
                                 [](const Branch<Real>& branch) { return branch.normalized_between; });
    if (!any) return;
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = *scratch_[thread];
        for (size_t b = 0; b < source.branches.size(); ++b) {
            Branch<Real>& branch = source.branches[b];
            if (!branch.normalized_between) continue;
            const Grid<Real> active = bordered(scratch.middle.data(), branch.middle_size, channels_);
            activate(branch, n, active, channels_);
            const Grid<Real> out = image_of(branch.out, n, branch.out_size, channels_);
            branch.second->forward(active, branch.middle_size, out, scratch.between.data());
            moments[thread][b].template add<Real>(out, branch.out_size.height, branch.out_size.width, channels_);
        }
    });
    for (size_t b = 0; b < source.branches.size(); ++b)
        if (source.branches[b].normalized_between) {
            for (int thread = 1; thread < num_threads_; ++thread) moments[0][b].merge(moments[thread][b]);
            source.branches[b].norm.set(moments[0][b]);
        }
}

// Adds to each target node the weighted ops of its edge: one pass over the node per edge.
template <class Real>
void Cell<Real>::mix(Source<Real>& source, std::vector<bool>& begun) {
    Real* const nodes = nodes_;
    struct Term {
        const Buffer<Real>* maps;  // null: the source itself
        std::vector<Real> factor;
    };
    for (const int edge : source.edges) {
        std::vector<Term> terms;
        std::vector<Real> offset(channels_, Real(0));
        const auto add = [&](const Buffer<Real>& maps, const Normalization<Real>& norm, double weight) {
            Term term{&maps, std::vector<Real>(channels_)};
            for (int c = 0; c < channels_; ++c) {
                term.factor[c] = Real(weight * norm.scale[c]);
                offset[c] -= term.factor[c] * norm.mean[c];
            }
            terms.push_back(std::move(term));
        };
        for (const Branch<Real>& branch : source.branches)
            if (branch.edge == edge) add(branch.out, branch.norm, weight_of(edge, branch.column));
        for (int column = 0; column < num_columns_; ++column) {
            if (!is_active(edge, column)) continue;
            const int kind = kinds_[column];
            if (kind == MAX_POOL || kind == AVG_POOL)
                add(source.pooled[kind == AVG_POOL], source.pool_norm[kind == AVG_POOL], weight_of(edge, column));
            else if (kind == SKIP && source.stride == 1)
                terms.push_back({nullptr, std::vector<Real>(channels_, Real(weight_of(edge, column)))});
        }
        if (terms.empty()) continue;
        const int node = target_[edge];
        const bool accumulate = begun[node];
        begun[node] = true;
        for_images([&](int n, int) {
            const Grid<Real> to = node_image(nodes, node, n);
            const Grid<const Real> self = source.image(n);
            for (int y = 0; y < out_.height; ++y)
                for (int x = 0; x < out_.width; ++x)
                    for (int c = 0; c < channels_; c += LANES<Real>) {
                        Vector<Real> sum = load(offset.data() + c);
                        if (accumulate) sum += load(to.at(y, x) + c);
                        const size_t pixel = (size_t(n) * out_.height + y) * out_.width + x;
                        for (const Term& term : terms) {
                            const Real* from = term.maps ? term.maps->data() + pixel * channels_ : self.at(y, x);
                            sum += load(term.factor.data() + c) * load(from + c);
                        }
                        store(to.at(y, x) + c, sum);
                    }
        });
    }
}

template <class Real>
void Cell<Real>::pool(int which, Grid<const Real> in, Size in_size, int stride, Grid<Real> out, Size out_size) const {
    for (int y = 0; y < out_size.height; ++y)
        for (int x = 0; x < out_size.width; ++x) {
            const int top = std::max(y * stride - 1, 0), bottom = std::min(y * stride + 2, in_size.height);
            const int left = std::max(x * stride - 1, 0), right = std::min(x * stride + 2, in_size.width);
            const Real share = Real(1) / ((bottom - top) * (right - left));
            for (int c = 0; c < channels_; c += LANES<Real>) {
                Vector<Real> result = load(in.at(top, left) + c);
                for (int v = top; v < bottom; ++v)
                    for (int u = left + (v == top); u < right; ++u) {
                        const Vector<Real> value = load(in.at(v, u) + c);
                        if (which == 0)  // NaN stays, as in torch
                            result = (result >= value) | (result != result) ? result : value;
                        else
                            result += value;
                    }
                store(out.at(y, x) + c, which == 0 ? result : result * share);
            }
        }
}

// The gradient of a maximum goes to the first pixel that has it, row by row.
template <class Real>
void Cell<Real>::pool_backward(int which, Grid<const Real> in, Size in_size, int stride, Grid<const Real> out,
                               Grid<const Real> out_gradient, Size out_size, Grid<Real> in_gradient) const {
    for (int y = 0; y < out_size.height; ++y)
        for (int x = 0; x < out_size.width; ++x) {
            const int top = std::max(y * stride - 1, 0), bottom = std::min(y * stride + 2, in_size.height);
            const int left = std::max(x * stride - 1, 0), right = std::min(x * stride + 2, in_size.width);
            const Real share = Real(1) / ((bottom - top) * (right - left));
            for (int c = 0; c < channels_; c += LANES<Real>) {
                Vector<Real> left_over = load(out_gradient.at(y, x) + c);
                if (which == 1) left_over *= share;
                const Vector<Real> maximum = load(out.at(y, x) + c);
                for (int v = top; v < bottom; ++v)
                    for (int u = left; u < right; ++u) {
                        Real* to = in_gradient.at(v, u) + c;
                        if (which == 1) {
                            store(to, load(to) + left_over);
                        } else {
                            const auto here = load(in.at(v, u) + c) == maximum;
                            store(to, load(to) + (here ? left_over : Vector<Real>{}));
                            left_over = here ? Vector<Real>{} : left_over;
                        }
                    }
            }
        }
}

template <class Real>
void Cell<Real>::backward(const Real* output_gradient, Real* const* input_gradients, Real* mixture_gradient,
                          Real* const* weight_gradients) {
    const bool padded = channels_ != true_channels_;
    const size_t pixels = size_t(batch_) * out_.pixels() * num_nodes_;
    node_gradients_ = Buffer<Real>(pixels * channels_);
    copy_channels(output_gradient, true_channels_, node_gradients_.data(), channels_, pixels, true_channels_, channels_);
    for (int thread = 0; thread < num_threads_; ++thread)
        scratch_.push_back(std::make_unique<Scratch<Real>>(in_, channels_));
    std::fill(mixture_gradient, mixture_gradient + num_edges() * num_columns_, Real(0));
    for (int number = int(sources_.size()) - 1; number >= 0; --number) {
        Source<Real>& source = sources_[number];
        size_t num_weights = 0;
        for (const Branch<Real>& branch : source.branches) num_weights += branch.num_weights();
        std::vector<Buffer<Real>> weight_sums;
        for (int thread = 0; thread < num_threads_; ++thread) {
            weight_sums.emplace_back(num_weights);
            weight_sums.back().zero();
        }
        sum_gradients(source, mixture_gradient);
        second_stages_backward(source, weight_sums);
        if (number >= 2) {
            first_stages_backward(source, weight_sums, node_gradients_.data() + ptrdiff_t(number - 2) * channels_,
                                  ptrdiff_t(num_nodes_) * channels_, true);
        } else if (!padded) {
            first_stages_backward(source, weight_sums, input_gradients[number], channels_, false);
        } else {
            const size_t in_pixels = size_t(batch_) * in_.pixels();
            Buffer<Real> gradient(in_pixels * channels_);
            first_stages_backward(source, weight_sums, gradient.data(), channels_, false);
            for (size_t i = 0; i < in_pixels; ++i)
                std::copy(gradient.data() + i * channels_, gradient.data() + i * channels_ + true_channels_,
                          input_gradients[number] + i * true_channels_);
        }
        for (int thread = 1; thread < num_threads_; ++thread)
            for (size_t i = 0; i < num_weights; ++i) weight_sums[0].data()[i] += weight_sums[thread].data()[i];
        const Real* packed = weight_sums[0].data();
        for (Branch<Real>& branch : source.branches) {
            unpack(branch.first, packed, weight_gradients + branch.first_weight);
            packed += branch.first.num_weights();
            if (branch.second) {
                unpack(*branch.second, packed, weight_gradients + branch.first_weight + (branch.normalized_between ? 2 : 1));
                packed += branch.second->num_weights();
            }
        }
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
            const int kind = kinds_[column];
            if (kind == MAX_POOL || kind == AVG_POOL) items.push_back({edge, column, nullptr, kind == AVG_POOL});
            if (kind == SKIP && source.stride == 1) items.push_back({edge, column, nullptr, -1});
        }
    std::vector<std::vector<GradientSums>> sums(num_threads_);
    for (auto& of_thread : sums) of_thread.assign(items.size(), GradientSums(channels_));
    for_images([&](int n, int thread) {
        for (size_t i = 0; i < items.size(); ++i) {
            const Item& item = items[i];
            const Grid<Real> gradient = node_image(node_gradients_.data(), target_[item.edge], n);
            GradientSums& sum = sums[thread][i];
            if (item.branch != nullptr)
                sum.template add<Real>(gradient, image_of(item.branch->out, n, out_, channels_), &item.branch->norm,
                                       out_.height, out_.width, channels_);
            else if (item.pool >= 0)
                sum.template add<Real>(gradient, image_of(source.pooled[item.pool], n, out_, channels_),
                                       &source.pool_norm[item.pool], out_.height, out_.width, channels_);
            else
                sum.template add<Real>(gradient, source.image(n), nullptr, out_.height, out_.width, channels_);
        }
    });
    std::vector<double> pool_sum[2], pool_sum_with_map[2];
    for (int which = 0; which < 2; ++which) {
        pool_sum[which].assign(channels_, 0);
        pool_sum_with_map[which].assign(channels_, 0);
    }
    for (size_t i = 0; i < items.size(); ++i) {
        GradientSums& sum = sums[0][i];
        for (int thread = 1; thread < num_threads_; ++thread) sum.merge(sums[thread][i]);
        const Item& item = items[i];
        double total = 0;
        for (int c = 0; c < true_channels_; ++c) total += sum.with_map[c];
        mixture_gradient[item.edge * num_columns_ + item.column] = Real(total);
        const double weight = weight_of(item.edge, item.column);
        for (int c = 0; c < channels_; ++c) {
            sum.plain[c] *= weight;
            sum.with_map[c] *= weight;
        }
        if (item.branch != nullptr) item.branch->backward.set(item.branch->norm, weight, sum.plain, sum.with_map);
        if (item.pool >= 0)
            for (int c = 0; c < channels_; ++c) {
                pool_sum[item.pool][c] += sum.plain[c];
                pool_sum_with_map[item.pool][c] += sum.with_map[c];
            }
    }
    for (int which = 0; which < 2; ++which)
        if (source.pools[which])
            pool_backward_[which].set(source.pool_norm[which], 1.0, pool_sum[which], pool_sum_with_map[which]);
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
void Cell<Real>::second_stages_backward(Source<Real>& source, std::vector<Buffer<Real>>& weight_sums) {
    std::vector<std::vector<GradientSums>> sums(num_threads_);
    for (auto& of_thread : sums) of_thread.assign(source.branches.size(), GradientSums(channels_));
    bool any = false;
    for (Branch<Real>& branch : source.branches)
        if (branch.normalized_between) {
            any = true;
            branch.middle_gradient = Buffer<Real>(size_t(batch_) * branch.middle_size.pixels() * channels_);
        }
    if (!any) return;
    for (auto& scratch : scratch_) {
        scratch->middle.zero();
        scratch->bordered_between.zero();
    }
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = *scratch_[thread];
        Real* weights_grad = weight_sums[thread].data();
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
            scratch.middle_gradient.zero();
            const Grid<Real> gradient = bordered(scratch.middle_gradient.data(), size, channels_);
            branch.second->backward(active, size, out_gradient, gradient, second_grad, scratch.between.data(),
                                    scratch.bordered_between.data());
            const Grid<Real> kept = image_of(branch.middle_gradient, n, size, channels_);
            everywhere<Real>(size.height, size.width, channels_, [&](int y, int x, int c) {
                const Vector<Real> value = load(gradient.at(y, x) + c);
                store(kept.at(y, x) + c, load(active.at(y, x) + c) > 0 ? value : Vector<Real>{});
            });
            sums[thread][b].template add<Real>(kept, image_of(branch.middle, n, size, channels_), &branch.middle_norm,
                                               size.height, size.width, channels_);
        }
    });
    for (size_t b = 0; b < source.branches.size(); ++b) {
        Branch<Real>& branch = source.branches[b];
        if (!branch.normalized_between) continue;
        for (int thread = 1; thread < num_threads_; ++thread) sums[0][b].merge(sums[thread][b]);
        branch.middle_backward.set(branch.middle_norm, 1.0, sums[0][b].plain, sums[0][b].with_map);
    }
}

// Backward through everything else, to the source's own gradient.
template <class Real>
void Cell<Real>::first_stages_backward(Source<Real>& source, std::vector<Buffer<Real>>& weight_sums, Real* gradient,
                                       ptrdiff_t pixel, bool accumulate) {
    const auto edge_weight = [&](int edge, int column) {
        return column >= 0 && is_active(edge, column) ? Real(weight_of(edge, column)) : Real(0);
    };
    const auto found = std::find(kinds_.begin(), kinds_.end(), int(SKIP));
    const int skip = found == kinds_.end() || source.stride != 1 ? -1 : int(found - kinds_.begin());
    for (auto& scratch : scratch_) {
        scratch->input.zero();
        scratch->bordered_between.zero();
    }
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = *scratch_[thread];
        Real* weights_grad = weight_sums[thread].data();
        const Grid<const Real> in = source.image(n);
        const Grid<Real> rectified = bordered(scratch.input.data(), source.size, channels_);
        rectify_into(in, rectified, source.size, channels_);
        scratch.input_gradient.zero();
        scratch.direct.zero();
        const Grid<Real> in_gradient = bordered(scratch.input_gradient.data(), source.size, channels_);
        const Grid<Real> direct = bordered(scratch.direct.data(), source.size, channels_);
        for (Branch<Real>& branch : source.branches) {
            Real* first_grad = weights_grad;
            weights_grad += branch.num_weights();
            const Size size = branch.middle_size;
            const Grid<Real> out_gradient = plain(scratch.gradient.data(), size, channels_);
            if (branch.normalized_between) {
                through_norm<Real>(branch.middle_backward, image_of(branch.middle_gradient, n, size, channels_),
                                   image_of(branch.middle, n, size, channels_), out_gradient, size, channels_);
            } else {
                const Grid<Real> last = plain(scratch.gradient.data(), out_, channels_);
                through_norm<Real>(branch.backward, node_image(node_gradients_.data(), branch.node, n),
                                   image_of(branch.out, n, out_, channels_), last, out_, channels_);
                if (branch.second) {
                    scratch.middle.zero();
                    scratch.middle_gradient.zero();
                    const Grid<Real> middle = bordered(scratch.middle.data(), size, channels_);
                    const Grid<Real> kept = image_of(branch.middle, n, size, channels_);
                    everywhere<Real>(size.height, size.width, channels_,
                               [&](int y, int x, int c) { store(middle.at(y, x) + c, load(kept.at(y, x) + c)); });
                    const Grid<Real> middle_gradient = bordered(scratch.middle_gradient.data(), size, channels_);
                    branch.second->backward(middle, size, last, middle_gradient,
                                            first_grad + branch.first.num_weights(), scratch.between.data(),
                                            scratch.bordered_between.data());
                    branch.first.backward(rectified, source.size, middle_gradient, in_gradient, first_grad,
                                          scratch.between.data(), scratch.bordered_between.data());
                    continue;
                }
            }
            branch.first.backward(rectified, source.size, out_gradient, in_gradient, first_grad, scratch.between.data(),
                                  scratch.bordered_between.data());
        }
        for (int which = 0; which < 2; ++which) {
            if (!source.pools[which]) continue;
            const int column = pool_column(which);
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
            pool_backward(which, in, source.size, source.stride, pooled, total, out_, direct);
        }
        const Grid<Real> to = {gradient + size_t(n) * source.size.pixels() * pixel, source.size.width * pixel, pixel};
        everywhere<Real>(source.size.height, source.size.width, channels_, [&](int y, int x, int c) {
            const Vector<Real> value = load(in_gradient.at(y, x) + c);
            Vector<Real> sum = load(rectified.at(y, x) + c) > 0 ? value : Vector<Real>{};
            sum += load(direct.at(y, x) + c);
            if (skip >= 0)
                for (const int edge : source.edges)
                    sum += edge_weight(edge, skip) *
                           load(node_image(node_gradients_.data(), target_[edge], n).at(y, x) + c);
            if (accumulate) sum += load(to.at(y, x) + c);
            store(to.at(y, x) + c, sum);
        });
    });
    for (Branch<Real>& branch : source.branches) branch.middle_gradient = Buffer<Real>();
}

template <class Real>
void* forward(const MetasearchCell* description, const Real* input0, const Real* input1, const Real* mixture,
              const Real* const* weights, Real* output, char* problem, size_t problem_size) {
    try {
        return new Cell<Real>(*description, input0, input1, mixture, weights, output);
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

// The interface: for each precision, `forward` returns a cell that `backward` may be called on once, or null and a
// problem; `release` ends it.
extern "C" {
#define INTERFACE(NAME, REAL)                                                                                          \
    void* metasearch_forward_##NAME(const MetasearchCell* description, const REAL* input0, const REAL* input1,         \
                                    const REAL* mixture, const REAL* const* weights, REAL* output, char* problem,      \
                                    size_t problem_size) {                                                             \
        return metasearch::forward<REAL>(description, input0, input1, mixture, weights, output, problem,               \
                                         problem_size);                                                                \
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
