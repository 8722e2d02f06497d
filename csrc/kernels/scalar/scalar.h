// The executable specification: what every other kernel must compute. Plain loops over the packed weight, float64
// accumulation left to the tests' oracle; here float32, in storage order. Arguments have been checked.
#pragma once

#include "formats/weights.h"
#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status scalar_linear(const si_weights& weights, const si_linear_args& args);
[[nodiscard]] si_status scalar_conv(const si_weights& weights, const si_conv_args& args);

// Of int8 weights; float32 between the sums and the results.
[[nodiscard]] si_status scalar_linear_int8(const si_weights& weights, const si_linear_args& args);
[[nodiscard]] si_status scalar_conv_int8(const si_weights& weights, const si_conv_args& args);

// Of pairs of bfloat16 weights; x and y are float32 or bfloat16.
[[nodiscard]] si_status scalar_linear_bf16(const si_weights& weights, const si_linear_args& args);
[[nodiscard]] si_status scalar_conv_bf16(const si_weights& weights, const si_conv_args& args);

// What networks need between those, see network.cc.
float scalar_hardsigmoid(float v);
float scalar_activation(float v, si_activation activation);
void scalar_activate(float* data, int64_t count, si_activation activation);
void scalar_pool(const PoolJob& job);  // `line` is not used
void scalar_max_pool_bytes(const PoolJob& job, const uint8_t* x, uint8_t* y);
void scalar_softmax(const float* x, float* y, int64_t n, int64_t inner);
void scalar_norm(const NormJob& job);
void scalar_attend(const AttentionJob& job);  // scratch holds the scores of a query: a float a key

}  // namespace si
