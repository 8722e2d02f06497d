// Bytes in the 256-bit and 128-bit vectors of AVX2: what the tiles of int8 weights need beside their product.
//
// Included by the instruction-set translation units only.
#pragma once

#include <immintrin.h>

#include "kernels/tile/byte_moves.h"
#include "kernels/tile/quads_vector.h"

namespace si {
namespace {

struct Bytes256 {
  using Int = __m256i;
  using Sum = Int;
  using Floats = __m256;
  static constexpr int kBytes = 32, kInts = 8, kMostSums = 16;
  static constexpr int32_t kOffset = 0;

  static SI_INLINE Int load(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  // n dwords, and zeros.
  static SI_INLINE Int load_some(const void* p, int n) {
    const Int lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_epi32(static_cast<const int*>(p), _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
  }
  static SI_INLINE void store(void* p, Int a) { _mm256_storeu_si256(static_cast<Int*>(p), a); }
  static SI_INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static SI_INLINE void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
  static SI_INLINE Int spread(const Quad* q) {
    int dword;
    __builtin_memcpy(&dword, q, sizeof dword);
    return _mm256_set1_epi32(dword);
  }
  static SI_INLINE Int broadcast_int(int32_t a) { return _mm256_set1_epi32(a); }
  static SI_INLINE Floats broadcast(float a) { return _mm256_set1_ps(a); }
  static SI_INLINE Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static SI_INLINE Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static SI_INLINE Int mul(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  static SI_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static SI_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static SI_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static SI_INLINE Floats max(Floats bound, Floats x) { return _mm256_max_ps(bound, x); }
  static SI_INLINE Floats min(Floats bound, Floats x) { return _mm256_min_ps(bound, x); }
  static SI_INLINE Floats to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static SI_INLINE int32_t sum(Int a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
  }

  // A byte less its zero point. The bounds are second, and so what a NaN becomes.
  static SI_INLINE Int round_to_byte(Floats v, const ToByte& to) {
    const Floats t = _mm256_max_ps(_mm256_mul_ps(v, _mm256_set1_ps(to.inverse)), _mm256_set1_ps(to.low));
    return _mm256_cvtps_epi32(_mm256_min_ps(t, _mm256_set1_ps(to.high)));
  }
  // Likewise where pack_bytes saturates it from below: of what is too small, and of a NaN, it is the least int32.
  static SI_INLINE Int round_below(Floats v, const ToByte& to) {
    const Floats t = _mm256_mul_ps(v, _mm256_set1_ps(to.inverse));
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(to.high), t));
  }
  // Likewise where it saturates both ways, of numbers that an int32 holds.
  static SI_INLINE Int round(Floats v, const ToByte& to) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(to.inverse)));
  }
  // Bytes of four vectors, lane by lane: of each lane L dwords of v[0], v[1], v[2], v[3]. Saturates.
  static SI_INLINE Int pack_bytes(const Int (&v)[4], int32_t zero_point) {
    const Int zero = _mm256_set1_epi16(static_cast<short>(zero_point));
    return _mm256_packus_epi16(_mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero),
                               _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero));
  }
  // The same bytes vector by vector.
  static SI_INLINE Int natural_bytes(Int packed) {
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  // As many bytes as dwords.
  static SI_INLINE Int load_narrow(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static SI_INLINE void store_narrow(uint8_t* p, Int a, int32_t zero_point) {
    const Int shifted = _mm256_add_epi32(a, _mm256_set1_epi32(zero_point));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }

  static SI_INLINE void interleave(Int a, Int b, Int c, Int d, Int (&x)[4]) {
    const Int ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
    const Int cd0 = _mm256_unpacklo_epi8(c, d), cd1 = _mm256_unpackhi_epi8(c, d);
    x[0] = _mm256_unpacklo_epi16(ab0, cd0);
    x[1] = _mm256_unpackhi_epi16(ab0, cd0);
    x[2] = _mm256_unpacklo_epi16(ab1, cd1);
    x[3] = _mm256_unpackhi_epi16(ab1, cd1);
  }
  // From the order of `interleave`, or of Quartets16x2, to that of the columns.
  static SI_INLINE void natural(Int (&v)[4]) {
    const Int a = _mm256_permute2x128_si256(v[0], v[1], 0x20), b = _mm256_permute2x128_si256(v[2], v[3], 0x20);
    const Int c = _mm256_permute2x128_si256(v[0], v[1], 0x31), d = _mm256_permute2x128_si256(v[2], v[3], 0x31);
    v[0] = a;
    v[1] = b;
    v[2] = c;
    v[3] = d;
  }
  static SI_INLINE void natural(Int (&v)[2]) {
    const Int low = _mm256_permute2x128_si256(v[0], v[1], 0x20);
    v[1] = _mm256_permute2x128_si256(v[0], v[1], 0x31);
    v[0] = low;
  }

  static SI_INLINE Int widen(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // In each 128-bit lane L 16 bytes, from 4 kStep L on.
  template <int kStep>
  static SI_INLINE Int windows(const uint8_t* p) {
    const auto lane = [](const uint8_t* from)
                          SI_INLINE_LAMBDA { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(lane(p)), lane(p + 4 * kStep), 1);
  }
  // In each lane the bytes that `which` numbers, or zero where its upper bit is set.
  static SI_INLINE Int shuffle(Int a, Int which) { return _mm256_shuffle_epi8(a, which); }
  // The even halves of lanes, and then the odd ones.
  static SI_INLINE Int even_halves_first(Int a) { return _mm256_permute4x64_epi64(a, 0xd8); }
  // In each lane the same 16 bytes.
  static SI_INLINE Int lanes_of(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static SI_INLINE Int either(Int a, Int b) { return _mm256_or_si256(a, b); }
  static SI_INLINE Int exclusive_or(Int a, Int b) { return _mm256_xor_si256(a, b); }
  // The bytes that `which` numbers, or zero where it is 16 or more.
  static SI_INLINE Int shuffle_below_16(Int a, Int which) {
    return shuffle(a, _mm256_adds_epu8(which, _mm256_set1_epi8(0x70)));
  }
  // A vector of bytes in kPieces equal pieces, `step` apart, one after another.
  template <int kPieces>
  static SI_INLINE void store_pieces(Int a, uint8_t* p, int64_t step) {
    const __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1);
    if constexpr (kPieces == 1) {
      store(p, a);
    } else if constexpr (kPieces == 2) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), low);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + step), high);
    } else {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p), low);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + step), _mm_unpackhi_epi64(low, low));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 2 * step), high);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 3 * step), _mm_unpackhi_epi64(high, high));
    }
  }
};

// Sixteen columns in two vectors: of the four rows of 16 bytes, interleaved, each vector takes every second quarter.
struct Quartets16x2 {
  static constexpr int kVectors = 2, kIndices = 4, kSets = 1, kRowBytes = 16;
  static constexpr bool kNatural = false;
  template <class Map>
  static SI_INLINE void load(__m256i (&x)[2], const uint16_t* index, const Map& map) {
    const __m128i a = row(map(index[0])), b = row(map(index[1])), c = row(map(index[2])), d = row(map(index[3]));
    const __m256i ab =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(a, b)), _mm_unpackhi_epi8(a, b), 1);
    const __m256i cd =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(c, d)), _mm_unpackhi_epi8(c, d), 1);
    x[0] = _mm256_unpacklo_epi16(ab, cd);
    x[1] = _mm256_unpackhi_epi16(ab, cd);
  }
  static SI_INLINE __m128i row(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
};

// Sixteen bytes at a time, for byte_moves.h.
struct ByteLanes {
  using Lane = __m128i;
  static SI_INLINE Lane load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const Lane*>(p)); }
  static SI_INLINE void store(uint8_t* p, Lane a) { _mm_storeu_si128(reinterpret_cast<Lane*>(p), a); }
  static SI_INLINE Lane zero() { return _mm_setzero_si128(); }
  static SI_INLINE Lane quantize_16(const float* p, const ToByte& to) {
    const __m256i low = Bytes256::round_to_byte(_mm256_loadu_ps(p), to);
    const __m256i high = Bytes256::round_to_byte(_mm256_loadu_ps(p + 8), to);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    const __m256i shifted = _mm256_adds_epi16(words, _mm256_set1_epi16(static_cast<short>(to.zero_point)));
    return _mm_packus_epi16(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
  }
  static SI_INLINE void interleave(Lane (&v)[4]) {
    const Lane ab0 = _mm_unpacklo_epi8(v[0], v[1]), ab1 = _mm_unpackhi_epi8(v[0], v[1]);
    const Lane cd0 = _mm_unpacklo_epi8(v[2], v[3]), cd1 = _mm_unpackhi_epi8(v[2], v[3]);
    v[0] = _mm_unpacklo_epi16(ab0, cd0);
    v[1] = _mm_unpackhi_epi16(ab0, cd0);
    v[2] = _mm_unpacklo_epi16(ab1, cd1);
    v[3] = _mm_unpackhi_epi16(ab1, cd1);
  }
  static SI_INLINE void transpose_dwords(Lane (&v)[4]) {
    const Lane a = _mm_unpacklo_epi32(v[0], v[1]), b = _mm_unpackhi_epi32(v[0], v[1]);
    const Lane c = _mm_unpacklo_epi32(v[2], v[3]), d = _mm_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm_unpacklo_epi64(a, c);
    v[1] = _mm_unpackhi_epi64(a, c);
    v[2] = _mm_unpacklo_epi64(b, d);
    v[3] = _mm_unpackhi_epi64(b, d);
  }
};

// V adds the product, with 16 registers.
template <class V>
constexpr ByteKernels x86_byte_kernels() {
  return {
      {quads_tile<V, Quartets16x2, V, Groups<V, 2>>, quads_tile<V, Quartets<V>, V, Groups<V, 4>>, nullptr},
      quads_vector<V>,
      pack_bytes<ByteLanes>,
      transpose_bytes_out<ByteLanes>,
      copy_bytes<ByteLanes>,
      copy_byte_rows,
      quantize_bytes<ByteLanes>,
      32,
  };
}

}  // namespace
}  // namespace si
