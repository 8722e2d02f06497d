// The rows of registry.inc and the choice among them.
#pragma once

#include "core/isa.h"
#include "kernels/tile/tile.h"

namespace si {

struct Row {
  const char* name;
  si_format format;
  si_op op;
  Isa isa;
  const char* dtype;                        // what it computes in
  uint32_t x_types, weight_types, y_types;  // sets of value types: type_bit of each
};

// The value types of a call; the weight's follows from the weight.
struct CallTypes {
  si_value_type x, y;
};

const Row& row_at(size_t index);  // index < row_count()
size_t row_count();

// Null for the scalar rows, which need no tiles, and where the instruction set is not built in.
const TileKernels* tile_kernels(Isa isa);

// Those of the best instruction set with kernels of float32 that runs here; null where the scalar kernels are the only
// ones.
const TileKernels* widest_tile_kernels();

// Those of the best instruction set with kernels of bytes that runs here; null likewise.
const TileKernels* widest_byte_kernels();

// Those of the best instruction set with kernels of pairs of bfloat16 that runs here; null likewise.
const TileKernels* widest_pair_kernels();

// Why the row cannot run on this machine; "" if it can.
const char* row_reason(const Row& row);

// The best row that computes in float32 and runs; fails with SI_ERR_UNSUPPORTED and every row of the format and
// operation with its reason.
[[nodiscard]] si_status select_row(si_format format, si_op op, size_t* index);

// The row for a call: the one asked for, or with SI_ROW_BEST the best that runs and takes the types.
[[nodiscard]] si_status row_for_call(const si_weights& weights, si_op op, const CallTypes& types, int32_t asked,
                                     const Row** row);

}  // namespace si
