// The rows of registry.inc and the choice among them.
#pragma once

#include "core/cpu.h"
#include "kernels/tile/tile.h"

namespace si {

struct Row {
  const char* name;
  si_format format;
  si_op op;
  Isa isa;
};

const Row& row_at(size_t index);  // index < row_count()
size_t row_count();

// Null for the scalar rows, which need no tiles, and where the instruction set is not built in.
const TileKernels* tile_kernels(Isa isa);

// Why the row cannot run on this machine; "" if it can.
const std::string& row_reason(const Row& row);

// The best row that runs; throws SI_ERR_UNSUPPORTED with every row of the format and operation and its reason.
size_t select_row(si_format format, si_op op);

}  // namespace si
