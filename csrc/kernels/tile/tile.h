// The inner kernels of one instruction set, as a table that the drivers of linear and convolution call.
//
// A tile is a range of output rows by `vectors` vectors of consecutive columns (tokens or pixels). It reads x
// channel-major: element n of input column k stands at base + offset(k) + n, where offset(k) = k * pitch, or taps[k]
// when taps are given. A linear layer has a pitch; a k x k convolution over a padded image has taps. The kernel is the
// same.
#pragma once

#include "formats/csr/csr.h"
#include "formats/nm/nm.h"
#include "formats/panel/panel.h"

namespace si {

struct XView {
  const float* base;
  int64_t pitch;        // elements; used when taps is null
  const int32_t* taps;  // K element offsets, or null
};

struct TileJob {
  XView x;
  int vectors;            // 1 .. TileKernels::max_vectors
  int64_t first, last;    // panels (panel format) or output rows (csr, nm)
  int64_t kfirst, klast;  // panel: the K blocks to run, of view.kblocks
  float* c;               // output row m at c + (m - row0) * ldc; blocks after the first accumulate into it
  int64_t ldc;
  int64_t row0;
  const float* bias;  // M floats or null; added once
  float low, high;    // the result is clamped to [low, high]; NaN passes
};

// One token: y[m - row0] = W[m] x for the rows of [first, last).
struct VectorJob {
  const float* x;
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

struct TileKernels {
  int width;        // floats in a vector
  int max_vectors;  // of the widest tile

  void (*panel_tile)(const PanelView&, const TileJob&);
  void (*csr_tile)(const CsrView&, const TileJob&);
  void (*nm_tile)(const NmView&, const TileJob&);
  // By width 1, 4, 8, 16, 32: for so many tokens at most, x packed [K][width], c [rows][width]. Null: none that wide.
  void (*panel_narrow[5])(const PanelView&, const TileJob&);
  void (*panel_vector)(const PanelView&, const VectorJob&);
  void (*csr_vector)(const CsrView&, const VectorJob&);
  void (*nm_vector)(const NmView&, const VectorJob&);

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

// Null where the instruction set is not built in.
const TileKernels* avx512_tile_kernels();
const TileKernels* avx2_tile_kernels();
const TileKernels* neon_tile_kernels();

}  // namespace si
