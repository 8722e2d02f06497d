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

#include "core/scratch.h"
#include "kernels/conv/geometry.h"
#include "kernels/tile/tile.h"

namespace si {

// Output pixels that are computed together.
struct Strip {
  int64_t first_row, rows, first_column, columns;
};

class ConvImage {
 public:
  // What a strip of each of `images` images reads of `groups` groups of channels. Nothing is allocated. `apart` asks
  // for a plane for each column of the kernel, which it gets where its copies are few and their garbage is little.
  ConvImage(const TileKernels& isa, const ConvGeometry& geometry, const si_conv_args& args, const Strip& strip,
            int64_t images, int64_t groups, bool apart);

  // Above kMaxFloats, what floats() gives means no more than that.
  int64_t floats() const { return saturated_product(channels_, channel_) + slack_; }
  // Taps are 32-bit offsets.
  static constexpr int64_t kMaxFloats = 0x7fffffff;

  int64_t group_stride() const { return geometry_.group_channels * channel_; }
  // Columns of a tile row that a call computes: the last output pixel's, plus one.
  int64_t positions(int64_t images) const { return ((images - 1) * rows_ + strip_.rows - 1) * pitch_ + strip_.columns; }
  // Floats of one channel that a tile of so many columns reads.
  int64_t tile_floats(int64_t columns) const {
    return vertical_.planes * horizontal_.planes * (columns + vertical_.reach * pitch_ + horizontal_.reach);
  }
  int64_t pitch() const { return pitch_; }
  int64_t rows() const { return rows_; }
  // Offsets of the taps of one group, K of them. They fit 32 bits where floats() is at most kMaxFloats.
  void taps(int32_t* out) const;

  // Copies the channels of the groups, the first at x, and zeroes what vectors may read past the last channel.
  [[nodiscard]] si_status fill(const float* x, int64_t images, float* scratch) const;

 private:
  // Where the taps along one axis read: the residues of their positions by the stride, each a plane, or, apart, a plane
  // for each tap.
  struct Axis {
    int64_t stride, dilation;
    int64_t planes;  // residues repeat with this period; apart: the taps
    int64_t reach;   // the largest shift
    bool apart;

    SI_INLINE int64_t phase(int64_t plane) const { return apart ? plane * dilation : plane * dilation % stride; }
    SI_INLINE int64_t plane_of(int64_t tap) const { return apart ? tap : tap % planes; }
    // Position in that plane.
    SI_INLINE int64_t shift_of(int64_t tap) const { return apart ? 0 : tap * dilation / stride; }
  };
  // For each phase: source columns [first, last) of a row stand in a run, the rest is zero (zero padding), or `column`
  // names the source of each of `named` (other modes).
  struct Columns {
    int64_t first, last, source;  // dst [first, last) from source, source + stride, ...
    const int64_t* column;
    int64_t named;
  };

  static int64_t saturated_product(int64_t a, int64_t b) {
    return a > kMaxFloats || a > kMaxFloats / b ? kMaxFloats + 1 : a * b;
  }
  // Phases of the stride; a plane for each tap where that takes less room for `outputs` outputs, as it does where taps
  // lie further apart than a strip is long, or where it is asked for.
  static Axis axis_of(int64_t kernel, int64_t stride, int64_t dilation, int64_t outputs, bool apart);
  // Columns of the scratch image that a phase reads.
  Columns columns_of(int64_t phase) const;
  void fill_channel(const float* x, int64_t image_stride, int64_t images, const Columns* columns, float* dst) const;
  // One plane of one image, the first of its rows at `first` of the image.
  void fill_plane(const float* x, int64_t first, const Columns& columns, float* dst) const;

  const TileKernels& isa_;
  const ConvGeometry& geometry_;
  const si_conv_args& args_;
  const Strip strip_;
  const int64_t channels_;
  Axis vertical_, horizontal_;
  int64_t rows_;     // of a plane, an image
  int64_t pitch_;    // of a row
  int64_t plane_;    // floats: all images of one phase plane
  int64_t channel_;  // floats: all planes of one channel
  int64_t slack_;
};

}  // namespace si
