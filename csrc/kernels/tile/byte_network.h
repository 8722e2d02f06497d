// The inner kernels of what networks of bytes compute between their packed weights, as a table that the drivers call,
// and the arithmetic of one element.
#pragma once

#include "core/inline.h"
#include "kernels/tile/bytes.h"

namespace si {

struct PoolJob;

// y = quantize(fma(a - zero point of a, scale of a, (b - zero point of b) scale of b)).
struct ByteSum {
  float a_scale, b_scale;
  int32_t a_zero_point, b_zero_point;
  ToByte to;  // holds the activation's clamp
};

SI_INLINE float dequantize(uint8_t x, float scale, int32_t zero_point) {
  return static_cast<float>(int32_t{x} - zero_point) * scale;
}

SI_INLINE uint8_t add(uint8_t a, uint8_t b, const ByteSum& sum) {
  const auto whole = static_cast<float>(int32_t{a} - sum.a_zero_point);
  return quantize(__builtin_fmaf(whole, sum.a_scale, dequantize(b, sum.b_scale, sum.b_zero_point)), sum.to);
}

// Channels of a depthwise convolution that follow one another, see byte_depthwise.h.
struct ByteDepthwiseJob {
  const uint8_t* x;                // [channels][h][w]
  const uint8_t *x_begin, *x_end;  // of all that may be read
  uint8_t* y;                      // [channels][oh][ow]
  int64_t spill;                   // bytes after y that may be overwritten
  int64_t channels, h, w, oh, ow;
  int64_t top, left;      // padding
  int kernel, stride;     // 3, 5 or 7; 1 or 2
  const int8_t* weights;  // [channels][kernel][kernel]
  const float* scales;    // of the weights, by channel
  const float* bias;      // likewise, or null
  float x_scale;
  int32_t x_zero_point;
  ToByte to;  // holds the activation's clamp
};

// Rows of a pooling that are computed together.
constexpr int64_t kPoolLines = 8;

struct ByteNetworkKernels {
  void (*dequantize)(const uint8_t* x, int64_t count, float scale, int32_t zero_point, float* y);
  void (*add)(const uint8_t* a, const uint8_t* b, int64_t count, const ByteSum& sum, uint8_t* y);
  // Of one channel; `lines` is scratch of 3 kPoolLines pool_line_floats(job) bytes.
  void (*max_pool)(const PoolJob& job, const uint8_t* x, uint8_t* lines, uint8_t* y);
  int32_t (*sum)(const uint8_t* x, int64_t count);
  void (*depthwise)(const ByteDepthwiseJob& job);
  void (*lookup)(const uint8_t* table, const uint8_t* x, int64_t count, uint8_t* y);
};

}  // namespace si
