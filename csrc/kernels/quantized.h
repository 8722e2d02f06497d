// What the bytes of a call of int8 weights stand for (si_quantization), as the kernels compute with it: the same
// numbers in the scalar specification and in every other kernel.
//
// The functions are static or SI_INLINE so that a copy compiled for one instruction set never serves another.
#pragma once

#include <sparseinfer.h>

#include <cmath>

#include "core/inline.h"
#include "kernels/source.h"

namespace si {

// byte = rint(clamp(v * inverse, low, high)) + zero_point, where low and high are whole numbers, or the ends of an
// activation's clamp, which a product with a positive number keeps in order. NaN becomes low.
struct ToByte {
  float inverse, low, high;
  int32_t zero_point;
};

static inline ToByte to_byte(float scale, int32_t zero_point, Clamp clamp) {
  const float inverse = 1.0f / scale;
  const float low = clamp.low * inverse, high = clamp.high * inverse;
  const auto least = static_cast<float>(-zero_point), most = static_cast<float>(255 - zero_point);
  return {inverse, low > least ? low : least, high < most ? high : most, zero_point};
}

SI_INLINE uint8_t quantize(float v, const ToByte& to) {
  float t = v * to.inverse;
  t = t > to.low ? t : to.low;
  t = t < to.high ? t : to.high;
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(t)) + to.zero_point);
}

// The scale and zero point of token n.
static inline float x_scale(const si_quantization& q, int64_t n) {
  return q.x_scales != nullptr ? q.x_scales[n] : q.x_scale;
}
static inline int32_t x_zero_point(const si_quantization& q, int64_t n) {
  return q.x_scales != nullptr && q.x_zero_points != nullptr ? q.x_zero_points[n] : q.x_zero_point;
}

static inline ToByte x_to_byte(const si_quantization& q, int64_t n) {
  return to_byte(x_scale(q, n), x_zero_point(q, n), clamp_of(SI_ACT_NONE));
}

static inline ToByte y_to_byte(const si_quantization& q, si_activation activation) {
  return to_byte(q.y_scale, q.y_zero_point, clamp_of(activation));
}

}  // namespace si
