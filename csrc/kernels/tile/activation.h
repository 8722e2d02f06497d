// Activations that are not a clamp, over a vector type. NaN passes through each.
//
//   exp      Cephes' scheme: x = n ln 2 + r, polynomial in r; relative error below 2e-7; Inf above 127.5 ln 2
//   tanh     odd polynomial below 0.625 (Cephes), else 1 - 2 / (exp(2|x|) + 1)
//   erf      Abramowitz and Stegun 7.1.26; absolute error below 2e-7
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

// V::max(bound, x) and V::min(bound, x) return x when x is NaN.
template <class V>
SI_INLINE_UNLESS_SMALL typename V::Reg exp_of(typename V::Reg x) {
  using Reg = typename V::Reg;
  // The upper bound must reach Inf: a large finite value instead makes SiLU of a very negative x not 0 but x / 2^127.5.
  x = V::min(V::broadcast(89.0f), V::max(V::broadcast(-87.3365447504019f), x));
  const Reg n = V::round(V::mul(x, V::broadcast(1.44269504088896341f)));
  Reg r = V::fma(n, V::broadcast(-0.693359375f), x);
  r = V::fma(n, V::broadcast(2.12194440e-4f), r);
  Reg p = V::broadcast(1.9875691500e-4f);
  p = V::fma(p, r, V::broadcast(1.3981999507e-3f));
  p = V::fma(p, r, V::broadcast(8.3334519073e-3f));
  p = V::fma(p, r, V::broadcast(4.1665795894e-2f));
  p = V::fma(p, r, V::broadcast(1.6666665459e-1f));
  p = V::fma(p, r, V::broadcast(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::broadcast(1.0f)));
  return V::mul(p, V::pow2(n));
}

template <class V>
SI_INLINE typename V::Reg sigmoid_of(typename V::Reg x) {
  const typename V::Reg one = V::broadcast(1.0f);
  return V::div(one, V::add(one, exp_of<V>(V::sub(V::broadcast(0.0f), x))));
}

template <class V>
SI_INLINE_UNLESS_SMALL typename V::Reg tanh_of(typename V::Reg x) {
  using Reg = typename V::Reg;
  const Reg one = V::broadcast(1.0f), size = V::abs(x);
  const Reg far = V::sub(one, V::div(V::broadcast(2.0f), V::add(exp_of<V>(V::add(size, size)), one)));
  const Reg square = V::mul(x, x);
  Reg p = V::broadcast(-5.70498872745e-3f);
  p = V::fma(p, square, V::broadcast(2.06390887954e-2f));
  p = V::fma(p, square, V::broadcast(-5.37397155531e-2f));
  p = V::fma(p, square, V::broadcast(1.33314422036e-1f));
  p = V::fma(p, square, V::broadcast(-3.33332819422e-1f));
  const Reg near = V::fma(V::mul(p, square), x, x);
  return V::where_less(size, V::broadcast(0.625f), near, V::copy_sign(far, x));
}

template <class V>
SI_INLINE typename V::Reg gelu_tanh_of(typename V::Reg x) {
  using Reg = typename V::Reg;
  const Reg cube = V::mul(V::mul(x, x), x);
  const Reg u = V::mul(V::broadcast(0.7978845608028654f), V::fma(V::broadcast(0.044715f), cube, x));
  const Reg half = V::mul(V::broadcast(0.5f), x);
  return V::fma(half, tanh_of<V>(u), half);
}

template <class V>
SI_INLINE typename V::Reg gelu_of(typename V::Reg x) {
  using Reg = typename V::Reg;
  const Reg one = V::broadcast(1.0f);
  const Reg u = V::mul(x, V::broadcast(0.7071067811865476f)), size = V::abs(u);
  const Reg t = V::div(one, V::fma(V::broadcast(0.3275911f), size, one));
  Reg p = V::broadcast(1.061405429f);
  p = V::fma(p, t, V::broadcast(-1.453152027f));
  p = V::fma(p, t, V::broadcast(1.421413741f));
  p = V::fma(p, t, V::broadcast(-0.284496736f));
  p = V::fma(p, t, V::broadcast(0.254829592f));
  const Reg tail = V::mul(V::mul(p, t), exp_of<V>(V::sub(V::broadcast(0.0f), V::mul(u, u))));
  const Reg erf = V::copy_sign(V::sub(one, tail), u);
  const Reg half = V::mul(V::broadcast(0.5f), x);
  return V::fma(half, erf, half);
}

// clamp(x + 3, 0, 6) / 6.
template <class V>
SI_INLINE typename V::Reg hardsigmoid_of(typename V::Reg x) {
  const typename V::Reg sum = V::add(x, V::broadcast(3.0f));
  return V::div(V::min(V::broadcast(6.0f), V::max(V::broadcast(0.0f), sum)), V::broadcast(6.0f));
}

template <class V, class Fn>
SI_INLINE void map_in_place(float* data, int64_t count, Fn&& fn) {
  int64_t i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) V::store(data + i, fn(V::load(data + i)));
  if (i == count) return;
  float rest[V::kWidth] = {};
  for (int64_t j = i; j < count; ++j) rest[j - i] = data[j];
  V::store(rest, fn(V::load(rest)));
  for (int64_t j = i; j < count; ++j) data[j] = rest[j - i];
}

// Of those that are no clamp.
template <class V>
SI_INLINE typename V::Reg activated(typename V::Reg x, si_activation activation) {
  switch (activation) {
    case SI_ACT_GELU:
      return gelu_of<V>(x);
    case SI_ACT_GELU_TANH:
      return gelu_tanh_of<V>(x);
    case SI_ACT_SILU:
      return V::mul(x, sigmoid_of<V>(x));
    case SI_ACT_SIGMOID:
      return sigmoid_of<V>(x);
    case SI_ACT_TANH:
      return tanh_of<V>(x);
    case SI_ACT_HARDSWISH:
      return V::mul(x, hardsigmoid_of<V>(x));
    case SI_ACT_HARDSIGMOID:
      return hardsigmoid_of<V>(x);
    case SI_ACT_NONE:
    case SI_ACT_RELU:
    case SI_ACT_RELU6:
      break;
  }
  return x;
}

template <class V>
void activate(float* data, int64_t count, si_activation activation) {
  using Reg = typename V::Reg;
  if constexpr (kSmall) return map_in_place<V>(data, count, [=](Reg x) { return activated<V>(x, activation); });
  // A loop for each.
  switch (activation) {
    case SI_ACT_GELU:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_GELU); });
    case SI_ACT_GELU_TANH:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_GELU_TANH); });
    case SI_ACT_SILU:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_SILU); });
    case SI_ACT_SIGMOID:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_SIGMOID); });
    case SI_ACT_TANH:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_TANH); });
    case SI_ACT_HARDSWISH:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_HARDSWISH); });
    case SI_ACT_HARDSIGMOID:
      return map_in_place<V>(data, count, [](Reg x) { return activated<V>(x, SI_ACT_HARDSIGMOID); });
    case SI_ACT_NONE:
    case SI_ACT_RELU:
    case SI_ACT_RELU6:
      return;
  }
}

}  // namespace
}  // namespace si
