// Depthwise convolution: each channel by a kernel of its own, over channel-major images.
//
//   y[b][c][r][q] = act(bias[c] + sum_{i,j} w[c][i][j] x[b][c][r s - t + i][q s - l + j]), zero outside of x
//
// Rows of x are read where they lie, and masked at their edges (tile/depthwise_tile.h).
// x and y are contiguous and do not overlap.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

struct DepthwiseArgs {
  const float* x;        // [batch][channels][h][w]
  const float* weights;  // [channels][kernel[0]][kernel[1]]
  const float* bias;     // of channels, or null
  float* y;              // [batch][channels][oh][ow]
  int64_t batch, channels, h, w, oh, ow;
  int64_t kernel[2], stride[2];  // vertical, horizontal
  int64_t padding[2];            // top and left; what lies below and to the right follows from oh and ow
  si_activation activation;
  int threads;
};

// Null: the scalar loops, which are also what runs other kernels than 3x3, 5x5 and 7x7 of strides 1 and 2.
[[nodiscard]] si_status depthwise(const TileKernels* isa, const DepthwiseArgs& args);

}  // namespace si
