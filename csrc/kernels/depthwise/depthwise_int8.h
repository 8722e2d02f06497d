// Depthwise convolution of bytes by int8 weights, over channel-major images: what conv_int8 computes of a weight of as
// many groups as channels (si_quantization), bit for bit.
//
// x and y are contiguous and do not overlap. The activation is a clamp.
#pragma once

#include "kernels/quantized.h"
#include "kernels/tile/tile.h"

namespace si {

struct DepthwiseInt8Args {
  const uint8_t* x;       // [batch][channels][h][w]
  const int8_t* weights;  // [channels][kernel[0]][kernel[1]]
  const float* scales;    // of the weights, by channel
  const float* bias;      // of channels, or null
  uint8_t* y;             // [batch][channels][oh][ow]
  int64_t batch, channels, h, w, oh, ow;
  int64_t kernel[2], stride[2];  // vertical, horizontal
  int64_t padding[2];            // top and left; what lies below and to the right follows from oh and ow
  si_quantization quantization;
  si_activation activation;
  int threads;
};

// Null: the scalar loops, which are also what runs other kernels than 3x3, 5x5 and 7x7 of strides 1 and 2.
[[nodiscard]] si_status depthwise_int8(const TileKernels* isa, const DepthwiseInt8Args& args);

}  // namespace si
