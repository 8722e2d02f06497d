#include "kernels/registry.h"

#include "core/error.h"

namespace si {

namespace {

namespace format_of {
constexpr si_format panel = SI_FORMAT_PANEL, csr = SI_FORMAT_CSR, nm = SI_FORMAT_NM, bsr = SI_FORMAT_BSR;
}
namespace op_of {
constexpr si_op linear = SI_OP_LINEAR, conv = SI_OP_CONV;
}
namespace isa_of {
constexpr Isa scalar = Isa::kScalar, neon = Isa::kNeon, avx2 = Isa::kAvx2, avx512 = Isa::kAvx512;
}

constexpr Row kRows[] = {
#define SI_ROW(format, op, isa) {#format "." #op "." #isa, format_of::format, op_of::op, isa_of::isa},
#include "kernels/registry.inc"
#undef SI_ROW
};

}  // namespace

const Row& row_at(size_t index) { return kRows[index]; }
size_t row_count() { return sizeof kRows / sizeof kRows[0]; }

const TileKernels* tile_kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::kAvx512:
      return avx512_tile_kernels();
    case Isa::kAvx2:
      return avx2_tile_kernels();
#elif defined(__aarch64__)
    case Isa::kNeon:
      return neon_tile_kernels();
#endif
    default:
      return nullptr;
  }
}

const std::string& row_reason(const Row& row) { return isa_state(row.isa).reason; }

size_t select_row(si_format format, si_op op) {
  std::string reasons;
  for (size_t i = 0; i < row_count(); ++i) {
    const Row& row = kRows[i];
    if (row.format != format || row.op != op) continue;
    if (row_reason(row).empty()) return i;
    reasons += std::string("\n  ") + row.name + ": " + row_reason(row);
  }
  fail(SI_ERR_UNSUPPORTED, "no kernel can run this format and operation here:" + reasons);
}

}  // namespace si
