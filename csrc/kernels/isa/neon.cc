// The tile kernels for 64-bit ARM, and for ARMv7 with NEON and VFPv4. Of int8 weights smull multiplies bytes, and two
// long additions sum the four products of a column.
#include "kernels/isa/neon_halves.h"

namespace si {
namespace {

struct NeonProducts : NeonBytes {
  using Half = NeonProducts;
  static SI_INLINE Int dot(Int sum, Int x, Int w) {
    const int8x16_t a = less_128(x), b = as_bytes(w);
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    return vaddq_s32(sum, vpaddq_s32(low, high));
  }
};

constexpr ByteKernels kBytes = chosen(neon_byte_kernels<NeonProducts>());

}  // namespace

const TileKernels* neon_tile_kernels() {
  static constexpr TileKernels kernels = table_of<Neon>(Isa::neon, &kBytes, &kPairsNeon, &byte_network<NeonProducts>);
  return &kernels;
}

}  // namespace si
