// The tile kernels for AVX-512 F, BW, DQ and VL.
#include "kernels/isa/avx512_halves.h"

namespace si {

const TileKernels* avx512_tile_kernels() {
  static constexpr TileKernels kernels = table_of<Avx512>(Isa::avx512, nullptr, &pair_kernels_512<WideHalves512>);
  return &kernels;
}

}  // namespace si
