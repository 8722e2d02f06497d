// The ways of bytes into a tile and out of it, over vectors of 16 bytes: x packed from bytes or from floats, token by
// token or channel by channel, taps of an image, and y.
//
// B::Lane holds 16 bytes. What is shorter than a vector goes through one on the stack. Nothing aliases.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "core/inline.h"
#include "kernels/tile/bytes.h"

namespace si {
namespace {

// n bytes, or as many floats as bytes, and any bytes after them.
template <class B>
SI_INLINE_UNLESS_SMALL typename B::Lane some_bytes(const uint8_t* from, int64_t n) {
  if (n >= 16) return B::load(from);
  if (n <= 0) return B::zero();
  uint8_t some[16] = {};
  std::memcpy(some, from, static_cast<size_t>(n));
  return B::load(some);
}
template <class B>
SI_INLINE_UNLESS_SMALL typename B::Lane some_bytes(const float* from, int64_t n, const ToByte& to) {
  if (n >= 16) return B::quantize_16(from, to);
  if (n <= 0) return B::zero();
  uint8_t some[16] = {};
  for (int64_t i = 0; i < n; ++i) some[i] = quantize(from[i], to);
  return B::load(some);
}

template <class B>
SI_INLINE_UNLESS_SMALL void store_some(uint8_t* to, typename B::Lane a, int64_t n) {
  if (n >= 16) return B::store(to, a);
  uint8_t some[16];
  B::store(some, a);
  std::memcpy(to, some, static_cast<size_t>(n));
}

// 16 rows of 16 bytes; row i of the result, whose rows stand `pitch` apart, has `bytes` of column i, of `columns`.
template <class B, class Row>
SI_INLINE void transpose_16(const Row& row, uint8_t* dst, int64_t pitch, int64_t columns, int64_t bytes) {
  typename B::Lane quarter[4][4];
  SI_UNROLL for (int i = 0; i < 4; ++i) {
    SI_UNROLL for (int j = 0; j < 4; ++j) quarter[i][j] = row(4 * i + j);
    B::interleave(quarter[i]);
  }
  for (int j = 0; j < 4; ++j) {
    typename B::Lane v[4] = {quarter[0][j], quarter[1][j], quarter[2][j], quarter[3][j]};
    B::transpose_dwords(v);
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      if (4 * j + i < columns) store_some<B>(dst + (4 * j + i) * pitch, v[i], bytes);
    }
  }
}

// 16 columns from k on of token n, those that are there.
template <class B>
SI_INLINE typename B::Lane token_bytes(const BytePack& job, int64_t n, int64_t k) {
  if (n >= job.valid) return B::zero();
  const int64_t at = n * job.ldx + k;
  if (!job.floats) return some_bytes<B>(static_cast<const uint8_t*>(job.x) + at, job.k1 - k);
  return some_bytes<B>(static_cast<const float*>(job.x) + at, job.k1 - k, job.to[job.to_each ? n : 0]);
}

template <class B>
void pack_byte_tokens(const BytePack& job) {
  for (int64_t k = job.k0; k < job.k1; k += 16)
    for (int64_t n = 0; n < job.width && n < job.valid; n += 16) {
      if (job.g == 1) {
        transpose_16<B>([&](int i) { return token_bytes<B>(job, n + i, k); }, job.tile + k * job.width + n, job.width,
                        job.k1 - k, 16);
        continue;
      }
      for (int64_t i = n; i < n + 16; i += 4) {
        typename B::Lane v[4];
        SI_UNROLL for (int j = 0; j < 4; ++j) v[j] = token_bytes<B>(job, i + j, k);
        B::transpose_dwords(v);
        SI_UNROLL for (int j = 0; j < 4; ++j) {
          if (4 * j < job.k1 - k) B::store(job.tile + ((k / 4 + j) * job.width + i) * 4, v[j]);
        }
      }
    }
}

// 16 tokens from n on of column k, those that are there.
template <class B>
SI_INLINE typename B::Lane channel_bytes(const BytePack& job, int64_t k, int64_t n) {
  if (k >= job.k1) return B::zero();
  const int64_t at = k * job.ldx + n;
  if (!job.floats) return some_bytes<B>(static_cast<const uint8_t*>(job.x) + at, job.valid - n);
  return some_bytes<B>(static_cast<const float*>(job.x) + at, job.valid - n, *job.to);
}

template <class B>
void pack_byte_channels(const BytePack& job) {
  if (job.g == 1) {
    for (int64_t k = job.k0; k < job.k1; ++k)
      for (int64_t n = 0; n < job.width; n += 16) B::store(job.tile + k * job.width + n, channel_bytes<B>(job, k, n));
    return;
  }
  for (int64_t k = job.k0; k < job.k1; k += 4)
    for (int64_t n = 0; n < job.width; n += 16) {
      typename B::Lane v[4];
      SI_UNROLL for (int j = 0; j < 4; ++j) v[j] = channel_bytes<B>(job, k + j, n);
      B::interleave(v);
      SI_UNROLL for (int j = 0; j < 4; ++j) B::store(job.tile + k * job.width + 4 * n + 16 * j, v[j]);
    }
}

// One scale for each token, channel by channel: rare, and plain.
inline void pack_byte_channels_each(const BytePack& job) {
  for (int64_t k = job.k0; k < job.k1; ++k)
    for (int64_t n = 0; n < job.valid; ++n) {
      const int64_t at = job.g == 1 ? k * job.width + n : (k / 4 * job.width + n) * 4 + k % 4;
      job.tile[at] = quantize(static_cast<const float*>(job.x)[k * job.ldx + n], job.to[n]);
    }
}

template <class B>
void pack_bytes(const BytePack& job) {
  if (job.token_major) return pack_byte_tokens<B>(job);
  if (job.floats && job.to_each) return pack_byte_channels_each(job);
  pack_byte_channels<B>(job);
}

template <class B>
void transpose_bytes_out(const uint8_t* src, int64_t pitch, int64_t rows, int64_t columns, uint8_t* dst, int64_t ld) {
  for (int64_t m = 0; m < rows; m += 16)
    for (int64_t n = 0; n < columns; n += 16)
      transpose_16<B>([&](int i) { return m + i < rows ? B::load(src + (m + i) * pitch + n) : B::zero(); },
                      dst + n * ld + m, ld, columns - n, rows - m);
}

// In order: up to a vector past a run is overwritten by the next, or by the next row.
template <class B>
SI_INLINE void copy_byte_runs(const ByteCopy& job, int64_t k, uint8_t* row) {
  const uint8_t* from = job.image + job.taps[k];
  for (int64_t i = 0; i < job.count; ++i) {
    const ByteRun& run = job.runs[i];
    int64_t j = 0;
    for (; j + 8 < run.length; j += 16) B::store(row + run.first + j, B::load(from + run.from + j));
    if (j < run.length) std::memcpy(row + run.first + j, from + run.from + j, 8);
  }
}

template <class B>
void copy_bytes(const ByteCopy& job) {
  if (job.g == 1) {
    for (int64_t k = 0; k < job.K; ++k) copy_byte_runs<B>(job, k, job.tile + k * job.width);
    return;
  }
  // Rows of a piece are copied first, and interleaved once they have left the store buffer.
  constexpr int64_t kPiece = 64;
  uint8_t rows[(kPiece + 1) * kMostDwordWidth] = {};
  for (int64_t first = 0; first < job.K; first += kPiece) {
    const int64_t last = first + kPiece < job.K ? first + kPiece : job.K;
    for (int64_t k = first; k < last; ++k) copy_byte_runs<B>(job, k, rows + (k - first) * kMostDwordWidth);
    for (int64_t k = first; k < last; k += 4)
      for (int64_t n = 0; n < job.width; n += 16) {
        typename B::Lane v[4];
        SI_UNROLL for (int j = 0; j < 4; ++j) v[j] = B::load(rows + (k - first + j) * kMostDwordWidth + n);
        B::interleave(v);
        SI_UNROLL for (int j = 0; j < 4; ++j) B::store(job.tile + k * job.width + 4 * n + 16 * j, v[j]);
      }
  }
}

inline void copy_byte_rows(const ByteRows& job) {
  for (int64_t r = 0; r < job.rows; ++r) {
    const uint8_t* src = job.src + r * job.src_pitch;
    uint8_t* dst = job.dst + r * job.dst_pitch;
    if (job.step == 1)
      std::memcpy(dst, src, static_cast<size_t>(job.count));
    else
      for (int64_t i = 0; i < job.count; ++i) dst[i] = src[2 * i];
  }
}

template <class B>
void quantize_bytes(const float* src, int64_t count, const ToByte& to, uint8_t* dst) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) B::store(dst + i, B::quantize_16(src + i, to));
  for (; i < count; ++i) dst[i] = quantize(src[i], to);
}

}  // namespace
}  // namespace si
