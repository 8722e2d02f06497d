// Pooling of one channel: y[r][c] = max, or mean, of x[r s - t + i][c s - l + j] over the kernel's i and j that lie in
// x.
//
// Separable: the rows of a window are reduced first, to one row as wide as x between paddings (`line`), which windows
// of columns are then reduced from. A NaN in a window is its maximum, unless the window holds an infinity before it.
//
// Included by the instruction-set translation units only.
#pragma once

#include <limits>

#include "kernels/tile/elementwise.h"

namespace si {
namespace {

template <class V, bool kAverage>
SI_INLINE typename V::Reg pool_both(typename V::Reg a, typename V::Reg b) {
  if constexpr (kAverage) return V::add(a, b);
  const typename V::Reg infinity = V::broadcast(std::numeric_limits<float>::infinity());
  return V::where_less(a, infinity, V::max(a, b), a);
}

template <class V, bool kAverage>
void pool_kind(const PoolJob& job) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const float nothing = kAverage ? 0.0f : -std::numeric_limits<float>::infinity();
  const int64_t left = job.padding[1], stride = job.stride[1];
  // The window of the last column, and what a vector reads past it.
  const int64_t line_floats = pool_line_floats(job);
  for (int64_t i = 0; i < line_floats; ++i) job.line[i] = nothing;
  for (int64_t r = 0; r < job.oh; ++r) {
    const int64_t top = r * job.stride[0] - job.padding[0];
    const int64_t first = top > 0 ? top : 0, last = top + job.kernel[0] < job.h ? top + job.kernel[0] : job.h;
    for (int64_t c = 0; c < job.w; c += W) {
      Reg all = V::broadcast(nothing);
      for (int64_t i = first; i < last; ++i)
        all = pool_both<V, kAverage>(all, load_part<V>(job.x + i * job.w + c, job.w - c));
      store_part<V>(job.line + left + c, all, job.w - c);
    }
    float* y = job.y + r * job.ow;
    for (int64_t c = 0; c < job.ow; c += W) {
      Reg all = V::broadcast(nothing);
      for (int64_t j = 0; j < job.kernel[1]; ++j) {
        const float* p = job.line + c * stride + j;
        Reg taps;
        if (stride == 1) {
          taps = V::load(p);
        } else if (stride == 2) {
          taps = V::even(V::load(p), V::load(p + W));
        } else {
          float apart[W];
          for (int i = 0; i < W; ++i) apart[i] = c + i < job.ow ? p[i * stride] : nothing;
          taps = V::load(apart);
        }
        all = pool_both<V, kAverage>(all, taps);
      }
      store_part<V>(y + c, all, job.ow - c);
    }
    if (!kAverage) continue;
    for (int64_t c = 0; c < job.ow; ++c) y[c] /= static_cast<float>(pool_divisor(job, r, c));
  }
}

template <class V>
void pool(const PoolJob& job) {
  job.average ? pool_kind<V, true>(job) : pool_kind<V, false>(job);
}

}  // namespace
}  // namespace si
