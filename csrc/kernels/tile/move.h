// Between token-major tensors (torch's) and the channel-major panels that the tiles read and write: transposition in
// blocks of width x width registers.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "core/inline.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

template <class V>
void transpose_in(const float* src, int64_t ld, int64_t rows, int64_t columns, float* dst, int64_t pitch,
                  int64_t padded) {
  if constexpr (kSmall) {
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t n = 0; n < padded; ++n) dst[k * pitch + n] = n < rows ? src[n * ld + k] : 0.0f;
    return;
  }
  constexpr int W = V::kWidth;
  const int64_t whole = columns / W * W;
  for (int64_t n = 0; n < padded; n += W) {
    const auto valid = static_cast<int>(rows - n < W ? (rows - n > 0 ? rows - n : 0) : W);
    for (int64_t k = 0; k < whole; k += W) {
      typename V::Reg block[W];
      if (valid == W) {
        SI_UNROLL for (int i = 0; i < W; ++i) block[i] = V::load(src + (n + i) * ld + k);
      } else {
        for (int i = 0; i < W; ++i) block[i] = i < valid ? V::load(src + (n + i) * ld + k) : V::broadcast(0.0f);
      }
      V::transpose(block);
      SI_UNROLL for (int i = 0; i < W; ++i) V::store(dst + (k + i) * pitch + n, block[i]);
    }
    for (int64_t k = whole; k < columns; ++k)
      for (int i = 0; i < W; ++i) dst[k * pitch + n + i] = i < valid ? src[(n + i) * ld + k] : 0.0f;
  }
}

template <class V>
void transpose_out(const float* src, int64_t pitch, int64_t rows, int64_t columns, float* dst, int64_t ld) {
  constexpr int W = V::kWidth;
  // A small library moves number by number.
  const int64_t whole_rows = kSmall ? 0 : rows / W * W;
  for (int64_t n = 0; n < columns && !kSmall; n += W)
    for (int64_t m = 0; m < whole_rows; m += W) {
      typename V::Reg block[W];
      SI_UNROLL for (int i = 0; i < W; ++i) block[i] = V::load(src + (m + i) * pitch + n);
      V::transpose(block);
      SI_UNROLL for (int i = 0; i < W; ++i) {
        if (n + i < columns) V::store(dst + (n + i) * ld + m, block[i]);
      }
    }
  for (int64_t n = 0; n < columns; ++n)
    for (int64_t m = whole_rows; m < rows; ++m) dst[n * ld + m] = src[m * pitch + n];
}

template <class V>
void store_runs(const float* src, float* dst, const ColumnRun* runs, int64_t count) {
  if (count == 0) return;
  const int64_t end = runs[count - 1].to + runs[count - 1].length;
  for (int64_t i = 0; i < count; ++i) {
    const float* from = src + runs[i].first;
    float* to = dst + runs[i].to;
    const int64_t length = runs[i].length;
    int64_t j = 0;
    // What a vector writes past its run, the next run overwrites.
    for (; j < length && runs[i].to + j + V::kWidth <= end; j += V::kWidth) V::store(to + j, V::load(from + j));
    for (; j < length; ++j) to[j] = from[j];
  }
}

// `n` floats in pieces of a constant length, the last of which overlaps. False where there are fewer.
template <int kFloats>
SI_INLINE bool copy_pieces(const float* src, float* dst, int64_t n) {
  if (n < kFloats) return false;
  for (int64_t j = 0; j + kFloats <= n; j += kFloats) std::memcpy(dst + j, src + j, kFloats * sizeof(float));
  std::memcpy(dst + n - kFloats, src + n - kFloats, kFloats * sizeof(float));
  return true;
}

template <class V>
void copy_rows(const RowCopy& job) {
  constexpr int W = V::kWidth;
  const typename V::Reg zero = V::broadcast(0.0f);
  const int64_t count = job.count, total = job.before + count + job.after;
  for (int64_t row = 0; row < job.rows; ++row) {
    const float* src = job.src + row * job.src_pitch;
    float* dst = job.dst + row * job.dst_pitch;
    // What a vector of zeros covers too much, the values and the next row overwrite.
    int64_t zeros = 0;
    for (; zeros < job.before; zeros += W) V::store(dst + zeros, zero);
    for (zeros = total; zeros > job.before + count && zeros > 0; zeros -= W)
      V::store(dst + (zeros > W ? zeros - W : 0), zero);
    dst += job.before;
    int64_t j = 0;
    if (job.step == 1) {
      if (count >= W) {
        for (; j + W <= count; j += W) V::store(dst + j, V::load(src + j));
        V::store(dst + count - W, V::load(src + count - W));
      } else if (!copy_pieces<8>(src, dst, count) && !copy_pieces<4>(src, dst, count)) {
        for (; j < count; ++j) dst[j] = src[j];
      }
      continue;
    }
    // Two vectors end one past the last value that they give: the last of a row is copied alone.
    for (; j + W < count; j += W) V::store(dst + j, V::even(V::load(src + 2 * j), V::load(src + 2 * j + W)));
    if (j > 0 && j < count - 1) {
      j = count - 1 - W;
      V::store(dst + j, V::even(V::load(src + 2 * j), V::load(src + 2 * j + W)));
      j += W;
    }
    for (; j < count; ++j) dst[j] = src[2 * j];
  }
}

}  // namespace
}  // namespace si
