// What the tiles of panels share with those of other formats: where x stands, and a stored value in a vector.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

// NaN passes.
SI_INLINE float clamp(float v, float low, float high) { return v < low ? low : (v > high ? high : v); }

struct PitchMap {
  const float* base;
  int64_t pitch;
  explicit PitchMap(const XView& x) : base(x.as<float>()), pitch(x.pitch) {}
  SI_INLINE const float* operator()(int64_t k) const { return base + k * pitch; }
};

struct TapMap {
  const float* base;
  const int32_t* taps;
  explicit TapMap(const XView& x) : base(x.as<float>()), taps(x.taps) {}
  SI_INLINE const float* operator()(int64_t k) const { return base + taps[k]; }
};

// One token: a vector of one float, so that x needs no packing and a value is the multiply-add's operand in memory.
struct Single {
  using Reg = float;
  static constexpr int kWidth = 1;
  static SI_INLINE Reg load(const float* p) { return *p; }
  static SI_INLINE void store(float* p, Reg a) { *p = a; }
  static SI_INLINE Reg broadcast(float a) { return a; }
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) { return bfloat16_to_float(*p); }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return __builtin_fmaf(a, b, c); }
  static SI_INLINE Reg add(Reg a, Reg b) { return a + b; }
  static SI_INLINE Reg max(Reg bound, Reg x) { return x < bound ? bound : x; }
  static SI_INLINE Reg min(Reg bound, Reg x) { return x > bound ? bound : x; }
};

// One stored value in every lane, and a vector of them.
template <class V>
SI_INLINE typename V::Reg spread(const float* value) {
  return V::broadcast(*value);
}
template <class V>
SI_INLINE typename V::Reg spread(const BFloat16* value) {
  return V::broadcast_bf16(&value->bits);
}
template <class V>
SI_INLINE typename V::Reg values(const float* value) {
  return V::load(value);
}
template <class V>
SI_INLINE typename V::Reg values(const BFloat16* value) {
  return V::load_bf16(&value->bits);
}

}  // namespace
}  // namespace si
