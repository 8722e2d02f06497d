// The inner kernels of one instruction set, as a table that the drivers of linear and convolution call.
//
// A tile is a range of output rows by `vectors` vectors of consecutive columns (tokens or pixels). It reads x
// channel-major: element n of input column k stands at base + offset(k) + n, where offset(k) = k * pitch, or taps[k]
// when taps are given. A linear layer has a pitch; a k x k convolution over a padded image has taps. The kernel is the
// same.
#pragma once

#include "core/tuning.h"
#include "formats/formats.h"
#include "kernels/tile/bytes.h"
#include "kernels/tile/pairs.h"

namespace si {

struct XView {
  const void* base;     // of the type that the kernel's row names
  int64_t pitch;        // elements; used when taps is null
  const int32_t* taps;  // K element offsets, or null

  template <class X>
  SI_INLINE const X* as() const {
    return static_cast<const X*>(base);
  }
};

struct TileJob {
  XView x;
  int vectors;            // 1 .. TileKernels::max_vectors
  int64_t first, last;    // units of the format: panels, or output rows
  int64_t kfirst, klast;  // the K blocks to run, of those that the weight has
  float* c;               // output row m at c + (m - row0) * ldc; blocks after the first accumulate into it
  int64_t ldc;
  int64_t row0;
  const float* bias;  // M floats or null; added once
  float low, high;    // the result is clamped to [low, high]; NaN passes
};

// One token: y[m - row0] = W[m] x for the rows of [first, last).
struct VectorJob {
  const void* x;  // as in XView
  float* y;
  int64_t first, last;  // as in TileJob
  int64_t row0;
  const float* bias;
  float low, high;
};

// Columns [first, first + length) of a tile go to dst + to.
struct ColumnRun {
  int64_t first, length, to;
};

// Rows of an image go to rows of a scratch image: `before` zeros, then src[0], src[step], ... (`count` of them), then
// `after` zeros.
struct RowCopy {
  const float* src;
  int64_t src_pitch;  // from row to row
  float* dst;
  int64_t dst_pitch;
  int64_t rows;
  int64_t before, count, after;
  int64_t step;  // 1 or 2
};

// One step of a recurrent cell for one sequence, see cell.h. c is null but for an LSTM.
struct CellJob {
  const float* x;
  const float* s;
  float* h;
  float* c;
  int64_t hidden;
};

// The widths of narrow tiles, which hold so many tokens at most.
constexpr int64_t kNarrowWidths[] = {1, 4, 8, 16, 32};
constexpr int kNarrowCount = sizeof kNarrowWidths / sizeof kNarrowWidths[0];

// The kernels that read one format. All null: there are none.
using TileFn = void (*)(const si_weights&, const TileJob&);
using VectorFn = void (*)(const si_weights&, const VectorJob&);
struct FormatKernels {
  TileFn tile;
  VectorFn vector;
  // By width; x packed [K][width], c [rows][width]. Null: none that wide.
  TileFn narrow[kNarrowCount];
};

struct TileKernels {
  int width;        // floats in a vector
  int max_vectors;  // of the widest tile
  Tuning tuning;
  FormatKernels formats[kFormatIds];  // by number
  const ByteKernels* bytes;           // of int8 weights, or null
  const PairKernels* pairs;           // of pairs of bfloat16 weights, or null

  // dst[k * pitch + n] = src[n * ld + k] for n < rows, k < columns; zero for rows <= n < padded, a multiple of width.
  // Rows of dst are written in order, so that of a pitch below `padded` the next row overwrites what is too much.
  void (*transpose_in)(const float* src, int64_t ld, int64_t rows, int64_t columns, float* dst, int64_t pitch,
                       int64_t padded);
  // dst[n * ld + m] = src[m * pitch + n] for m < rows, n < columns. src is read up to a vector past `columns` in each
  // row, and a vector past the last row.
  void (*transpose_out)(const float* src, int64_t pitch, int64_t rows, int64_t columns, float* dst, int64_t ld);
  // Copies runs of columns of one row to the contiguous destination they share, leaving out what lies between them.
  // src may be read, and dst written, up to a vector past a run, but never past the end of the last.
  void (*store_runs)(const float* src, float* dst, const ColumnRun* runs, int64_t count);
  // In order: a vector past its end, dst may be overwritten. src is read only where it is copied from, or between.
  void (*copy_rows)(const RowCopy&);
  // In place. RELU and RELU6 are clamps, done in the tile.
  void (*activate)(float* data, int64_t count, si_activation activation);
  void (*cell)(si_cell, const CellJob&);
};

// One function an instruction set; those of other families of processors are not built.
#define SI_ISA(name, family, features, words) const TileKernels* name##_tile_kernels();
#include "core/isas.inc"
#undef SI_ISA

}  // namespace si
