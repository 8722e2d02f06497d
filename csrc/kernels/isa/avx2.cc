// The tile kernels for AVX2 with FMA. Of int8 weights vpmaddwd multiplies the even and the odd bytes of x, as words, by
// the same words of the weights: exact, where vpmaddubsw saturates.
#include "kernels/isa/avx2_halves.h"

namespace si {
namespace {

struct Words256 : Bytes256 {
  using Half = Words256;
  static constexpr int kMostSums = 8;
  static SI_INLINE Int dot(Int sum, Int x, Int w) {
    const Int even =
        _mm256_madd_epi16(_mm256_and_si256(x, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const Int odd = _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
};

constexpr ByteKernels kBytes = chosen(x86_byte_kernels<Words256>());

}  // namespace

const TileKernels* avx2_tile_kernels() {
  static constexpr TileKernels kernels = table_of<Avx2>(Isa::avx2, &kBytes, &kPairs256, &byte_network<Words256>);
  return &kernels;
}

}  // namespace si
