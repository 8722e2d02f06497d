// The instruction sets that tests of networks' kernels go through: null, which is the scalar loops, and all that run
// here.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/registry.h"

namespace si::testing {

// Those of the rows that `wanted` takes.
template <class Wanted>
std::vector<const TileKernels*> isas_of(const Wanted& wanted) {
  std::vector<const TileKernels*> isas{nullptr};
  for (size_t i = 0; i < row_count(); ++i) {
    const Row& row = row_at(i);
    const TileKernels* isa = tile_kernels(row.isa);
    if (wanted(row) && *row_reason(row) == '\0' && isa != nullptr &&
        std::find(isas.begin(), isas.end(), isa) == isas.end())
      isas.push_back(isa);
  }
  return isas;
}

inline std::vector<const TileKernels*> byte_isas() {
  return isas_of([](const Row& row) { return row.dtype == std::string("int8"); });
}

// Tables for narrow weights alone hold no kernels of floats.
inline std::vector<const TileKernels*> float_isas() {
  return isas_of([](const Row& row) {
    return row.format == SI_FORMAT_PANEL && row.op == SI_OP_CONV && (row.weight_types & kTypeF32) != 0;
  });
}

inline std::vector<const TileKernels*> pair_isas() {
  return isas_of([](const Row& row) { return row.dtype == std::string("bfloat16"); });
}

}  // namespace si::testing
