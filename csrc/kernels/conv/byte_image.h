// The padded image of bytes that tiles of a convolution are copied from: rows of output first_row to first_row + rows -
// 1 of one image, all channels.
//
// A stride s splits each channel in planes: plane (a, b) holds rows a, a + s, ... and columns b, b + s, ... of the
// padded image, so that each step of the output is a step of one byte, and a tap is an offset. What lies outside the
// image is the zero point.
#pragma once

#include "core/scratch.h"
#include "kernels/conv/geometry.h"
#include "kernels/quantized.h"

namespace si {

class ByteImage {
 public:
  ByteImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows);

  // Above `kMost`, no more than that. What vectors read past the last channel is counted.
  static constexpr int64_t kMost = kScratchFloats * static_cast<int64_t>(sizeof(float));
  int64_t bytes() const { return saturated(geometry_.channels, channel_) + kMostDwordWidth; }
  int64_t pitch() const { return pitch_; }
  // From group to group.
  int64_t group_stride() const { return geometry_.group_channels * channel_; }
  // Offsets of the taps of one group, K of them.
  void taps(int32_t* out) const;
  // Channels [first, last) of image x, whose bytes are quantised by `to` where it is of floats, in `room` for room()
  // bytes.
  void fill(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t first, int64_t last, uint8_t* room,
            uint8_t* out) const;
  int64_t room() const;

 private:
  // Taps along one axis: planes are the residues of their positions by the stride, which repeat.
  struct Axis {
    int64_t stride, dilation, planes, reach;
    int64_t phase(int64_t plane) const { return plane * dilation % stride; }
    int64_t plane_of(int64_t tap) const { return tap % planes; }
    int64_t shift_of(int64_t tap) const { return tap * dilation / stride; }
  };
  // Of the positions of a plane along one axis those inside the image: plane positions first, first + 1, ... stand for
  // source, source + stride, ...
  struct Inside {
    int64_t first, count, source;
  };
  static Inside inside(const Axis& axis, int64_t plane, int64_t first, int64_t padding, int64_t length, int64_t size);
  // Whether rows are copied whole: padding with zeros, and a stride that the kernels know.
  bool by_rows() const;
  void fill_rows(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t channel, uint8_t* room,
                 uint8_t* out) const;
  void fill_plainly(const void* x, const ToByte& to, int64_t channel, uint8_t* out) const;
  static Axis axis_of(int64_t kernel, int64_t stride, int64_t dilation);
  static int64_t saturated(int64_t a, int64_t b) { return b != 0 && a > kMost / b ? kMost + 1 : a * b; }

  const ConvGeometry& geometry_;
  const si_conv_args& args_;
  const int64_t first_row_;
  Axis vertical_, horizontal_;
  int64_t rows_, pitch_;  // of a plane
  int64_t plane_, channel_;
};

}  // namespace si
