// The instruction sets that tests of bytes go through: null, which is the scalar loops, and all that run here.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/registry.h"

namespace si::testing {

inline std::vector<const TileKernels*> byte_isas() {
  std::vector<const TileKernels*> isas{nullptr};
  for (size_t i = 0; i < row_count(); ++i) {
    const Row& row = row_at(i);
    const TileKernels* isa = tile_kernels(row.isa);
    if (row.dtype == std::string("int8") && *row_reason(row) == '\0' && isa != nullptr &&
        std::find(isas.begin(), isas.end(), isa) == isas.end())
      isas.push_back(isa);
  }
  return isas;
}

}  // namespace si::testing
