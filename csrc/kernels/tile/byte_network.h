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
  const uint8_t* x;      // [channels][h][w]
  const uint8_t* x_end;  // of all that may be read
  uint8_t* y;            // [channels][oh][ow]
  int64_t spill;         // bytes after y that may be overwritten
  int64_t channels, h, w, oh, ow;
  int64_t top, left;      // padding
  int kernel, stride;     // 3, 5 or 7; 1 or 2
  const int8_t* weights;  // [channels][kernel][kernel]
  const float* scales;    // of the weights, by channel
  const float* bias;      // likewise, or null
  float x_scale;
  int32_t x_zero_point;
  ToByte to;            // holds the activation's clamp
  int64_t pitch;        // of a line of quads
  int64_t strip_steps;  // of which a strip has so many
  int64_t group;        // channels that are computed together, of one strip
  uint8_t* scratch;     // of byte_depthwise_scratch bytes
};

// What a row of x takes with what is read past it, and all scratch of a job.
constexpr int64_t kDepthwiseSlack = 160;
SI_INLINE int64_t byte_depthwise_row(const ByteDepthwiseJob& job) { return (job.w + 127) / 64 * 64; }
SI_INLINE int64_t byte_depthwise_scratch(const ByteDepthwiseJob& job) {
  const int64_t plane = job.group * (job.strip_steps + 2) * job.pitch + kDepthwiseSlack;
  return (4 * job.stride + 2) * plane + 5 * byte_depthwise_row(job);
}

// Rows of a pooling that are computed together.
constexpr int64_t kPoolLines = 8;

struct ByteNetworkKernels {
  void (*dequantize)(const uint8_t* x, int64_t count, float scale, int32_t zero_point, float* y);
  void (*add)(const uint8_t* a, const uint8_t* b, int64_t count, const ByteSum& sum, uint8_t* y);
  // Of one channel; `lines` is scratch of 3 kPoolLines pool_line_floats(job) bytes.
  void (*max_pool)(const PoolJob& job, const uint8_t* x, uint8_t* lines, uint8_t* y);
  int32_t (*sum)(const uint8_t* x, int64_t count);
  void (*depthwise)(const ByteDepthwiseJob& job);
};

}  // namespace si
