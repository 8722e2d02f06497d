// Layer norm and RMS norm of rows, each of which stays in the nearest cache from pass to pass.
//
//   y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, or without the mean; x + residual for x
//
// The variance is of differences from the mean and not of squares, so that a row far from zero loses nothing.
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/elementwise.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

template <class V>
SI_INLINE float sum_of_squares(const float* x, int64_t n, float mean) {
  using Reg = typename V::Reg;
  const Reg shift = V::broadcast(mean);
  Reg sums[2] = {V::broadcast(0.0f), V::broadcast(0.0f)};
  int64_t i = 0;
  for (; i + 2 * V::kWidth <= n; i += 2 * V::kWidth) {
    const Reg a = V::sub(V::load(x + i), shift), b = V::sub(V::load(x + i + V::kWidth), shift);
    sums[0] = V::fma(a, a, sums[0]);
    sums[1] = V::fma(b, b, sums[1]);
  }
  for (; i + V::kWidth <= n; i += V::kWidth) {
    const Reg a = V::sub(V::load(x + i), shift);
    sums[0] = V::fma(a, a, sums[0]);
  }
  float total = V::sum(V::add(sums[0], sums[1]));
  for (; i < n; ++i) total += (x[i] - mean) * (x[i] - mean);
  return total;
}

template <class V>
void norm(const NormJob& job) {
  using Reg = typename V::Reg;
  const float share = 1.0f / static_cast<float>(job.n);
  for (int64_t row = 0; row < job.rows; ++row) {
    const float* x = job.x + row * job.n;
    float* const y = job.y + row * job.n;
    if (job.residual != nullptr) {
      const float* const more = job.residual + row * job.n;
      for (int64_t i = 0; i < job.n; i += V::kWidth)
        store_part<V>(y + i, V::add(load_part<V>(x + i, job.n - i), load_part<V>(more + i, job.n - i)), job.n - i);
      x = y;
    }
    const float mean = job.centred ? sum<V>(x, job.n) * share : 0.0f;
    const float variance = sum_of_squares<V>(x, job.n, mean) * share;
    const Reg factor = V::broadcast(1.0f / __builtin_sqrtf(variance + job.eps)), shift = V::broadcast(mean);
    for (int64_t i = 0; i < job.n; i += V::kWidth) {
      const int64_t left = job.n - i;
      Reg v = V::mul(V::sub(load_part<V>(x + i, left), shift), factor);
      if (job.weight != nullptr) v = V::mul(v, load_part<V>(job.weight + i, left));
      if (job.bias != nullptr) v = V::add(v, load_part<V>(job.bias + i, left));
      store_part<V>(y + i, v, left);
    }
  }
}

}  // namespace
}  // namespace si
