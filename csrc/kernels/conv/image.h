// The scratch image of a convolution: padded, channel-major, strides split in phases.
//
// Output position q = (image * rows + r) * pitch + c reads tap (ic, kr, kc) at offset(ic, kr, kc) + q, a constant
// offset a tap. Positions with c >= ow or r >= oh are garbage columns: computed, never stored.
//   stride s   The padded input is split in s x s phase planes, plane (a, b) holding rows a, a + s, ... and columns
//              b, b + s, ...; tap (kr, kc) lies in plane (kr d mod s, kc d mod s), so that each step of the output is a
//              step of one element. Planes that no tap reads are left out (a 1x1 stride-2 kernel reads one of four).
//   apart      Each column of a kernel may have a plane of its own (plane kc holds columns kc d, kc d + s and so on),
//              with a pitch of whole half cache lines: then every vector of a tile is read without straddling two
//              lines, and no padding stands between rows. The price is kw copies of the image.
//   zero pad   Else rows share their padding: the zeros left of row r + 1 are those right of row r, so pitch is
//              ow + 1, not ow + 2, for a 3x3 kernel with padding 1: fewer garbage columns.
#pragma once

#include "core/buffer.h"
#include "kernels/conv/geometry.h"
#include "kernels/tile/tile.h"

namespace si {

class ConvImage {
 public:
  ConvImage(const TileKernels& isa, const ConvGeometry& geometry, const si_conv_args& args)
      : isa_(isa), geometry_(geometry), args_(args) {}

  // Plans the part of the image that output rows [first_row, first_row + rows) need; the rest asks for that first.
  // `apart` asks for a plane for each column of the kernel, which it gets where `can_be_apart`. Fails with
  // SI_ERR_UNSUPPORTED where offsets do not fit 32 bits.
  [[nodiscard]] si_status plan(int64_t first_row, int64_t rows, int64_t images, bool apart);

  // Whether few enough columns of the kernel, and output columns whose number is near enough to a multiple of half a
  // cache line.
  static bool can_be_apart(const ConvTuning& tuning, const ConvGeometry& geometry);

  int64_t floats() const { return geometry_.channels * channel_ + slack_; }
  int64_t group_stride() const { return geometry_.group_channels * channel_; }
  // Columns of a tile row that a call computes: the last output pixel's, plus one.
  int64_t positions(int64_t images) const { return ((images - 1) * rows_ + output_rows_ - 1) * pitch_ + geometry_.ow; }
  // Floats of one channel that a tile of so many columns reads.
  int64_t tile_floats(int64_t columns) const {
    return vertical_.planes * horizontal_.planes * (columns + vertical_.reach * pitch_ + horizontal_.reach);
  }
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }
  // Offsets of the taps of one group, K of them.
  void taps(int32_t* out) const;

  // Copies all channels of the images, the first at x, and zeroes what vectors may read past the last channel.
  void fill(const float* x, int64_t images, float* scratch) const;

 private:
  struct Axis {
    Buffer<int64_t> phases;    // residues that some tap reads: the first `planes` of them
    Buffer<int64_t> plane_of;  // index in `phases` of each tap
    Buffer<int64_t> shift_of;  // position in that plane of each tap
    int64_t planes = 0;
    int64_t reach = 0;  // the largest shift

    [[nodiscard]] si_status allocate(int64_t kernel);
    [[nodiscard]] si_status plan(int64_t kernel, int64_t stride, int64_t dilation);
    // A plane for each tap.
    [[nodiscard]] si_status plan_apart(int64_t kernel, int64_t dilation);
  };
  // For each phase: source columns [first, last) of a row stand in a run, the rest is zero (zero padding), or `named`
  // columns of the table say the source of each (other modes).
  struct Columns {
    int64_t first, last, source;  // dst [first, last) from source, source + stride, ...
    int64_t table, named;         // where they begin in `column_of_`, and how many
  };

  void fill_channel(const float* x, int64_t image_stride, int64_t images, float* dst) const;
  // One plane of one image, the first of its rows at `first` of the image.
  void fill_plane(const float* x, int64_t first, const Columns& columns, float* dst) const;

  const TileKernels& isa_;
  const ConvGeometry& geometry_;
  const si_conv_args& args_;
  Axis vertical_, horizontal_;
  int64_t first_row_ = 0, output_rows_ = 0;
  int64_t rows_ = 0;     // of a plane, an image
  int64_t pitch_ = 0;    // of a row
  int64_t plane_ = 0;    // floats: all images of one phase plane
  int64_t channel_ = 0;  // floats: all planes of one channel
  int64_t slack_ = 0;
  Buffer<Columns> columns_;
  Buffer<int64_t> column_of_;
};

}  // namespace si
