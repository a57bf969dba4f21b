// A cell's forward pass: source by source, and for each one phase by phase (README.md).
#pragma once

#include "cell.h"

namespace metasearch {

template <class Real>
Cell<Real>::Cell(const MetasearchCell& d, const Real* const* inputs, const Real* mixture, const Real* const* weights,
                 Real* output)
    : batch_(d.batch),
      true_channels_(d.channels),
      channels_(padded(d.channels)),
      num_nodes_(d.num_nodes),
      num_columns_(d.num_columns),
      num_threads_(std::max(1, std::min(d.num_threads, d.batch))),
      in_(Size{d.input_heights[1], d.input_widths[1]}.halved(d.input_strides[1])),
      out_(in_.halved(d.stride)),
      kinds_(d.kinds, d.kinds + d.num_columns),
      active_(d.active, d.active + num_edges() * d.num_columns),
      mixture_(mixture, mixture + num_edges() * d.num_columns),
      sources_(num_nodes_ + NUM_INPUTS - 1) {
    nodes_ = output;
    if (channels_ != true_channels_) {
        padded_nodes_ = Buffer<Real>(size_t(batch_) * out_.pixels() * num_nodes_ * channels_);
        nodes_ = padded_nodes_.data();
    }
    int next = 0;
    for (int number = 0; number < int(sources_.size()); ++number) {
        Source<Real>& source = sources_[number];
        source.stride = number < NUM_INPUTS ? d.stride : 1;
        source.size = number < NUM_INPUTS ? in_ : out_;
        if (number < NUM_INPUTS) {
            next = set_up_fit(d, number, inputs[number], weights, next);
        } else {
            source.data = nodes_ + ptrdiff_t(number - NUM_INPUTS) * channels_;
            source.pixel = ptrdiff_t(num_nodes_) * channels_;
        }
    }
    set_up_branches(weights, next);
    make_scratch(false);
    std::vector<bool> begun(num_nodes_, false);
    for (Source<Real>& source : sources_) {
        // A node that nothing has reached yet is zero; its own edges start from it all the same.
        const int node = int(&source - sources_.data()) - NUM_INPUTS;
        if (node >= 0 && !begun[node]) {
            clear_node(node);
            begun[node] = true;
        }
        if (source.fit) fit(source);
        run_first_stages(source);
        run_second_stages(source);
        mix(source, begun);
        if (!d.keeps) {
            source.branches.clear();
            source.fit.reset();
            for (Buffer<Real>& maps : source.pooled) maps = Buffer<Real>();
        }
    }
    for (int node = 0; node < num_nodes_; ++node)
        if (!begun[node]) clear_node(node);
    if (nodes_ != output)
        copy_channels(nodes_, channels_, output, true_channels_, size_t(batch_) * out_.pixels() * num_nodes_);
    scratch_.clear();
}

template <class Real>
void Cell<Real>::clear_node(int node) {
    for_images([&](int n, int) {
        const Grid<Real> map = node_image(nodes_, node, n);
        everywhere<Real>(out_.height, out_.width, channels_,
                         [&](int y, int x, int c) { store(map.at(y, x) + c, Vector<Real>{}); });
    });
}

// The source's map from the cell's input, but for BatchNorm, whose statistics it ends with.
template <class Real>
void Cell<Real>::fit(Source<Real>& source) {
    Fit<Real>& fit = *source.fit;
    std::vector<Moments> moments(num_threads_, Moments(channels_));
    for (Scratch<Real>& scratch : scratch_) scratch.fit_input.zero();
    for_images([&](int n, int thread) {
        const Grid<Real> rectified = bordered(scratch_[thread].fit_input.data(), fit.in_size, fit.stage.in_channels);
        rectify_into(fit.image(n), rectified, fit.in_size, fit.stage.in_channels);
        const Grid<Real> out = image_of(fit.out, n, source.size, channels_);
        moments[thread].template add_written_by<Real>(
            [&](auto watch) { fit.stage.forward(rectified, fit.in_size, out, static_cast<Real*>(nullptr), watch); },
            out, source.size.height, source.size.width, channels_);
    });
    for (int thread = 1; thread < num_threads_; ++thread) moments[0].merge(moments[thread]);
    fit.norm.set(moments[0]);
}

// (map - mean) * scale, in place.
template <class Real>
void normalize(const Normalization<Real>& norm, Grid<Real> map, Size size, int channels) {
    everywhere<Real>(size.height, size.width, channels, [&](int y, int x, int c) {
        Real* at = map.at(y, x) + c;
        store(at, (load(at) - load(norm.mean.data() + c)) * load(norm.scale.data() + c));
    });
}

// Everything that needs no statistics: first stages of all branches, second ones that follow at once, pools.
template <class Real>
void Cell<Real>::run_first_stages(Source<Real>& source) {
    const size_t num_branches = source.branches.size();
    std::vector<std::vector<Moments>> moments(num_threads_);
    for (auto& of_thread : moments) of_thread.assign(num_branches + NUM_POOLS, Moments(channels_));
    for (Branch<Real>& branch : source.branches) {
        if (branch.second) branch.middle = Buffer<Real>(size_t(batch_) * branch.middle_size.pixels() * channels_);
        branch.out = Buffer<Real>(size_t(batch_) * branch.out_size.pixels() * channels_);
    }
    for (int which = 0; which < NUM_POOLS; ++which)
        if (source.pools[which]) source.pooled[which] = Buffer<Real>(size_t(batch_) * out_.pixels() * channels_);
    for (Scratch<Real>& scratch : scratch_) scratch.input.zero();
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = scratch_[thread];
        if (source.fit) normalize(source.fit->norm, image_of(source.fit->out, n, source.size, channels_), source.size, channels_);
        const Grid<const Real> in = source.image(n);
        const Grid<Real> rectified = bordered(scratch.input.data(), source.size, channels_);
        if (num_branches > 0) rectify_into(in, rectified, source.size, channels_);
        for (size_t b = 0; b < num_branches; ++b) {
            Branch<Real>& branch = source.branches[b];
            const Stage<Real>* stage = &branch.first;
            Grid<const Real> from = rectified;
            Size size = source.size;
            if (branch.second && !branch.normalized_between) {
                const Grid<Real> kept = image_of(branch.middle, n, branch.middle_size, channels_);
                branch.first.forward(rectified, size, kept, scratch.between.data(), Unwatched{});
                size = branch.middle_size;
                scratch.middle.zero();
                const Grid<Real> middle = bordered(scratch.middle.data(), size, channels_);
                everywhere<Real>(size.height, size.width, channels_, [&](int y, int x, int c) {
                    store(middle.at(y, x) + c, load(kept.at(y, x) + c));
                });
                stage = &*branch.second;
                from = middle;
            }
            const Size out_size = stage->out_size(size);
            const Grid<Real> out = image_of(branch.normalized_between ? branch.middle : branch.out, n, out_size, channels_);
            moments[thread][b].template add_written_by<Real>(
                [&](auto watch) { stage->forward(from, size, out, scratch.between.data(), watch); }, out,
                out_size.height, out_size.width, channels_);
        }
        for (int which = 0; which < NUM_POOLS; ++which)
            if (source.pools[which]) {
                const Grid<Real> out = image_of(source.pooled[which], n, out_, channels_);
                pool<Real>(which, in, source.size, source.stride, out, out_, channels_);
                moments[thread][num_branches + which].template add<Real>(out, out_.height, out_.width, channels_);
            }
    });
    for (int thread = 1; thread < num_threads_; ++thread)
        for (size_t i = 0; i < moments[0].size(); ++i) moments[0][i].merge(moments[thread][i]);
    for (size_t b = 0; b < num_branches; ++b) {
        Branch<Real>& branch = source.branches[b];
        (branch.normalized_between ? branch.middle_norm : branch.norm).set(moments[0][b]);
    }
    for (int which = 0; which < NUM_POOLS; ++which)
        if (source.pools[which]) source.pool_norm[which].set(moments[0][num_branches + which]);
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
    const bool any = std::any_of(source.branches.begin(), source.branches.end(),
                                 [](const Branch<Real>& branch) { return branch.normalized_between; });
    if (!any) return;
    for (Scratch<Real>& scratch : scratch_) scratch.middle.zero();
    for_images([&](int n, int thread) {
        Scratch<Real>& scratch = scratch_[thread];
        for (size_t b = 0; b < source.branches.size(); ++b) {
            Branch<Real>& branch = source.branches[b];
            if (!branch.normalized_between) continue;
            const Grid<Real> active = bordered(scratch.middle.data(), branch.middle_size, channels_);
            activate(branch, n, active, channels_);
            const Grid<Real> out = image_of(branch.out, n, out_, channels_);
            moments[thread][b].template add_written_by<Real>(
                [&](auto watch) {
                    branch.second->forward(active, branch.middle_size, out, scratch.between.data(), watch);
                },
                out, out_.height, out_.width, channels_);
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
            for (int which = 0; which < NUM_POOLS; ++which)
                if (kinds_[column] == POOL_KINDS[which])
                    add(source.pooled[which], source.pool_norm[which], weight_of(edge, column));
            if (kinds_[column] == SKIP && source.stride == 1)
                terms.push_back({nullptr, std::vector<Real>(channels_, Real(weight_of(edge, column)))});
        }
        if (terms.empty()) continue;
        const int node = target_[edge];
        const bool accumulate = begun[node];
        begun[node] = true;
        for_images([&](int n, int) {
            const Grid<Real> to = node_image(nodes_, node, n);
            const Grid<const Real> self = source.image(n);
            everywhere<Real>(out_.height, out_.width, channels_, [&](int y, int x, int c) {
                Vector<Real> sum = load(offset.data() + c);
                if (accumulate) sum += load(to.at(y, x) + c);
                const size_t pixel = (size_t(n) * out_.height + y) * out_.width + x;
                for (const Term& term : terms) {
                    const Real* from = term.maps ? term.maps->data() + pixel * channels_ : self.at(y, x);
                    sum += load(term.factor.data() + c) * load(from + c);
                }
                store(to.at(y, x) + c, sum);
            });
        });
    }
}

}  // namespace metasearch
