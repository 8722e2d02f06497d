// The padded image of bytes that tiles of a convolution are copied from, or read: rows of output first_row to
// first_row + rows - 1 of one image, all channels.
//
// A channel is split in planes. Along a column, a stride s makes planes of the rows a, a + s, ..., which taps share;
// along a row, each column of the kernel has a plane of its own, as wide as the output, so that a step of the output is
// a step of one byte from the end of a row to the next one too. An image of one row of output has no such end, and its
// taps share planes along the row as well. So a tap is an offset, and no column is computed in vain. Planes begin on
// lines of a cache where the image does. What lies outside the image is the zero point.
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
  // Taps along one axis: planes are their positions, or the residues of those by the stride, which repeat.
  struct Axis {
    int64_t stride, dilation, planes, reach;
    bool apart;
    int64_t phase(int64_t plane) const { return apart ? plane * dilation : plane * dilation % stride; }
    int64_t plane_of(int64_t tap) const { return tap % planes; }
    int64_t shift_of(int64_t tap) const { return apart ? 0 : tap * dilation / stride; }
  };
  // Of the positions of a plane along one axis those inside the image: plane positions first, first + 1, ... stand for
  // source, source + stride, ...
  struct Inside {
    int64_t first, count, source;
  };
  static Inside inside(const Axis& axis, int64_t plane, int64_t first, int64_t padding, int64_t length, int64_t size);
  // Whether rows are copied whole: padding with zeros, and a stride that the kernels know.
  bool by_rows() const;
  void fill_rows(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t first, int64_t last,
                 uint8_t* room, uint8_t* out) const;
  void fill_plainly(const void* x, const ToByte& to, int64_t channel, uint8_t* out) const;
  static Axis axis_of(int64_t kernel, int64_t stride, int64_t dilation, bool apart);
  // The rows of a channel that any plane reads: [begin, end).
  int64_t begin() const;
  int64_t end() const;
  // The columns of a row that one residue by the stride has at most.
  int64_t narrow() const { return (args_.w + args_.stride[1] - 1) / args_.stride[1]; }
  // Rows of `columns` to those of a plane, from `from` on, where the first of them begins.
  void copy_plane(const ByteKernels& kernels, const uint8_t* from, int64_t from_pitch, int64_t rows,
                  const Inside& columns, uint8_t* out) const;
  static int64_t saturated(int64_t a, int64_t b) { return b != 0 && a > kMost / b ? kMost + 1 : a * b; }

  const ConvGeometry& geometry_;
  const si_conv_args& args_;
  const int64_t first_row_;
  const Axis vertical_, horizontal_;
  const int64_t rows_, pitch_;  // of a plane
  const int64_t plane_, channel_;
};

}  // namespace si
