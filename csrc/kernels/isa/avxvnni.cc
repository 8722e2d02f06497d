// The tile kernels of int8 weights for AVX-VNNI: vpdpbusd of 256 bits in the encoding of AVX, with its 16 registers,
// for processors that have no AVX-512.
#include "kernels/isa/avx2_vector.h"
#include "kernels/isa/x86_bytes.h"

namespace si {
namespace {

struct AvxVnni : Bytes256 {
  using Half = AvxVnni;
  static constexpr int kMostSums = 8;
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
};

constexpr ByteKernels kBytes = chosen(x86_byte_kernels<AvxVnni>());

}  // namespace

const TileKernels* avxvnni_tile_kernels() {
  static constexpr TileKernels kernels = narrow_table_of<Avx2>(Isa::avx2, &kBytes, nullptr, &byte_network<AvxVnni>);
  return &kernels;
}

}  // namespace si
