// Recurrent layers: the steps of one layer and direction, whose input part has been computed for all steps at once.
#pragma once

#include <sparseinfer.h>

#include "formats/weights.h"
#include "kernels/tile/tile.h"

namespace si {

// Gates of a cell: rows of its weights over hidden units.
int64_t cell_gates(si_cell cell);

// `isa` null: the scalar kernels. The arguments have been checked.
[[nodiscard]] si_status recurrent(const TileKernels* isa, const si_weights& weights, const si_recurrent_args& args);

}  // namespace si
