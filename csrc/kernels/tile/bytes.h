// The inner kernels of int8 weights and bytes of x, as a table that the drivers call.
//
// A tile is a range of panels by 16, 32 or 64 columns (tokens or pixels). Its x is packed: at g = 1 [K][width] bytes,
// at g = 4 [ceil(K / 4)][width][4], so that an index of the weight names one row of bytes. Or, at g = 1, it is read
// where it stands, row k from an offset of its own on.
#pragma once

#include "formats/formats.h"

namespace si {

// byte = rint(clamp(v * inverse, low, high)) + zero_point, where low and high are whole numbers, or the ends of an
// activation's clamp, which a product with a positive number keeps in order. NaN becomes low.
struct ToByte {
  float inverse, low, high;
  int32_t zero_point;
};

// Whether a byte's own least value is the only lower bound: then saturation will do.
SI_INLINE bool saturates(const ToByte& to) { return to.low == static_cast<float>(-to.zero_point); }

SI_INLINE uint8_t quantize(float v, const ToByte& to) {
  float t = v * to.inverse;
  t = t > to.low ? t : to.low;
  t = t < to.high ? t : to.high;
  return static_cast<uint8_t>(static_cast<int32_t>(__builtin_nearbyintf(t)) + to.zero_point);
}

// The widths of tiles, of bytes and of pairs (pairs.h).
constexpr int64_t kDwordWidths[] = {16, 32, 64};
constexpr int kDwordWidthCount = 3;
constexpr int64_t kMostDwordWidth = 64;

// The least width of a tile that holds so many columns, as an index in kDwordWidths; the widest where none does.
SI_INLINE int dword_width_index(int64_t columns) {
  int index = 0;
  while (index + 1 < kDwordWidthCount && columns > kDwordWidths[index]) ++index;
  return index;
}

// y = clamp(fma(sum - zero point * row sum, scale of the row * scale of x, bias) + residual, low, high), as it is or as
// a byte.
struct ByteOutput {
  float* floats;  // output row m at (m - row0) * ldy, of these two the one that is not null
  uint8_t* bytes;
  int64_t ldy;
  int64_t row0;
  const float* bias;  // by position, or null
  float low, high;    // of floats
  ToByte to;          // of bytes; holds the activation's clamp
  bool gelu;          // of bytes: before `to`, within kCoarseGelu
  float x_scale;
  int32_t x_zero_point;
  // Of each column of the tile, as many as it is wide; null where x has one of each.
  const float* x_scales;
  const int32_t* x_zero_points;
  // Added to output row m, from (m - row0) * residual_ld on, as wide as the tile: of these two at most one that is not
  // null. A byte adds scale * (byte - zero point), rounded once, with the sum.
  const float* residual_floats;
  const uint8_t* residual_bytes;
  int64_t residual_ld;
  float residual_scale;
  int32_t residual_zero_point;
};

struct ByteJob {
  const uint8_t* x;     // as packed
  const int32_t* taps;  // or, where not null, row k at x + taps[k], as wide as the tile
  int64_t first, last;  // panels
  ByteOutput out;
};

// One token: its K bytes at x (at g = 4 read up to a multiple of 4), ldy = residual_ld = 1.
struct ByteVectorJob {
  const uint8_t* x;
  uint8_t* gathered;  // room for two panels' bytes of x: 2 * gathered_bytes(K)
  int64_t first, last;
  ByteOutput out;
};
SI_INLINE constexpr int64_t gathered_bytes(int64_t K) { return K + 4 * kPatterns + 64; }

// Brings `valid` tokens of columns [k0, k1) of x into a tile; k0 is a multiple of 16. What lies past `valid` in the
// tile is any byte.
struct BytePack {
  const void* x;  // of the first token, and of column 0
  int64_t ldx;
  bool floats, token_major;
  int64_t k0, k1;
  int64_t valid, width;
  int32_t g;
  const ToByte* to;  // of floats: one, or one for each token
  bool to_each;
  uint8_t* tile;
};

// Columns of a tile that stand side by side in the image that they are copied from.
struct ByteRun {
  int64_t first, length, from;
};

// Brings K rows of columns from an image to a tile: run i of row k from image + taps[k] + runs[i].from on. The image
// may be read a vector past each run.
struct ByteCopy {
  const uint8_t* image;
  const int32_t* taps;
  int64_t K;
  const ByteRun* runs;
  int64_t count;
  int64_t width;
  int32_t g;
  uint8_t* tile;
};

// dst[r * dst_pitch + i] = src[r * src_pitch + i * step] for i < count, and nothing else; step is 1 or 2.
struct ByteRows {
  const uint8_t* src;
  int64_t src_pitch;
  uint8_t* dst;
  int64_t dst_pitch;
  int64_t rows, count, step;
};

struct ByteKernels {
  void (*tile[kDwordWidthCount])(const si_weights&, const ByteJob&);  // by width, up to most_width
  void (*vector)(const si_weights&, const ByteVectorJob&);
  void (*pack)(const BytePack&);
  // dst[n * ld + m] = src[m * pitch + n] for m < rows, n < columns; nothing else is written. Rows of src may be read up
  // to a multiple of 16.
  void (*transpose_out)(const uint8_t* src, int64_t pitch, int64_t rows, int64_t columns, uint8_t* dst, int64_t ld);
  void (*copy)(const ByteCopy&);
  void (*copy_rows)(const ByteRows&);
  void (*quantize)(const float* src, int64_t count, const ToByte& to, uint8_t* dst);
  // Of the tiles that a call is cut in. Narrow vectors take a narrow one, so that the nearest cache holds its x.
  int64_t most_width = kMostDwordWidth;
};

}  // namespace si
