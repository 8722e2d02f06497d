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
  using Sum = Int;
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
  static SI_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
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
  // Likewise where it saturates both ways, of numbers that an int32 holds.
  static SI_INLINE Int round(Floats v, const ToByte& to) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(to.inverse)));
  }
  // Bytes of four vectors, lane by lane: of each lane L dwords of v[0], v[1], v[2], v[3]. Saturates.
  static SI_INLINE Int pack_bytes(const Int (&v)[4], int32_t zero_point) {
    const Int zero = _mm512_set1_epi16(static_cast<short>(zero_point));
    return _mm512_packus_epi16(_mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero),
                               _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero));
  }
  // The same bytes vector by vector.
  static SI_INLINE Int natural_bytes(Int packed) { return transpose_dwords_4x4(packed); }
  // As many bytes as dwords.
  static SI_INLINE Int load_narrow(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
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

  static SI_INLINE Int widen(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SI_INLINE __m256i two_rows(const uint8_t* a, const uint8_t* b) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)),
                                   1);
  }
  // The bytes of 16 columns of four rows as 16 dwords.
  static SI_INLINE Int quads_of(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d) {
    const __m512i ab = _mm512_castsi256_si512(two_rows(a, b)), cd = _mm512_castsi256_si512(two_rows(c, d));
    const __m512i order = _mm512_setr_epi32(0, 4, 16, 20, 1, 5, 17, 21, 2, 6, 18, 22, 3, 7, 19, 23);
    return transpose_bytes_4x4(_mm512_permutex2var_epi32(ab, order, cd));
  }
  // In each 128-bit lane L 16 bytes, from 4 kStep L on.
  template <int kStep>
  static SI_INLINE Int windows(const uint8_t* p) {
    const Int dwords =
        _mm512_setr_epi32(0, 1, 2, 3, kStep, kStep + 1, kStep + 2, kStep + 3, 2 * kStep, 2 * kStep + 1, 2 * kStep + 2,
                          2 * kStep + 3, 3 * kStep, 3 * kStep + 1, 3 * kStep + 2, 3 * kStep + 3);
    return _mm512_permutexvar_epi32(dwords, load(p));
  }
  // In each lane the bytes that `which` numbers, or zero where its upper bit is set.
  static SI_INLINE Int shuffle(Int a, Int which) { return _mm512_shuffle_epi8(a, which); }
  // The even halves of lanes, and then the odd ones.
  static SI_INLINE Int even_halves_first(Int a) {
    return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), a);
  }
  // In each lane the same 16 bytes.
  static SI_INLINE Int lanes_of(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SI_INLINE Int either(Int a, Int b) { return _mm512_or_si512(a, b); }
  static SI_INLINE Int exclusive_or(Int a, Int b) { return _mm512_xor_si512(a, b); }
  // The bytes that `which` numbers, or zero where it is 16 or more.
  static SI_INLINE Int shuffle_below_16(Int a, Int which) {
    return shuffle(a, _mm512_adds_epu8(which, _mm512_set1_epi8(0x70)));
  }
  // A vector of bytes in kPieces equal pieces, `step` apart, one after another.
  template <int kPieces>
  static SI_INLINE void store_pieces(Int a, uint8_t* p, int64_t step) {
    if constexpr (kPieces == 1) {
      store(p, a);
    } else if constexpr (kPieces == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(a));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + step), _mm512_extracti64x4_epi64(a, 1));
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(a));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + step), _mm512_extracti32x4_epi32(a, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * step), _mm512_extracti32x4_epi32(a, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * step), _mm512_extracti32x4_epi32(a, 3));
    }
  }
};

// ---- x into a tile, y out of it ---------------------------------------------------------------------------------

SI_INLINE __mmask16 first_16(int64_t n) {
  return n >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (n > 0 ? n : 0)) - 1);
}

// The rules of a tile's tokens, as vectors want them: read once, used for all of K.
struct TokenRules {
  float inverse[kMostDwordWidth], high[kMostDwordWidth];
  // Of two tokens each: their zero points as words, in halves of a lane.
  alignas(16) int64_t zeros[kMostDwordWidth];

  explicit TokenRules(const BytePack& job) {
    for (int64_t n = 0; n < kMostDwordWidth; ++n) {
      const ToByte& to = job.to[job.to_each && n < job.valid ? n : 0];
      inverse[n] = to.inverse;
      high[n] = to.high;
      zeros[n] = 0x0001000100010001 * static_cast<int64_t>(to.zero_point);
    }
  }
};

// 16 columns from k on of 4 tokens, as bytes: lane l has columns k + 4 l to k + 4 l + 3 of each token in turn. Tokens
// at or past `valid` and columns past k1 read nothing.
SI_INLINE __m512i four_byte_tokens(const BytePack& job, int64_t n, int64_t k) {
  const __mmask16 columns = first_16(job.k1 - k);
  const auto* x = static_cast<const uint8_t*>(job.x) + n * job.ldx + k;
  const auto token = [&](int i) SI_INLINE_LAMBDA {
    return _mm_maskz_loadu_epi8(n + i < job.valid ? columns : static_cast<__mmask16>(0), x + i * job.ldx);
  };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(token(0)), token(1), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(token(2)), token(3), 1);
  return transpose_dwords_4x4(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

// Of floats, whose rules saturate from below.
SI_INLINE __m512i four_float_tokens(const BytePack& job, const TokenRules& rules, int64_t n, int64_t k) {
  const __mmask16 columns = first_16(job.k1 - k);
  const auto* x = static_cast<const float*>(job.x) + n * job.ldx + k;
  const auto token = [&](int i) SI_INLINE_LAMBDA {
    const __mmask16 some = n + i < job.valid ? columns : static_cast<__mmask16>(0);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x + i * job.ldx), _mm512_set1_ps(rules.inverse[n + i]));
    return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(rules.high[n + i]), v));
  };
  const auto two_tokens = [&](int i) SI_INLINE_LAMBDA {
    const __m128i zeros = _mm_load_si128(reinterpret_cast<const __m128i*>(rules.zeros + n + i));
    return _mm512_adds_epi16(_mm512_packs_epi32(token(i), token(i + 1)), _mm512_broadcast_i32x4(zeros));
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

template <class FourTokens>
SI_INLINE void pack_tokens(const BytePack& job, const FourTokens& four_tokens) {
  for (int64_t k = job.k0; k < job.k1; k += 16)
    for (int64_t n = 0; n < job.width && n < job.valid; n += 16) {
      __m512i v[4];
      SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = four_tokens(n + 4 * i, k);
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

// A tile as wide as what is there, of g = 1, has the bytes as they lie.
template <int kWidth>
SI_INLINE void copy_channels(const BytePack& job) {
  const auto* x = static_cast<const uint8_t*>(job.x) + job.k0 * job.ldx;
  const int64_t ldx = job.ldx, rows = job.k1 - job.k0;
  uint8_t* const to = job.tile + job.k0 * kWidth;
  for (int64_t k = 0; k < rows; ++k) __builtin_memcpy(to + k * kWidth, x + k * ldx, kWidth);
}

inline void pack_channels(const BytePack& job) {
  const int64_t width = job.width;
  if (job.g == 1 && !job.floats && job.valid == width)
    return width == 64 ? copy_channels<64>(job) : width == 32 ? copy_channels<32>(job) : copy_channels<16>(job);
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

inline void pack_512(const BytePack& job) {
  if (job.token_major && job.floats) {
    const TokenRules rules(job);
    return pack_tokens(job, [&](int64_t n, int64_t k) SI_INLINE_LAMBDA { return four_float_tokens(job, rules, n, k); });
  }
  if (job.token_major)
    return pack_tokens(job, [&](int64_t n, int64_t k) SI_INLINE_LAMBDA { return four_byte_tokens(job, n, k); });
  if (job.floats && job.to_each) return pack_byte_channels_each(job);
  pack_channels(job);
}

// Bytes that go from each row of an image to the same place in each row of a tile.
struct Move {
  int32_t from, to, size;
};

template <int kSize>
SI_INLINE void move_column(const uint8_t* image, const int32_t* taps, int64_t rows, uint8_t* tile, int64_t pitch) {
  for (int64_t k = 0; k < rows; ++k) __builtin_memcpy(tile + k * pitch, image + taps[k], kSize);
}

SI_INLINE void move_column(const Move& move, const ByteCopy& job, int64_t k, int64_t rows, uint8_t* tile,
                           int64_t pitch) {
  const uint8_t* const image = job.image + move.from;
  const int32_t* const taps = job.taps + k;
  uint8_t* const to = tile + move.to;
  switch (move.size) {
    case 64:
      return move_column<64>(image, taps, rows, to, pitch);
    case 32:
      return move_column<32>(image, taps, rows, to, pitch);
    case 16:
      return move_column<16>(image, taps, rows, to, pitch);
    case 8:
      return move_column<8>(image, taps, rows, to, pitch);
    case 4:
      return move_column<4>(image, taps, rows, to, pitch);
    case 2:
      return move_column<2>(image, taps, rows, to, pitch);
    default:
      return move_column<1>(image, taps, rows, to, pitch);
  }
}

// The runs as moves of 1 to 64 bytes. What one writes past its run the next ones overwrite; none leaves the row.
SI_INLINE int moves_of(const ByteCopy& job, Move (&moves)[2 * kMostDwordWidth]) {
  int count = 0;
  for (int64_t i = 0; i < job.count; ++i) {
    const auto from = static_cast<int32_t>(job.runs[i].from), to = static_cast<int32_t>(job.runs[i].first);
    const auto length = static_cast<int32_t>(job.runs[i].length);
    int32_t size = 1;
    while (size < length) size *= 2;
    if (to + size <= job.width) {
      moves[count++] = {from, to, size};
      continue;
    }
    // Two that overlap.
    size /= 2;
    moves[count++] = {from, to, size};
    moves[count++] = {from + length - size, to + length - size, size};
  }
  return count;
}

inline void copy_512(const ByteCopy& job) {
  Move moves[2 * kMostDwordWidth];
  const int count = moves_of(job, moves);
  // Rows of a piece stay in L1 from move to move; those of g = 4 are interleaved from there.
  constexpr int64_t kPiece = 64;
  alignas(64) uint8_t rows[kPiece * kMostDwordWidth];
  for (int64_t first = 0; first < job.K; first += kPiece) {
    const int64_t piece = first + kPiece < job.K ? kPiece : job.K - first;
    uint8_t* const to = job.g == 1 ? job.tile + first * job.width : rows;
    const int64_t pitch = job.g == 1 ? job.width : kMostDwordWidth;
    for (int i = 0; i < count; ++i) move_column(moves[i], job, first, piece, to, pitch);
    if (job.g == 1) continue;
    for (int64_t k = 0; k < piece; k += 4) {
      const uint8_t* from = rows + k * kMostDwordWidth;
      __m512i v[4];
      Bytes512::interleave(Bytes512::load(from), Bytes512::load(from + 64), Bytes512::load(from + 128),
                           Bytes512::load(from + 192), v);
      transpose_lanes(v);
      SI_UNROLL for (int i = 0; i < 4; ++i) {
        if (16 * i < job.width) _mm512_storeu_si512(job.tile + (first + k) * job.width + 64 * i, v[i]);
      }
    }
  }
}

// A row in pieces of one length, the last of which overlaps. False where it is shorter.
template <int kPiece>
SI_INLINE bool copy_row(const uint8_t* src, uint8_t* dst, int64_t count) {
  if (count < kPiece) return false;
  for (int64_t i = 0; i + kPiece <= count; i += kPiece) __builtin_memcpy(dst + i, src + i, kPiece);
  __builtin_memcpy(dst + count - kPiece, src + count - kPiece, kPiece);
  return true;
}

// Every second byte: 16 at a time, the last of which overlap.
SI_INLINE bool copy_even_row(const uint8_t* src, uint8_t* dst, int64_t count) {
  if (count < 16) return false;
  const auto sixteen = [&](int64_t i) {
    // The last byte of a row may be the last of all.
    const __m256i pairs = _mm256_maskz_loadu_epi8(0x7fffffff, src + 2 * i);
    store_16(dst + i, _mm256_cvtepi16_epi8(pairs));
  };
  for (int64_t i = 0; i + 16 <= count; i += 16) sixteen(i);
  sixteen(count - 16);
  return true;
}

inline void copy_rows_512(const ByteRows& job) {
  for (int64_t r = 0; r < job.rows; ++r) {
    const uint8_t* src = job.src + r * job.src_pitch;
    uint8_t* dst = job.dst + r * job.dst_pitch;
    if (job.step == 1 && (copy_row<32>(src, dst, job.count) || copy_row<16>(src, dst, job.count) ||
                          copy_row<8>(src, dst, job.count) || copy_row<4>(src, dst, job.count)))
      continue;
    if (job.step == 2 && copy_even_row(src, dst, job.count)) continue;
    for (int64_t i = 0; i < job.count; ++i) dst[i] = src[i * job.step];
  }
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
      SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = transpose_bytes_4x4(four_byte_tokens(job, m + 4 * i, n));
      transpose_in_lanes(v);
      store_rows(v, columns - n, dst + n * ld + m, ld, rows - m);
    }
}

inline void quantize_512(const float* src, int64_t count, const ToByte& to, uint8_t* dst) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    Bytes512::store_narrow(dst + i, Bytes512::round_to_byte(_mm512_loadu_ps(src + i), to), to.zero_point);
  if (i < count && count >= 16) {
    i = count - 16;
    Bytes512::store_narrow(dst + i, Bytes512::round_to_byte(_mm512_loadu_ps(src + i), to), to.zero_point);
    return;
  }
  for (; i < count; ++i) dst[i] = quantize(src[i], to);
}

}  // namespace
}  // namespace si
