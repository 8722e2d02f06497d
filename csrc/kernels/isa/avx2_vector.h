// The vectors of AVX2 with FMA: 8 floats, 16 registers.
//
// Included by the instruction-set translation units only.
#pragma once

#include <immintrin.h>

#include "kernels/isa/x86_vectors.h"
#include "kernels/tile/table.h"

namespace si {
namespace {

struct Avx2 {
  using Reg = __m256;
  using Half = X128;  // of rows that a whole vector would leave mostly empty
  static constexpr int kWidth = 8;
  // 4 x 3 accumulators, 3 vectors of x and a broadcast weight fill the 16 registers.
  static constexpr int kMaxVectors = 3;
  using Narrow = NarrowTiles<NarrowTile<Single, 1, 4>, NarrowTile<X128, 1, 2>, NarrowTile<X256, 1, 2>,
                             NarrowTile<X256, 2, 1>, NoTile>;

  // Of a the bits that are set in the other.
  static SI_INLINE Reg bits_in(Reg a, Reg bits) { return _mm256_and_ps(a, bits); }
  static SI_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static SI_INLINE void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static SI_INLINE Reg broadcast(float a) { return _mm256_set1_ps(a); }
  // A bfloat16 is the upper half of a float32.
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(static_cast<short>(*p)), 16));
  }
  static SI_INLINE Reg load_bf16(const uint16_t* p) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
  }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static SI_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static SI_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static SI_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static SI_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static SI_INLINE Reg max(Reg bound, Reg x) { return _mm256_max_ps(bound, x); }
  static SI_INLINE Reg min(Reg bound, Reg x) { return _mm256_min_ps(bound, x); }
  static SI_INLINE Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static SI_INLINE Reg round(Reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static SI_INLINE Reg copy_sign(Reg size, Reg sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, size), _mm256_and_ps(bit, sign));
  }
  // 2^n for integral n in [-126, 128], Inf for 128.
  static SI_INLINE Reg pow2(Reg n) {
    const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
  }
  static SI_INLINE Reg where_less(Reg a, Reg b, Reg yes, Reg no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  // Of two vectors every second element, from the first or from the second on.
  static SI_INLINE Reg even(Reg a, Reg b) { return X256::even(a, b); }
  static SI_INLINE Reg odd(Reg a, Reg b) { return X256::odd(a, b); }
  static SI_INLINE void keep(Reg& a) { X256::keep(a); }
  static SI_INLINE float sum(Reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  static SI_INLINE Reg gather(const float* x, const uint16_t* index) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(index));
    return _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(narrow), 4);
  }
  static SI_INLINE Reg gather(const float* x, const uint32_t* index) {
    return _mm256_i32gather_ps(x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), 4);
  }
  template <class VectorStep, class ScalarStep>
  static SI_INLINE void gather_tail(const float*, const uint16_t*, int count, VectorStep&&, ScalarStep&& step) {
    for (int i = 0; i < count; ++i) step(i);
  }

  static SI_INLINE void transpose(Reg (&r)[8]) {
    Reg t[8];
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    SI_UNROLL for (int i = 0; i < 2; ++i) {
      r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    SI_UNROLL for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    SI_UNROLL for (int i = 0; i < 8; ++i) r[i] = t[i];
  }
};

}  // namespace
}  // namespace si
