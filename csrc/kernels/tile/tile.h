// The inner kernels of one instruction set, as a table that the drivers of linear and convolution call.
//
// A tile is a range of output rows by `vectors` vectors of consecutive columns (tokens or pixels). It reads x
// channel-major: element n of input column k stands at base + offset(k) + n, where offset(k) = k * pitch, or taps[k]
// when taps are given. A linear layer has a pitch; a k x k convolution over a padded image has taps. The kernel is the
// same.
#pragma once

#include "core/tuning.h"
#include "formats/formats.h"
#include "kernels/tile/byte_network.h"
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

// Channels of a depthwise convolution that follow one another, see depthwise_tile.h.
struct DepthwiseJob {
  const float* x;                // [channels][h][w]
  const float *x_begin, *x_end;  // of all that may be read
  float* y;                      // [channels][oh][ow]
  int64_t channels, h, w, oh, ow;
  int64_t top, left;     // padding
  int kernel, stride;    // 3, 5 or 7; 1 or 2
  int64_t spill;         // floats after y that may be overwritten
  const float* weights;  // [channels][kernel][kernel]
  const float* bias;     // of channels, or null
  float low, high;
};

// One channel of a pooling, see pool_tile.h. Pairs are vertical, horizontal.
struct PoolJob {
  const float* x;
  float* y;
  float* line;  // scratch of pool_line_floats
  int64_t h, w, oh, ow;
  int64_t kernel[2], stride[2];
  int64_t padding[2];  // top and left; less than the kernel
  bool average;
  bool count_padding;  // the mean is over the whole window, also where it lies outside of x
};

SI_INLINE int64_t pool_line_floats(const PoolJob& job) {
  const int64_t image = job.padding[1] + job.w, windows = (job.ow - 1) * job.stride[1] + job.kernel[1];
  return (image > windows ? image : windows) + 64;
}

// How many elements a mean is over.
SI_INLINE int64_t pool_divisor(const PoolJob& job, int64_t row, int64_t column) {
  if (job.count_padding) return job.kernel[0] * job.kernel[1];
  const auto covered = [](int64_t first, int64_t kernel, int64_t size) {
    return (first + kernel < size ? first + kernel : size) - (first > 0 ? first : 0);
  };
  return covered(row * job.stride[0] - job.padding[0], job.kernel[0], job.h) *
         covered(column * job.stride[1] - job.padding[1], job.kernel[1], job.w);
}

// Rows of n elements that are normalised, see norm_tile.h.
struct NormJob {
  const float* x;         // [rows][n]
  const float* residual;  // added to x before, or null
  const float* weight;    // of n, or null
  const float* bias;      // likewise
  float* y;               // may be x or residual
  int64_t rows, n;
  float eps;
  bool centred;  // the mean is taken off first; false: rows are divided by their root mean square as they are
};

// Some queries of one head, see attention_tile.h. `ld` is from token to token.
struct AttentionJob {
  const float *q, *k, *v;
  float* y;
  int64_t ldq, ldk, ldv, ldy;
  int64_t queries, keys, dim;
  int64_t first;  // of the queries, among all
  float scale;
  bool causal;        // a query attends to keys up to its own place
  const float* mask;  // is added to the scores: of the first query; or null
  int64_t mask_ld;    // from query to query; 0 where all have the same
  float* scratch;     // attention_floats
};

// Keys whose scores are kept at a time: longer sequences are taken in blocks.
constexpr int64_t kKeyBlock = 512;
// Queries that share what is read of the keys and values.
constexpr int64_t kQueryBlock = 128;
// Rows of a register tile, and floats that any vector is a part of.
constexpr int64_t kQueryRows = 4;
constexpr int64_t kWidestVector = 16;

SI_INLINE int64_t attention_floats(int64_t queries, int64_t dim) {
  const int64_t padded = (dim + kWidestVector - 1) / kWidestVector * kWidestVector;
  return kKeyBlock * (2 * padded + kQueryRows) + queries * (padded + 2);
}

// The operations of two operands, by their numbers in a model file.
enum class BinaryKind : int32_t { kAdd, kSubtract, kMultiply, kDivide, kMinimum, kMaximum, kPower };

// y[i] = a[i a_step] op b[i b_step], clamped to [low, high]; a step is 1, or 0 of one number for all. y may be a or b.
struct BinaryLine {
  const float* a;
  const float* b;
  float* y;
  int64_t a_step, b_step;
  int64_t count;
  float low, high;
};

// Functions of one number that are no si_activation, by their numbers in a model file, and their parameters.
enum class UnaryKind : int32_t {
  kHardswish,
  kHardsigmoid,
  kLeakyRelu,
  kElu,
  kClamp,
  kSoftplus,
  kAbs,
  kExp,
  kLog,
  kSqrt,
  kRsqrt,
  kErf,
  kSin,
  kCos,
  kFloor,
  kCeil,
  kRound
};
struct UnaryFunction {
  UnaryKind kind;
  float p[2];
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
  bool floats;                        // it has what networks of floats need; a variant for one type of weights has not
  FormatKernels formats[kFormatIds];  // by number
  const ByteKernels* bytes;           // of int8 weights, or null
  const PairKernels* pairs;           // of pairs of bfloat16 weights, or null
  const ByteNetworkKernels* byte_network;  // there where `bytes` is

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
  // Copies the rows in ascending order, each of which may overwrite dst up to a vector past its end. src is read only
  // where it is copied from, or between.
  void (*copy_rows)(const RowCopy&);
  // In place. RELU and RELU6 are clamps, done in the tile.
  void (*activate)(float* data, int64_t count, si_activation activation);
  void (*cell)(si_cell, const CellJob&);
  void (*depthwise)(const DepthwiseJob&);
  void (*pool)(const PoolJob&);
  // dst = a + b clamped to [low, high]; dst may be a or b.
  void (*add)(float* dst, const float* a, const float* b, int64_t count, float low, float high);
  // dst = x clamped; dst may be x.
  void (*clamp)(float* dst, const float* x, int64_t count, float low, float high);
  float (*sum)(const float* x, int64_t count);
  // Over n of [n][inner].
  void (*softmax)(const float* x, float* y, int64_t n, int64_t inner);
  void (*norm)(const NormJob&);
  void (*attend)(const AttentionJob&);
  // Of every kind but kPower.
  void (*binary)(BinaryKind kind, const BinaryLine& line);
  // y = function(x), y may be x; false, and nothing done, of a function that it does not hold.
  bool (*unary)(const UnaryFunction& function, float* y, const float* x, int64_t count);
};

// Whether there are tiles for a call: a library of one kind of kernels knows that without a look.
SI_INLINE bool has_tiles(const TileKernels* isa) { return kTilesBuilt && (!kScalarBuilt || isa != nullptr); }

// One function an instruction set; those of other families of processors are not built.
#define SI_ISA(name, family, features, words) const TileKernels* name##_tile_kernels();
#include "core/isas.inc"
#undef SI_ISA

}  // namespace si
