// The tile kernels of pairs of bfloat16 weights for AVX-512 with BF16: vdpbf16ps multiplies two bfloat16 of x by two
// weights and adds the products to each of 16 float32.
#include "kernels/isa/avx512_halves.h"

namespace si {
namespace {

struct Bf16Halves512 : Halves512 {
  static SI_INLINE __m512bh halves(Int a) { return reinterpret_cast<__m512bh>(a); }
  static SI_INLINE Sum dot(Sum sum, Int x, Int w) { return _mm512_dpbf16_ps(sum, halves(x), halves(w)); }
  static SI_INLINE __m256i narrow(Sum v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
  static SI_INLINE void store_narrow(uint16_t* p, Sum a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static SI_INLINE void store_interleaved(uint16_t* p, Sum low, Sum high) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, both));
  }
};

}  // namespace

const TileKernels* avx512bf16_tile_kernels() {
  static constexpr TileKernels kernels =
      narrow_table_of<Avx512>(Isa::avx512, nullptr, &pair_kernels_512<Bf16Halves512>);
  return &kernels;
}

}  // namespace si
