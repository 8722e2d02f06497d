// Pooling over channel-major images, and the element-wise operations of networks, over threads. isa null: the scalar
// loops. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

// `planes` channels of x and y, one after another; `job` describes one of them, but for its pointers.
[[nodiscard]] si_status pool(const TileKernels* isa, const PoolJob& job, const float* x, float* y, int64_t planes,
                             int threads);
// The mean of each of `planes` channels of `pixels` elements.
[[nodiscard]] si_status global_average_pool(const TileKernels* isa, const float* x, float* y, int64_t planes,
                                            int64_t pixels, int threads);
// y = act(a + b), of `count` elements; y may be a or b.
[[nodiscard]] si_status add(const TileKernels* isa, const float* a, const float* b, float* y, int64_t count,
                            si_activation activation, int threads);
// y = act(x); y may be x.
[[nodiscard]] si_status activation(const TileKernels* isa, const float* x, float* y, int64_t count, si_activation kind,
                                   int threads);
// Over the middle axis of [outer][n][inner].
[[nodiscard]] si_status softmax(const TileKernels* isa, const float* x, float* y, int64_t outer, int64_t n,
                                int64_t inner, int threads);

}  // namespace si
