// What networks compute element by element, and along one axis.
//
//   add      dst = clamp(a + b); dst may be a or b
//   clamp    dst = x, not below low, not above high; dst may be x
//   sum      of all elements
//   softmax  y[i][c] = exp(x[i][c] - max_i x[i][c]) / sum_i of that, over i < n for each of `inner` columns c, x
//   [n][inner]
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "core/inline.h"
#include "kernels/tile/activation.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

// Of a vector the first `count` elements; the others are zero, and are not read.
template <class V>
SI_INLINE_UNLESS_SMALL typename V::Reg load_part(const float* p, int64_t count) {
  if (count >= V::kWidth) return V::load(p);
  float all[V::kWidth] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = p[i];
  return V::load(all);
}

template <class V>
SI_INLINE_UNLESS_SMALL void store_part(float* p, typename V::Reg a, int64_t count) {
  if (count >= V::kWidth) return V::store(p, a);
  float all[V::kWidth];
  V::store(all, a);
  for (int64_t i = 0; i < count; ++i) p[i] = all[i];
}

template <class V>
void add(float* dst, const float* a, const float* b, int64_t count, float low, float high) {
  const typename V::Reg least = V::broadcast(low), most = V::broadcast(high);
  for (int64_t i = 0; i < count; i += V::kWidth) {
    const typename V::Reg both = V::add(load_part<V>(a + i, count - i), load_part<V>(b + i, count - i));
    store_part<V>(dst + i, V::min(most, V::max(least, both)), count - i);
  }
}

template <class V>
void clamp_all(float* dst, const float* x, int64_t count, float low, float high) {
  const typename V::Reg least = V::broadcast(low), most = V::broadcast(high);
  for (int64_t i = 0; i < count; i += V::kWidth)
    store_part<V>(dst + i, V::min(most, V::max(least, load_part<V>(x + i, count - i))), count - i);
}

template <class V>
float sum(const float* x, int64_t count) {
  typename V::Reg sums[2] = {V::broadcast(0.0f), V::broadcast(0.0f)};
  int64_t i = 0;
  for (; i + 2 * V::kWidth <= count; i += 2 * V::kWidth) {
    sums[0] = V::add(sums[0], V::load(x + i));
    sums[1] = V::add(sums[1], V::load(x + i + V::kWidth));
  }
  for (; i < count; i += V::kWidth) sums[0] = V::add(sums[0], load_part<V>(x + i, count - i));
  return V::sum(V::add(sums[0], sums[1]));
}

// Of `count` columns, at most a vector.
template <class V>
SI_INLINE void softmax_columns(const float* x, float* y, int64_t n, int64_t inner, int64_t count) {
  using Reg = typename V::Reg;
  Reg most = load_part<V>(x, count), total = V::broadcast(0.0f);
  for (int64_t i = 1; i < n; ++i) most = V::max(most, load_part<V>(x + i * inner, count));
  for (int64_t i = 0; i < n; ++i) {
    const Reg e = exp_of<V>(V::sub(load_part<V>(x + i * inner, count), most));
    total = V::add(total, e);
    store_part<V>(y + i * inner, e, count);
  }
  const Reg share = V::div(V::broadcast(1.0f), total);
  for (int64_t i = 0; i < n; ++i)
    store_part<V>(y + i * inner, V::mul(share, load_part<V>(y + i * inner, count)), count);
}

// One row of n elements: the lanes are the axis.
template <class V>
void softmax_row(const float* x, float* y, int64_t n) {
  using Reg = typename V::Reg;
  float most = x[0];
  for (int64_t i = 1; i < n; ++i) most = x[i] > most ? x[i] : most;
  const Reg shift = V::broadcast(most);
  for (int64_t i = 0; i < n; i += V::kWidth)
    store_part<V>(y + i, exp_of<V>(V::sub(load_part<V>(x + i, n - i), shift)), n - i);
  const Reg share = V::broadcast(1.0f / sum<V>(y, n));
  for (int64_t i = 0; i < n; i += V::kWidth) store_part<V>(y + i, V::mul(share, load_part<V>(y + i, n - i)), n - i);
}

template <class V>
void softmax(const float* x, float* y, int64_t n, int64_t inner) {
  if constexpr (!kSmall)
    if (inner == 1) return softmax_row<V>(x, y, n);
  for (int64_t c = 0; c < inner; c += V::kWidth) softmax_columns<V>(x + c, y + c, n, inner, inner - c);
}

}  // namespace
}  // namespace si
