// The inner kernels of pairs of bfloat16 weights and bfloat16 x, as a table that the drivers call.
//
// A tile is a range of panels by 16, 32 or 64 columns (tokens or pixels), whose x is packed [K][width]. Operands are as
// bfloat16_operand (formats/panel/pairs.h) makes them, sums are float32: each is within K steps' rounding of the exact
// sum of its products, in whatever order a kernel adds them.
#pragma once

#include "formats/formats.h"
#include "kernels/tile/bytes.h"

namespace si {

struct PairOutput {
  float* floats;  // output row m at (m - row0) * ldy, of these two the one that is not null
  uint16_t* halves;
  int64_t ldy;
  int64_t row0;
  const float* bias;  // by position, or null
  float low, high;    // the result is clamped to [low, high]; NaN passes
};

struct PairJob {
  const uint16_t* x;
  int64_t first, last;  // panels
  PairOutput out;
};

// One token: floats of its results, ldy = 1.
struct PairVectorJob {
  const uint16_t* x;
  uint16_t* gathered;   // room for two panels' values of x: 2 * gathered_halves(K)
  int64_t first, last;  // panels
  PairOutput out;
};
SI_INLINE constexpr int64_t gathered_halves(int64_t K) { return K + 2 * kPatterns + 64; }

struct PairKernels {
  void (*tile[kDwordWidthCount])(const si_weights&, const PairJob&);  // by width, up to most_width
  void (*vector)(const si_weights&, const PairVectorJob&);
  // Operands of `count` values of float32 or bfloat16.
  void (*narrow)(const void* src, si_value_type type, int64_t count, uint16_t* dst);
  // dst[c * pitch + r] = the operand of src[r * ld + c] for r < rows, c < columns; nothing else is written.
  void (*transpose)(const void* src, si_value_type type, int64_t ld, int64_t rows, int64_t columns, uint16_t* dst,
                    int64_t pitch);
  // As of ByteKernels, by bytes: g = 1, runs of at most 64 bytes, a width of twice the columns.
  void (*copy)(const ByteCopy&);
  // Of the tiles that a call is cut in: as of ByteKernels.
  int64_t most_width = kMostDwordWidth;
};

}  // namespace si
