// The vectors of AVX-512 F, BW, DQ and VL: 16 floats, 32 registers.
//
// Included by the instruction-set translation units only.
#pragma once

#include <immintrin.h>

#include "kernels/isa/x86_vectors.h"
#include "kernels/tile/table.h"

namespace si {
namespace {

struct Avx512 {
  using Reg = __m512;
  using Half = X256;  // of rows that a whole vector would leave mostly empty
  static constexpr int kWidth = 16;
  // 4 x 6 accumulators, 6 vectors of x and a broadcast weight: 31 of 32 registers.
  static constexpr int kMaxVectors = 6;
  using Narrow = NarrowTiles<NarrowTile<Single, 1, 4>, NarrowTile<X128, 1, 4>, NarrowTile<X256, 1, 4>,
                             NarrowTile<Avx512, 1, 4>, NarrowTile<Avx512, 2, 2>>;

  // Of a the bits that are set in the other.
  static SI_INLINE Reg bits_in(Reg a, Reg bits) { return _mm512_and_ps(a, bits); }
  static SI_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static SI_INLINE void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static SI_INLINE Reg broadcast(float a) { return _mm512_set1_ps(a); }
  // A bfloat16 is the upper half of a float32.
  static SI_INLINE Reg from_bf16(__m256i narrow) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_set1_epi16(static_cast<short>(*p)), 16));
  }
  static SI_INLINE Reg load_bf16(const uint16_t* p) {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static SI_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static SI_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static SI_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static SI_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static SI_INLINE Reg max(Reg bound, Reg x) { return _mm512_max_ps(bound, x); }
  static SI_INLINE Reg min(Reg bound, Reg x) { return _mm512_min_ps(bound, x); }
  static SI_INLINE Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static SI_INLINE Reg round(Reg a) { return _mm512_roundscale_ps(a, 0); }
  static SI_INLINE Reg copy_sign(Reg size, Reg sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, size), _mm512_and_ps(bit, sign));
  }
  // 2^n for integral n in [-126, 128], Inf for 128.
  static SI_INLINE Reg pow2(Reg n) {
    const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
  }
  static SI_INLINE Reg where_less(Reg a, Reg b, Reg yes, Reg no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  // Of two vectors every second element, from the first or from the second on.
  static SI_INLINE Reg even(Reg a, Reg b) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(a, index, b);
  }
  static SI_INLINE Reg odd(Reg a, Reg b) {
    const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(a, index, b);
  }
  // In a register from here on: compilers load again and again what an instruction can take from memory.
  static SI_INLINE void keep(Reg& a) { asm("" : "+v"(a)); }
  static SI_INLINE float sum(Reg a) { return _mm512_reduce_add_ps(a); }

  static SI_INLINE Reg gather(const float* x, const uint16_t* index) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(narrow), x, 4);
  }
  static SI_INLINE Reg gather(const float* x, const uint32_t* index) {
    return _mm512_i32gather_ps(_mm512_loadu_si512(index), x, 4);
  }
  struct MaskedLoad {
    __mmask16 mask;
    SI_INLINE Reg operator()(const float* p) const { return _mm512_maskz_loadu_ps(mask, p); }
    SI_INLINE Reg operator()(const BFloat16* p) const { return from_bf16(_mm256_maskz_loadu_epi16(mask, p)); }
  };
  // Fewer columns than a vector: one masked step.
  template <class VectorStep, class ScalarStep>
  static SI_INLINE void gather_tail(const float* x, const uint16_t* index, int count, VectorStep&& step, ScalarStep&&) {
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, index));
    const Reg xv = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, wide, x, 4);
    step(xv, MaskedLoad{mask});
  }

  static SI_INLINE void transpose(Reg (&r)[16]) {
    Reg t[16];
    SI_UNROLL for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
  }
};

}  // namespace
}  // namespace si
