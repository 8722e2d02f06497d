// The tile kernels of int8 weights for AVX-512 with VNNI: vpdpbusd multiplies four bytes of x by four int8 weights and
// adds the products, exactly, to each of 16 int32.
#include "kernels/isa/avx512_bytes.h"
#include "kernels/tile/quads_tile.h"

namespace si {
namespace {

struct Vnni512 : Bytes512 {
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return _mm512_dpbusd_epi32(sum, x, w); }
};

struct Vnni256 : Bytes256 {
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return _mm256_dpbusd_epi32(sum, x, w); }
};

// Sixteen columns: four rows of 16 bytes are one vector, and two shuffles interleave them.
struct Quartets16 {
  static constexpr int kVectors = 1, kIndices = 4, kSets = 2, kRowBytes = 16;
  static constexpr bool kNatural = true;
  static SI_INLINE __m256i two_rows(const uint8_t* a, const uint8_t* b) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), _mm_loadu_si128(reinterpret_cast<const __m128i*>(b)),
                                   1);
  }
  template <class Map>
  static SI_INLINE void load(__m512i (&x)[1], const uint16_t* index, const Map& map) {
    const __m256i ab = two_rows(map(index[0]), map(index[1])), cd = two_rows(map(index[2]), map(index[3]));
    x[0] = transpose_bytes_4x4(transpose_dwords_4x4(_mm512_inserti64x4(_mm512_castsi256_si512(ab), cd, 1)));
  }
};

constexpr ByteKernels kBytes = {
    {quads_tile<Vnni512, Quartets16, Vnni512, Groups<Vnni512, 1>>,
     quads_tile<Vnni256, Quartets<Vnni256>, Vnni512, Groups<Vnni512, 2>>,
     quads_tile<Vnni512, Quartets<Vnni512>, Vnni512, Groups<Vnni512, 4>>},
    quads_vector<Vnni512>,
    pack_512,
    transpose_bytes_out_512,
    copy_512,
    copy_rows_512,
    quantize_512,
};

}  // namespace

const TileKernels* avx512vnni_tile_kernels() {
  static constexpr TileKernels kernels = narrow_table_of<Avx512>(Isa::avx512, &kBytes, nullptr);
  return &kernels;
}

}  // namespace si
