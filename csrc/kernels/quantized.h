// What the bytes of a call of int8 weights stand for (si_quantization), as the kernels compute with it: the same
// numbers in the scalar specification and in every other kernel.
#pragma once

#include <sparseinfer.h>

#include "kernels/source.h"
#include "kernels/tile/bytes.h"

namespace si {

inline ToByte to_byte(float scale, int32_t zero_point, Clamp clamp) {
  const float inverse = 1.0f / scale;
  const float low = clamp.low * inverse, high = clamp.high * inverse;
  const auto least = static_cast<float>(-zero_point), most = static_cast<float>(255 - zero_point);
  return {inverse, low > least ? low : least, high < most ? high : most, zero_point};
}

// The scale and zero point of token n.
inline float x_scale(const si_quantization& q, int64_t n) { return q.x_scales != nullptr ? q.x_scales[n] : q.x_scale; }
inline int32_t x_zero_point(const si_quantization& q, int64_t n) {
  return q.x_scales != nullptr && q.x_zero_points != nullptr ? q.x_zero_points[n] : q.x_zero_point;
}

inline ToByte x_to_byte(const si_quantization& q, int64_t n) {
  return to_byte(x_scale(q, n), x_zero_point(q, n), clamp_of(SI_ACT_NONE));
}

inline ToByte y_to_byte(const si_quantization& q, si_activation activation) {
  return to_byte(q.y_scale, q.y_zero_point, clamp_of(activation));
}

// What is added to results before the activation: elements laid out as those of y, or none.
struct Residual {
  const void* data;
  bool bytes;
  float scale;  // of bytes
  int32_t zero_point;

  bool any() const { return data != nullptr; }
  int64_t element_bytes() const { return bytes ? 1 : 4; }
  const uint8_t* at(int64_t i) const { return static_cast<const uint8_t*>(data) + i * element_bytes(); }
  float add(float v, int64_t i) const {
    if (!any()) return v;
    if (!bytes) return v + static_cast<const float*>(data)[i];
    return __builtin_fmaf(static_cast<float>(static_cast<const uint8_t*>(data)[i] - zero_point), scale, v);
  }
  // Has a kernel add the rows of these elements, `ld` apart.
  void give(ByteOutput* out, const void* rows, int64_t ld) const {
    out->residual_floats = bytes ? nullptr : static_cast<const float*>(rows);
    out->residual_bytes = bytes ? static_cast<const uint8_t*>(rows) : nullptr;
    out->residual_ld = ld;
    out->residual_scale = scale;
    out->residual_zero_point = zero_point;
  }
};

// Of a linear layer or a convolution.
template <class Args>
Residual residual_of(const Args& args) {
  return {args.residual, args.residual_type == SI_U8, args.quantization->residual_scale,
          args.quantization->residual_zero_point};
}

// What a tile's results become; where they stand is the driver's. `bias` is by position.
inline ByteOutput byte_output(const si_quantization& q, si_activation activation, si_value_type y_type,
                              const float* bias) {
  const Clamp clamp = clamp_of(activation);
  ByteOutput out{};
  out.bias = bias;
  out.low = clamp.low;
  out.high = clamp.high;
  if (y_type == SI_U8) out.to = y_to_byte(q, activation);
  out.x_scale = q.x_scale;
  out.x_zero_point = q.x_zero_point;
  return out;
}

}  // namespace si
