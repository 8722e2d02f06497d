// Bytes in the vectors of AVX-512: what the tiles of int8 weights need beside their product, and the ways of x into a
// tile and of y out of it.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/isa/avx512_vector.h"
#include "kernels/isa/x86_bytes.h"

namespace si {
namespace {

// ---- Shuffles ---------------------------------------------------------------------------------------------------

// As a 4 x 4 matrix of dwords, a row a 128-bit lane.
SI_INLINE __m512i transpose_dwords_4x4(__m512i a) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), a);
}

// In each 128-bit lane, as a 4 x 4 matrix of bytes.
SI_INLINE __m512i transpose_bytes_4x4(__m512i a) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(order));
}

// Of four vectors the 128-bit lanes as a 4 x 4 matrix.
SI_INLINE void transpose_lanes(__m512i (&v)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, c, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
  v[2] = _mm512_shuffle_i32x4(b, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

// In each 128-bit lane, the dwords of four vectors as a 4 x 4 matrix.
SI_INLINE void transpose_in_lanes(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// ---- The vectors of the tiles -----------------------------------------------------------------------------------

struct Bytes512 {
  using Int = __m512i;
  using Floats = __m512;
  static constexpr int kBytes = 64, kInts = 16, kMostSums = 16;
  static constexpr int32_t kOffset = 0;

  static SI_INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  // n dwords, and zeros.
  static SI_INLINE Int load_some(const void* p, int n) {
    return _mm512_maskz_loadu_epi32(n >= kInts ? 0xffff : static_cast<__mmask16>((1u << n) - 1), p);
  }
  static SI_INLINE void store(void* p, Int a) { _mm512_storeu_si512(p, a); }
  static SI_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static SI_INLINE void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  static SI_INLINE Int spread(const Quad* q) {
    int dword;
    __builtin_memcpy(&dword, q, sizeof dword);
    return _mm512_set1_epi32(dword);
  }
  static SI_INLINE Int broadcast_int(int32_t a) { return _mm512_set1_epi32(a); }
  static SI_INLINE Floats broadcast(float a) { return _mm512_set1_ps(a); }
  static SI_INLINE Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static SI_INLINE Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static SI_INLINE Int mul(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  static SI_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static SI_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static SI_INLINE Floats max(Floats bound, Floats x) { return _mm512_max_ps(bound, x); }
  static SI_INLINE Floats min(Floats bound, Floats x) { return _mm512_min_ps(bound, x); }
  static SI_INLINE Floats to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static SI_INLINE int32_t sum(Int a) { return _mm512_reduce_add_epi32(a); }

  // A byte less its zero point. The bounds are second, and so what a NaN becomes.
  static SI_INLINE Int round_to_byte(Floats v, const ToByte& to) {
    const Floats t = _mm512_max_ps(_mm512_mul_ps(v, _mm512_set1_ps(to.inverse)), _mm512_set1_ps(to.low));
    return _mm512_cvtps_epi32(_mm512_min_ps(t, _mm512_set1_ps(to.high)));
  }
  // Likewise where pack_bytes saturates it from below: of what is too small, and of a NaN, it is the least int32.
  static SI_INLINE Int round_below(Floats v, const ToByte& to) {
    const Floats t = _mm512_mul_ps(v, _mm512_set1_ps(to.inverse));
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(to.high), t));
  }
  // Bytes of four vectors, lane by lane: of each lane L dwords of v[0], v[1], v[2], v[3]. Saturates.
  static SI_INLINE Int pack_bytes(const Int (&v)[4], int32_t zero_point) {
    const Int zero = _mm512_set1_epi16(static_cast<short>(zero_point));
    return _mm512_packus_epi16(_mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero),
                               _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero));
  }
  // The same bytes vector by vector.
  static SI_INLINE Int natural_bytes(Int packed) { return transpose_dwords_4x4(packed); }
  static SI_INLINE void store_narrow(uint8_t* p, Int a, int32_t zero_point) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(a, _mm512_set1_epi32(zero_point)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }

  static SI_INLINE void interleave(Int a, Int b, Int c, Int d, Int (&x)[4]) {
    const Int ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const Int cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    x[0] = _mm512_unpacklo_epi16(ab0, cd0);
    x[1] = _mm512_unpackhi_epi16(ab0, cd0);
    x[2] = _mm512_unpacklo_epi16(ab1, cd1);
    x[3] = _mm512_unpackhi_epi16(ab1, cd1);
  }
  // From the order of `interleave` to that of the columns.
  static SI_INLINE void natural(Int (&v)[4]) { transpose_lanes(v); }
};

// ---- x into a tile, y out of it ---------------------------------------------------------------------------------

SI_INLINE __mmask16 first_16(int64_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (n > 0 ? n : 0)) - 1);
}

// 16 columns from k on of 4 tokens, as bytes: lane l has columns k + 4 l to k + 4 l + 3 of each token in turn. Tokens
// at or past `valid` and columns past k1 read nothing. The rules of x saturate from below.
SI_INLINE __m512i four_tokens(const BytePack& job, int64_t n, int64_t k) {
  const __mmask16 columns = first_16(job.k1 - k);
  if (!job.floats) {
    const auto* x = static_cast<const uint8_t*>(job.x) + n * job.ldx + k;
    const auto token = [&](int i) {
      return _mm_maskz_loadu_epi8(n + i < job.valid ? columns : static_cast<__mmask16>(0), x + i * job.ldx);
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(token(0)), token(1), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(token(2)), token(3), 1);
    return transpose_dwords_4x4(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
  const auto* x = static_cast<const float*>(job.x) + n * job.ldx + k;
  const auto rule = [&](int i) -> const ToByte& { return job.to[job.to_each && n + i < job.valid ? n + i : 0]; };
  const auto token = [&](int i) {
    const __mmask16 some = n + i < job.valid ? columns : static_cast<__mmask16>(0);
    return Bytes512::round_below(_mm512_maskz_loadu_ps(some, x + i * job.ldx), rule(i));
  };
  // Each has a half of every lane.
  const auto two_tokens = [&](int i) {
    const auto zeros = [&](int at) { return 0x0001000100010001 * static_cast<int64_t>(rule(at).zero_point); };
    const __m512i zero = _mm512_broadcast_i32x4(_mm_set_epi64x(zeros(i + 1), zeros(i)));
    return _mm512_adds_epi16(_mm512_packs_epi32(token(i), token(i + 1)), zero);
  };
  return _mm512_packus_epi16(two_tokens(0), two_tokens(2));
}

SI_INLINE void store_16(uint8_t* p, __m128i a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a); }

// Rows of 16 bytes, lane l of v[i] at row 4 l + i, of which `rows` are there, and of each `bytes`.
SI_INLINE void store_rows(const __m512i (&v)[4], int64_t rows, uint8_t* dst, int64_t pitch, int64_t bytes) {
  const __mmask16 some = first_16(bytes);
  SI_UNROLL for (int i = 0; i < 4; ++i) {
    const __m128i lanes[4] = {_mm512_castsi512_si128(v[i]), _mm512_extracti32x4_epi32(v[i], 1),
                              _mm512_extracti32x4_epi32(v[i], 2), _mm512_extracti32x4_epi32(v[i], 3)};
    SI_UNROLL for (int l = 0; l < 4; ++l) {
      if (4 * l + i >= rows) continue;
      uint8_t* const to = dst + (4 * l + i) * pitch;
      // A store of some bytes takes many times as long.
      if (bytes >= 16)
        store_16(to, lanes[l]);
      else
        _mm_mask_storeu_epi8(to, some, lanes[l]);
    }
  }
}

inline void pack_tokens(const BytePack& job) {
  for (int64_t k = job.k0; k < job.k1; k += 16)
    for (int64_t n = 0; n < job.width && n < job.valid; n += 16) {
      __m512i v[4];
      SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = four_tokens(job, n + 4 * i, k);
      if (job.g == 1) {
        SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = transpose_bytes_4x4(v[i]);
        transpose_in_lanes(v);
        store_rows(v, job.k1 - k, job.tile + k * job.width + n, job.width, 16);
      } else {
        transpose_lanes(v);
        const int64_t groups = (job.k1 - k + 3) / 4;
        SI_UNROLL for (int l = 0; l < 4; ++l) {
          if (l < groups) _mm512_storeu_si512(job.tile + ((k / 4 + l) * job.width + n) * 4, v[l]);
        }
      }
    }
}

// 64 columns (tokens) of one k, those that are there.
SI_INLINE __m512i row_of_tokens(const BytePack& job, int64_t k) {
  if (k >= job.k1) return _mm512_setzero_si512();
  if (!job.floats) {
    const uint64_t some = job.valid >= 64 ? ~uint64_t{0} : (uint64_t{1} << job.valid) - 1;
    return _mm512_maskz_loadu_epi8(some, static_cast<const uint8_t*>(job.x) + k * job.ldx);
  }
  const auto* x = static_cast<const float*>(job.x) + k * job.ldx;
  __m512i v[4];
  SI_UNROLL for (int i = 0; i < 4; ++i) v[i] =
      Bytes512::round_below(_mm512_maskz_loadu_ps(first_16(job.valid - 16 * i), x + 16 * i), *job.to);
  return Bytes512::natural_bytes(Bytes512::pack_bytes(v, job.to->zero_point));
}

inline void pack_channels(const BytePack& job) {
  const int64_t width = job.width;
  if (job.g == 1) {
    for (int64_t k = job.k0; k < job.k1; ++k) {
      const __m512i row = row_of_tokens(job, k);
      uint8_t* const to = job.tile + k * width;
      if (width == 64)
        _mm512_storeu_si512(to, row);
      else if (width == 32)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(row));
      else
        store_16(to, _mm512_castsi512_si128(row));
    }
    return;
  }
  for (int64_t k = job.k0; k < job.k1; k += 4) {
    __m512i v[4];
    Bytes512::interleave(row_of_tokens(job, k), row_of_tokens(job, k + 1), row_of_tokens(job, k + 2),
                         row_of_tokens(job, k + 3), v);
    transpose_lanes(v);
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      if (16 * i < width) _mm512_storeu_si512(job.tile + k * width + 64 * i, v[i]);
    }
  }
}

// One scale for each token, channel by channel: rare, and plain.
inline void pack_channels_each(const BytePack& job) {
  for (int64_t k = job.k0; k < job.k1; ++k)
    for (int64_t n = 0; n < job.valid; ++n) {
      const int64_t at = job.g == 1 ? k * job.width + n : (k / 4 * job.width + n) * 4 + k % 4;
      job.tile[at] = quantize(static_cast<const float*>(job.x)[k * job.ldx + n], job.to[n]);
    }
}

inline void pack_512(const BytePack& job) {
  if (job.token_major) return pack_tokens(job);
  if (job.floats && job.to_each) return pack_channels_each(job);
  pack_channels(job);
}

template <class Copy>
SI_INLINE void copy_runs(const ByteCopy& job, int64_t k, uint8_t* row) {
  const uint8_t* from = job.image + job.taps[k];
  for (int64_t i = 0; i < job.count; ++i) {
    const ByteRun& run = job.runs[i];
    for (int64_t j = 0; j < run.length; j += Copy::kBytes) Copy::copy(from + run.from + j, row + run.first + j);
  }
}

template <class Copy>
SI_INLINE void copy_rows_of_tile(const ByteCopy& job) {
  if (job.g == 1) {
    for (int64_t k = job.k0; k < job.k1; ++k) copy_runs<Copy>(job, k, job.tile + k * job.width);
    return;
  }
  // Rows of a piece are copied first, and interleaved once they have left the store buffer.
  constexpr int64_t kPiece = 64;
  alignas(64) uint8_t rows[(kPiece + 4) * 64];
  for (int64_t first = job.k0; first < job.k1; first += kPiece) {
    const int64_t last = first + kPiece < job.k1 ? first + kPiece : job.k1;
    for (int64_t k = first; k < last; ++k) copy_runs<Copy>(job, k, rows + (k - first) * 64);
    for (int64_t k = first; k < last; k += 4) {
      const uint8_t* from = rows + (k - first) * 64;
      __m512i v[4];
      Bytes512::interleave(Bytes512::load(from), Bytes512::load(from + 64), Bytes512::load(from + 128),
                           Bytes512::load(from + 192), v);
      transpose_lanes(v);
      SI_UNROLL for (int i = 0; i < 4; ++i) {
        if (16 * i < job.width) _mm512_storeu_si512(job.tile + k * job.width + 64 * i, v[i]);
      }
    }
  }
}

struct Copy64 {
  static constexpr int64_t kBytes = 64;
  static SI_INLINE void copy(const uint8_t* from, uint8_t* to) { _mm512_storeu_si512(to, _mm512_loadu_si512(from)); }
};
struct Copy32 {
  static constexpr int64_t kBytes = 32;
  static SI_INLINE void copy(const uint8_t* from, uint8_t* to) { __builtin_memcpy(to, from, 32); }
};
struct Copy16 {
  static constexpr int64_t kBytes = 16;
  static SI_INLINE void copy(const uint8_t* from, uint8_t* to) { __builtin_memcpy(to, from, 16); }
};
struct Copy8 {
  static constexpr int64_t kBytes = 8;
  static SI_INLINE void copy(const uint8_t* from, uint8_t* to) { __builtin_memcpy(to, from, 8); }
};

inline void copy_512(const ByteCopy& job) {
  int64_t longest = 0;
  for (int64_t i = 0; i < job.count; ++i) longest = job.runs[i].length > longest ? job.runs[i].length : longest;
  if (longest > 32) return copy_rows_of_tile<Copy64>(job);
  if (longest > 16) return copy_rows_of_tile<Copy32>(job);
  if (longest > 8) return copy_rows_of_tile<Copy16>(job);
  copy_rows_of_tile<Copy8>(job);
}

inline void transpose_bytes_out_512(const uint8_t* src, int64_t pitch, int64_t rows, int64_t columns, uint8_t* dst,
                                    int64_t ld) {
  BytePack job{};
  job.x = src;
  job.ldx = pitch;
  job.k1 = columns;
  job.valid = rows;
  for (int64_t m = 0; m < rows; m += 16)
    for (int64_t n = 0; n < columns; n += 16) {
      __m512i v[4];
      SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = transpose_bytes_4x4(four_tokens(job, m + 4 * i, n));
      transpose_in_lanes(v);
      store_rows(v, columns - n, dst + n * ld + m, ld, rows - m);
    }
}

inline void quantize_512(const float* src, int64_t count, const ToByte& to, uint8_t* dst) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    Bytes512::store_narrow(dst + i, Bytes512::round_to_byte(_mm512_loadu_ps(src + i), to), to.zero_point);
  for (; i < count; ++i) dst[i] = quantize(src[i], to);
}

}  // namespace
}  // namespace si
