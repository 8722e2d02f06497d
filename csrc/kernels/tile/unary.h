// Functions of one number that no activation of the layers is. NaN passes through each.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/activation.h"
#include "kernels/tile/elementwise.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

template <class V, class Fn>
SI_INLINE void unary_loop(float* y, const float* x, int64_t count, Fn&& fn) {
  for (int64_t i = 0; i < count; i += V::kWidth) store_part<V>(y + i, fn(load_part<V>(x + i, count - i)), count - i);
}

template <class V>
bool unary(const UnaryFunction& function, float* y, const float* x, int64_t count) {
  using Reg = typename V::Reg;
  const Reg zero = V::broadcast(0.0f), p = V::broadcast(function.p[0]), q = V::broadcast(function.p[1]);
  switch (function.kind) {
    case UnaryKind::kHardswish:
      unary_loop<V>(y, x, count, [](Reg a) { return V::mul(a, hardsigmoid_of<V>(a)); });
      return true;
    case UnaryKind::kHardsigmoid:
      unary_loop<V>(y, x, count, [](Reg a) { return hardsigmoid_of<V>(a); });
      return true;
    case UnaryKind::kLeakyRelu:
      unary_loop<V>(y, x, count, [=](Reg a) { return V::where_less(zero, a, a, V::mul(p, a)); });
      return true;
    case UnaryKind::kElu:
      unary_loop<V>(y, x, count, [=](Reg a) {
        return V::where_less(zero, a, a, V::mul(p, V::sub(exp_of<V>(a), V::broadcast(1.0f))));
      });
      return true;
    case UnaryKind::kClamp:
      unary_loop<V>(y, x, count, [=](Reg a) { return V::min(q, V::max(p, a)); });
      return true;
    case UnaryKind::kAbs:
      unary_loop<V>(y, x, count, [](Reg a) { return V::abs(a); });
      return true;
    case UnaryKind::kExp:
      unary_loop<V>(y, x, count, [](Reg a) { return exp_of<V>(a); });
      return true;
    default:
      return false;
  }
}

}  // namespace
}  // namespace si
