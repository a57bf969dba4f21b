// Weights of torch's convolutions, to the layout of stages and back: channels padded, the innermost ones together.
#pragma once

#include <algorithm>

#include "stages.h"

namespace metasearch {

// Channels of both sides as torch has them, not padded.
struct TrueChannels {
    int in, out;
};

// Calls visit(tensor, index in it, index as packed) for every weight of a stage: depthwise ones, then matrices.
// torch: depthwise [channels, 1, K, K]; pointwise [out, in, 1, 1]; row [out, in, 1, K]; column [out, in, K, 1];
// reduction two pointwise ones, for the first and the second half of the outputs.
template <class Real, class Visit>
void for_weights(const Stage<Real>& stage, TrueChannels channels, Visit visit) {
    const int taps = stage.kernel * stage.kernel;
    const bool separable = stage.kind == StageKind::SEPARABLE;
    if (separable)
        for (int c = 0; c < channels.in; ++c)
            for (int tap = 0; tap < taps; ++tap) visit(0, c * taps + tap, size_t(tap) * stage.in_channels + c);
    const int even = channels.out / 2;
    for (int n = 0; n < stage.num_matrices(); ++n)
        for (int out = 0; out < channels.out; ++out) {
            const bool reduces = stage.kind == StageKind::REDUCE;
            if (reduces && (out < even) != (n == 0)) continue;
            for (int in = 0; in < channels.in; ++in) {
                const size_t packed = stage.num_depthwise() + n * stage.matrix_size() + size_t(in) * stage.out_channels + out;
                if (reduces)
                    visit(n, (out - n * even) * channels.in + in, packed);
                else
                    visit(int(separable), (out * channels.in + in) * stage.num_matrices() + n, packed);
            }
        }
}

template <class Real>
void pack(Stage<Real>& stage, TrueChannels channels, const Real* const* weights) {
    stage.depthwise_weights = Buffer<Real>(stage.num_depthwise());
    stage.flipped = Buffer<Real>(stage.num_depthwise());
    stage.matrices = Buffer<Real>(stage.num_matrices() * stage.matrix_size());
    stage.transposed = Buffer<Real>(stage.num_matrices() * stage.matrix_size());
    stage.depthwise_weights.zero();
    stage.matrices.zero();
    const size_t num_depthwise = stage.num_depthwise();
    for_weights(stage, channels, [&](int tensor, size_t index, size_t packed) {
        Real* to = packed < num_depthwise ? stage.depthwise_weights.data() : stage.matrices.data() - num_depthwise;
        to[packed] = weights[tensor][index];
    });
    const int taps = num_depthwise ? stage.kernel * stage.kernel : 0;
    for (int tap = 0; tap < taps; ++tap)
        std::copy_n(stage.depthwise_weights.data() + size_t(tap) * stage.in_channels, stage.in_channels,
                    stage.flipped.data() + size_t(taps - 1 - tap) * stage.in_channels);
    for (int n = 0; n < stage.num_matrices(); ++n)
        for (int in = 0; in < stage.in_channels; ++in)
            for (int out = 0; out < stage.out_channels; ++out)
                stage.transposed.data()[n * stage.matrix_size() + size_t(out) * stage.in_channels + in] =
                    stage.matrices.data()[n * stage.matrix_size() + size_t(in) * stage.out_channels + out];
}

template <class Real>
void unpack(const Stage<Real>& stage, TrueChannels channels, const Real* packed, Real* const* weights) {
    for_weights(stage, channels,
                [&](int tensor, size_t index, size_t place) { weights[tensor][index] = packed[place]; });
}

}  // namespace metasearch
