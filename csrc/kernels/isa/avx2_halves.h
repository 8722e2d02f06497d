// bfloat16 in the vectors of AVX2: a pair is two floats, whose upper halves it has, and its product two multiply-adds.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/isa/avx2_vector.h"
#include "kernels/isa/x86_bytes.h"
#include "kernels/tile/half_moves.h"
#include "kernels/tile/pairs_tile.h"

namespace si {
namespace {

struct Halves256 {
  using Floats = Avx2;
  using Sum = __m256;
  // The first and the second value of each pair.
  struct Int {
    Sum first, second;
  };
  static constexpr int kBytes = 32, kInts = 8, kMostSums = 8;

  static SI_INLINE __m256i load(const void* p) { return Bytes256::load(p); }
  static SI_INLINE __m256i load_some(const void* p, int n) { return Bytes256::load_some(p, n); }
  static SI_INLINE void store_floats(float* p, Sum a) { _mm256_storeu_ps(p, a); }
  static SI_INLINE Int wide(__m256i pairs) {
    const __m256i second = _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(second)};
  }
  static SI_INLINE Int spread(const Pair* p) {
    int dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return wide(_mm256_set1_epi32(dword));
  }
  static SI_INLINE Sum broadcast(float a) { return Avx2::broadcast(a); }
  static SI_INLINE Sum add(Sum a, Sum b) { return Avx2::add(a, b); }
  static SI_INLINE Sum max(Sum bound, Sum x) { return Avx2::max(bound, x); }
  static SI_INLINE Sum min(Sum bound, Sum x) { return Avx2::min(bound, x); }
  static SI_INLINE float sum(Sum a) { return Avx2::sum(a); }
  static SI_INLINE Sum dot(Sum sum, const Int& x, const Int& w) {
    return _mm256_fmadd_ps(x.second, w.second, _mm256_fmadd_ps(x.first, w.first, sum));
  }
  static SI_INLINE Sum dot(Sum sum, __m256i x, __m256i w) { return dot(sum, wide(x), wide(w)); }

  // Zeros below a bfloat16 make a float of it: the columns are those of a true interleave.
  static SI_INLINE void interleave(__m256i a, __m256i b, Int& low, Int& high) {
    const __m256i zero = _mm256_setzero_si256();
    low = {_mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, a)), _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, b))};
    high = {_mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, a)), _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, b))};
  }
  // From the order of `interleave` to that of the columns.
  static SI_INLINE void natural(Sum& low, Sum& high) {
    const Sum a = _mm256_permute2f128_ps(low, high, 0x20);
    high = _mm256_permute2f128_ps(low, high, 0x31);
    low = a;
  }

  // bfloat16_operand of each, as a dword.
  static SI_INLINE __m256i narrow(Sum v) {
    const __m256i bits = _mm256_castps_si256(v), one = _mm256_set1_epi32(1);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f800000));
    const __m256i tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    const __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0x80000000u)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i number = _mm256_blendv_epi8(rounded, sign, tiny);
    return _mm256_srli_epi32(_mm256_blendv_epi8(number, quiet, nan), 16);
  }
  static SI_INLINE void store_narrow(uint16_t* p, Sum a) {
    const __m256i dwords = narrow(a);
    const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(dwords), _mm256_extracti128_si256(dwords, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), halves);
  }
  // Packing lane by lane undoes `interleave`.
  static SI_INLINE void store_interleaved(uint16_t* p, Sum low, Sum high) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_packus_epi32(narrow(low), narrow(high)));
  }
};

// Sixteen columns are what the registers hold.
constexpr PairKernels kPairs256 = chosen(PairKernels{
    {pairs_tile<Halves256, Interleaved<Halves256, 1>>, nullptr, nullptr},
    pairs_vector<Halves256>,
    narrow_halves<Halves256>,
    transpose_halves<Halves256>,
    copy_bytes<ByteLanes>,
    16,
});

}  // namespace
}  // namespace si
