// GELU of what becomes bytes: erf as an odd polynomial up to 4.4, fitted to the error of GELU, which is below
// kCoarseGelu, and below 2e-6 of results above 12. It takes no exponential and no division.
#pragma once

#include "core/inline.h"

namespace si {

constexpr float kCoarseGelu = 4.5e-5f;

// V::max(bound, x) and V::min(bound, x) return x when x is NaN.
template <class V, class Reg>
SI_INLINE Reg coarse_gelu(Reg x) {
  // Far below the polynomial's end what it is off would be multiplied by x.
  x = V::max(V::broadcast(-4.4f), x);
  const Reg t = V::min(V::broadcast(4.4f), x), square = V::mul(t, t);
  const Reg half = V::mul(V::broadcast(0.5f), x);
  Reg p = V::broadcast(7.1452619e-11f);
  p = V::fma(p, square, V::broadcast(-7.51326322e-9f));
  p = V::fma(p, square, V::broadcast(3.48341811e-7f));
  p = V::fma(p, square, V::broadcast(-9.45280968e-6f));
  p = V::fma(p, square, V::broadcast(1.68617598e-4f));
  p = V::fma(p, square, V::broadcast(-2.11017235e-3f));
  p = V::fma(p, square, V::broadcast(1.9286665e-2f));
  p = V::fma(p, square, V::broadcast(-0.132153806f));
  p = V::fma(p, square, V::broadcast(0.797523714f));
  return V::fma(V::mul(half, t), p, half);
}

// One number: the same operations, and so the same bits.
SI_INLINE float coarse_gelu(float x) {
  struct One {
    static SI_INLINE float broadcast(float a) { return a; }
    static SI_INLINE float mul(float a, float b) { return a * b; }
    static SI_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    static SI_INLINE float max(float bound, float x) { return x < bound ? bound : x; }
    static SI_INLINE float min(float bound, float x) { return x > bound ? bound : x; }
  };
  return coarse_gelu<One>(x);
}

}  // namespace si
