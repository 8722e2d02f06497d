// Sums, means and maxima over some of the dimensions of a tensor, over threads. isa null: the scalar loops. Arguments
// have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

enum class ReduceKind : int32_t { kSum, kMean, kMaximum, kMinimum };

constexpr int kReduceDims = 8;

struct ReduceJob {
  ReduceKind kind;
  const float* x;
  float* y;  // of the dimensions that stay
  int ndim;
  int64_t dims[kReduceDims];
  bool reduced[kReduceDims];
};

[[nodiscard]] si_status reduce(const TileKernels* isa, const ReduceJob& job, int threads);

}  // namespace si
