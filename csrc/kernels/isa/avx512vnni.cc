// The tile kernels of int8 weights for AVX-512 with VNNI: vpdpbusd multiplies four bytes of x by four int8 weights and
// adds the products, exactly, to each of 16 int32.
#include "kernels/isa/avx512_bytes.h"
#include "kernels/tile/quads_vector.h"

namespace si {
namespace {

struct Vnni256 : Bytes256 {
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return _mm256_dpbusd_epi32(sum, x, w); }
};

struct Vnni512 : Bytes512 {
  using Half = Vnni256;  // of rows that a whole vector would leave mostly empty
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return _mm512_dpbusd_epi32(sum, x, w); }
};

// Sixteen columns: four rows of 16 bytes are one vector, and two shuffles interleave them.
struct Quartets16 {
  static constexpr int kVectors = 1, kIndices = 4, kSets = 2, kRowBytes = 16;
  static constexpr bool kNatural = true;
  template <class Map>
  static SI_INLINE void load(__m512i (&x)[1], const uint16_t* index, const Map& map) {
    x[0] = Bytes512::quads_of(map(index[0]), map(index[1]), map(index[2]), map(index[3]));
  }
};

constexpr ByteKernels kBytes = chosen({
    {quads_tile<Vnni512, Quartets16, Vnni512, Groups<Vnni512, 1>>,
     quads_tile<Vnni256, Quartets<Vnni256>, Vnni512, Groups<Vnni512, 2>>,
     quads_tile<Vnni512, Quartets<Vnni512>, Vnni512, Groups<Vnni512, 4>>},
    quads_vector<Vnni512>,
    pack_512,
    transpose_bytes_out_512,
    copy_512,
    copy_rows_512,
    quantize_512,
});

}  // namespace

const TileKernels* avx512vnni_tile_kernels() {
  static constexpr TileKernels kernels = narrow_table_of<Avx512>(Isa::avx512, &kBytes, nullptr, &byte_network<Vnni512>);
  return &kernels;
}

}  // namespace si
