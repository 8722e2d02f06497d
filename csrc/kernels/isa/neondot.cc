// The tile kernels of int8 weights for 64-bit ARM with the dot product: sdot multiplies four bytes of x by four int8
// weights and adds the products, exactly, to each of 4 int32.
#include "kernels/isa/neon_bytes.h"
#include "kernels/isa/neon_vector.h"

namespace si {
namespace {

struct NeonDots : NeonBytes {
  using Half = NeonDots;
  static SI_INLINE Int dot(Int sum, Int x, Int w) { return vdotq_s32(sum, less_128(x), as_bytes(w)); }
};

constexpr ByteKernels kBytes = chosen(neon_byte_kernels<NeonDots>());

}  // namespace

const TileKernels* neondot_tile_kernels() {
  static constexpr TileKernels kernels = narrow_table_of<Neon>(Isa::neon, &kBytes, nullptr, &byte_network<NeonDots>);
  return &kernels;
}

}  // namespace si
