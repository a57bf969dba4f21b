// The types of the C interface, as `library.py` declares them.
#pragma once

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
    int batch, channels;           // of every node
    int input_channels[2], input_heights[2], input_widths[2];
    int input_strides[2];          // 2 for an input that is reduced to the size of the other
    int stride;                    // of the edges that start in the inputs
    int num_nodes, num_columns, num_threads;
    int keeps;                     // whether `backward` will follow
    const int* kinds;              // [columns]
    const unsigned char* active;   // [edges, columns]
};
}
