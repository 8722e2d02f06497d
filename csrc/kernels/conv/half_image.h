// The padded image of bfloat16 that tiles of a convolution are copied from: what output rows first_row to first_row +
// rows - 1 of one image read, all channels.
//
// A horizontal stride s splits each row in s parts, columns 0, s, ... and 1, s + 1, ..., so that each step of the
// output is a step of one element, and a tap is an offset.
#pragma once

#include "core/scratch.h"
#include "kernels/conv/geometry.h"
#include "kernels/tile/tile.h"

namespace si {

class HalfImage {
 public:
  HalfImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows);

  // Above `kMost`, no more than that. What vectors read past the last channel is counted.
  static constexpr int64_t kMost = 2 * kScratchFloats;
  int64_t halves() const {
    return channel_ > kMost / geometry_.channels ? kMost + 1 : geometry_.channels * channel_ + 32;
  }
  // From output row to output row, and from group to group.
  int64_t row_step() const { return args_.stride[0] * pitch_; }
  int64_t group_stride() const { return geometry_.group_channels * channel_; }
  // Byte offsets of the taps of one group, K of them.
  void taps(int32_t* out) const;
  // Channels [first, last) of image x; `room` is for args.w halves.
  void fill(const PairKernels& kernels, const void* x, int64_t first, int64_t last, uint16_t* room,
            uint16_t* out) const;

 private:
  const ConvGeometry& geometry_;
  const si_conv_args& args_;
  const int64_t first_row_;
  int64_t rows_, columns_;  // of a channel
  int64_t part_, pitch_, channel_;
};

}  // namespace si
