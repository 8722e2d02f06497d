// bfloat16 in the vectors of AVX-512: what the tiles of pairs need beside their product, and the ways of x into a tile
// and of y out of it.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/isa/avx512_bytes.h"
#include "kernels/tile/pairs_tile.h"

namespace si {
namespace {

struct Halves512 {
  using Int = __m512i;
  using Sum = __m512;
  static constexpr int kBytes = 64, kInts = 16, kMostSums = 16;

  static SI_INLINE Int load(const void* p) { return _mm512_loadu_si512(p); }
  // n dwords, and zeros.
  static SI_INLINE Int load_some(const void* p, int n) {
    return _mm512_maskz_loadu_epi32(n >= kInts ? 0xffff : static_cast<__mmask16>((1u << n) - 1), p);
  }
  static SI_INLINE void store_floats(float* p, Sum a) { _mm512_storeu_ps(p, a); }
  static SI_INLINE Int spread(const Pair* p) {
    int dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return _mm512_set1_epi32(dword);
  }
  static SI_INLINE Sum broadcast(float a) { return _mm512_set1_ps(a); }
  static SI_INLINE Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
  static SI_INLINE Sum max(Sum bound, Sum x) { return _mm512_max_ps(bound, x); }
  static SI_INLINE Sum min(Sum bound, Sum x) { return _mm512_min_ps(bound, x); }
  static SI_INLINE float sum(Sum a) { return _mm512_reduce_add_ps(a); }

  static SI_INLINE void interleave(Int a, Int b, Int& low, Int& high) {
    low = _mm512_unpacklo_epi16(a, b);
    high = _mm512_unpackhi_epi16(a, b);
  }
  static SI_INLINE Int interleave_half(const void* a, const void* b) {
    const auto wide = [](const void* p) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    };
    return _mm512_or_si512(wide(a), _mm512_slli_epi32(wide(b), 16));
  }
  // From the order of `interleave` to that of the columns.
  static SI_INLINE void natural(Sum& low, Sum& high) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    const Sum a = _mm512_permutex2var_ps(low, first, high);
    high = _mm512_permutex2var_ps(low, second, high);
    low = a;
  }
};

// The product without instructions of its own: two of float32. Operands and results are the same, the sum of a pair is
// rounded twice.
struct WideHalves512 : Halves512 {
  static SI_INLINE Sum dot(Sum sum, Int x, Int w) {
    const Int high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)),
                          sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(w, high)), sum);
  }
  // bfloat16_operand of each.
  static SI_INLINE __m256i narrow(Sum v) {
    const __m512i bits = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    rounded = _mm512_mask_mov_epi32(rounded, tiny, sign);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
  static SI_INLINE void store_narrow(uint16_t* p, Sum a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static SI_INLINE void store_interleaved(uint16_t* p, Sum low, Sum high) {
    natural(low, high);
    store_narrow(p, low);
    store_narrow(p + kInts, high);
  }
};

// ---- x into a tile, y out of it ---------------------------------------------------------------------------------

// Up to 16 values from element `at` on, the rest zero.
SI_INLINE __m512 load_some_16(const void* src, si_value_type type, int64_t at, __mmask16 some) {
  if (type == SI_F32) return _mm512_maskz_loadu_ps(some, static_cast<const float*>(src) + at);
  return Avx512::from_bf16(_mm256_maskz_loadu_epi16(some, static_cast<const uint16_t*>(src) + at));
}

SI_INLINE void store_some_16(uint16_t* p, __m256i values, int64_t count) {
  // A store of some elements takes many times as long.
  if (count >= 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), values);
  else
    _mm256_mask_storeu_epi16(p, first_16(count), values);
}

template <class V>
void narrow_512(const void* src, si_value_type type, int64_t count, uint16_t* dst) {
  for (int64_t i = 0; i < count; i += 16)
    store_some_16(dst + i, V::narrow(load_some_16(src, type, i, first_16(count - i))), count - i);
}

template <class V>
void transpose_narrow_512(const void* src, si_value_type type, int64_t ld, int64_t rows, int64_t columns, uint16_t* dst,
                          int64_t pitch) {
  for (int64_t r = 0; r < rows; r += 16)
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 some = first_16(columns - c);
      __m512 v[16];
      SI_UNROLL for (int i = 0; i < 16; ++i) v[i] =
          r + i < rows ? load_some_16(src, type, (r + i) * ld + c, some) : _mm512_setzero_ps();
      Avx512::transpose(v);
      SI_UNROLL for (int i = 0; i < 16; ++i) {
        if (c + i >= columns) break;
        store_some_16(dst + (c + i) * pitch + r, V::narrow(v[i]), rows - r);
      }
    }
}

template <class V>
constexpr PairKernels pair_kernels_512 = {
    {pairs_tile<V, InterleavedHalf<V>>, pairs_tile<V, Interleaved<V, 1>>, pairs_tile<V, Interleaved<V, 2>>},
    pairs_vector<V>,
    narrow_512<V>,
    transpose_narrow_512<V>,
    copy_512,
};

}  // namespace
}  // namespace si
