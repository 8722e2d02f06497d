// The ways of bfloat16 into a tile and out of it, over vectors of floats that have no masked loads: each operand is
// bfloat16_operand of a value of float32 or bfloat16. V is a vector type of pairs_tile.h and V::Floats that of floats.
// What is shorter than a vector goes through one on the stack. Nothing aliases.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "core/inline.h"
#include "kernels/tile/pairs.h"

namespace si {
namespace {

// `count` values from element `at` on, and zeros.
template <class F, class Element>
SI_INLINE const Element* whole_vector(const void* src, int64_t at, int64_t count, Element (&some)[F::kWidth]) {
  const Element* const from = static_cast<const Element*>(src) + at;
  if (count >= F::kWidth) return from;
  std::memset(some, 0, sizeof some);
  std::memcpy(some, from, static_cast<size_t>(count) * sizeof(Element));
  return some;
}
template <class F>
SI_INLINE_UNLESS_SMALL typename F::Reg some_floats(const void* src, si_value_type type, int64_t at, int64_t count) {
  float floats[F::kWidth];
  uint16_t halves[F::kWidth];
  if (type == SI_F32) return F::load(whole_vector<F>(src, at, count, floats));
  return F::load_bf16(whole_vector<F>(src, at, count, halves));
}

template <class V>
SI_INLINE_UNLESS_SMALL void store_some_halves(uint16_t* to, typename V::Sum a, int64_t count) {
  if (count >= V::kInts) return V::store_narrow(to, a);
  uint16_t some[V::kInts];
  V::store_narrow(some, a);
  std::memcpy(to, some, static_cast<size_t>(count) * sizeof(uint16_t));
}

template <class V>
void narrow_halves(const void* src, si_value_type type, int64_t count, uint16_t* dst) {
  using F = typename V::Floats;
  for (int64_t i = 0; i < count; i += F::kWidth)
    store_some_halves<V>(dst + i, some_floats<F>(src, type, i, count - i), count - i);
}

template <class V>
void transpose_halves(const void* src, si_value_type type, int64_t ld, int64_t rows, int64_t columns, uint16_t* dst,
                      int64_t pitch) {
  using F = typename V::Floats;
  constexpr int W = F::kWidth;
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t c = 0; c < columns; c += W) {
      typename F::Reg v[W];
      SI_UNROLL for (int i = 0; i < W; ++i) v[i] =
          r + i < rows ? some_floats<F>(src, type, (r + i) * ld + c, columns - c) : F::broadcast(0.0f);
      F::transpose(v);
      SI_UNROLL for (int i = 0; i < W; ++i) {
        if (c + i < columns) store_some_halves<V>(dst + (c + i) * pitch + r, v[i], rows - r);
      }
    }
}

}  // namespace
}  // namespace si
