// Puts the kernels of AVX-VNNI, compiled for AVX-512 with VNNI, in the place of those of AVX2, so that a test of these
// runs them. The instruction is the same but for its encoding.
#define avxvnni_tile_kernels evex_tile_kernels
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#include <cstdio>
#include <cstdlib>

#include "core/cpu.h"
#include "kernels/isa/avxvnni.cc"

namespace si {

const TileKernels* avx2_tile_kernels() {
  if ((isa_features(Isa::avx512vnni) & ~cpu_features()) != 0) {
    std::puts("skipped: this CPU has no AVX-512 with VNNI");
    std::exit(77);
  }
  return evex_tile_kernels();
}

}  // namespace si
