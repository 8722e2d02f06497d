// Element-wise operations of two operands, each of which is a vector, or one number that stands for all of one.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/elementwise.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

// a where it is NaN, else 0.
template <class V>
SI_INLINE typename V::Reg nan_of(typename V::Reg a) {
  return V::where_less(V::broadcast(-1.0f), V::abs(a), V::broadcast(0.0f), a);
}

template <class V, class Fn>
SI_INLINE void binary_loop(const BinaryLine& line, Fn&& fn) {
  using Reg = typename V::Reg;
  const Reg least = V::broadcast(line.low), most = V::broadcast(line.high);
  const Reg a_all = V::broadcast(line.a[0]), b_all = V::broadcast(line.b[0]);
  for (int64_t i = 0; i < line.count; i += V::kWidth) {
    const Reg a = line.a_step == 0 ? a_all : load_part<V>(line.a + i, line.count - i);
    const Reg b = line.b_step == 0 ? b_all : load_part<V>(line.b + i, line.count - i);
    store_part<V>(line.y + i, V::min(most, V::max(least, fn(a, b))), line.count - i);
  }
}

template <class V>
void binary(BinaryKind kind, const BinaryLine& line) {
  using Reg = typename V::Reg;
  switch (kind) {
    case BinaryKind::kAdd:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::add(a, b); });
    case BinaryKind::kSubtract:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::sub(a, b); });
    case BinaryKind::kMultiply:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::mul(a, b); });
    case BinaryKind::kDivide:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::div(a, b); });
    case BinaryKind::kMinimum:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::add(V::min(a, b), nan_of<V>(a)); });
    case BinaryKind::kMaximum:
      return binary_loop<V>(line, [](Reg a, Reg b) { return V::add(V::max(a, b), nan_of<V>(a)); });
    case BinaryKind::kPower:  // of the scalar loops
      return;
  }
}

}  // namespace
}  // namespace si
