// The narrow vectors of x86 that tiles of few tokens use, beside the widest of each instruction set.
//
// Included by the instruction-set translation units only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/inline.h"

namespace si {
namespace {

struct X128 {
  using Reg = __m128;
  static constexpr int kWidth = 4;
  // Of a the bits that are set in the other.
  static SI_INLINE Reg bits_in(Reg a, Reg bits) { return _mm_and_ps(a, bits); }
  static SI_INLINE Reg load(const float* p) { return _mm_loadu_ps(p); }
  static SI_INLINE void store(float* p, Reg a) { _mm_storeu_ps(p, a); }
  static SI_INLINE Reg broadcast(float a) { return _mm_set1_ps(a); }
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_set1_epi16(static_cast<short>(*p)), 16));
  }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm_fmadd_ps(a, b, c); }
  static SI_INLINE Reg add(Reg a, Reg b) { return _mm_add_ps(a, b); }
  static SI_INLINE Reg max(Reg bound, Reg x) { return _mm_max_ps(bound, x); }
  static SI_INLINE Reg min(Reg bound, Reg x) { return _mm_min_ps(bound, x); }
  // In a register from here on: compilers load again and again what an instruction can take from memory.
  static SI_INLINE void keep(Reg& a) { asm("" : "+x"(a)); }
  static SI_INLINE Reg even(Reg a, Reg b) { return _mm_shuffle_ps(a, b, 0x88); }
  static SI_INLINE Reg odd(Reg a, Reg b) { return _mm_shuffle_ps(a, b, 0xdd); }
};

struct X256 {
  using Reg = __m256;
  static constexpr int kWidth = 8;
  // Of a the bits that are set in the other.
  static SI_INLINE Reg bits_in(Reg a, Reg bits) { return _mm256_and_ps(a, bits); }
  static SI_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static SI_INLINE void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static SI_INLINE Reg broadcast(float a) { return _mm256_set1_ps(a); }
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(static_cast<short>(*p)), 16));
  }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static SI_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static SI_INLINE Reg max(Reg bound, Reg x) { return _mm256_max_ps(bound, x); }
  static SI_INLINE Reg min(Reg bound, Reg x) { return _mm256_min_ps(bound, x); }
  static SI_INLINE void keep(Reg& a) { asm("" : "+x"(a)); }
  static SI_INLINE Reg even(Reg a, Reg b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
  }
  static SI_INLINE Reg odd(Reg a, Reg b) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
  }
};

}  // namespace
}  // namespace si
