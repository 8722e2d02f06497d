// The linear layer of pairs of bfloat16 weights, whose x and y are bfloat16 or float32: cuts a call in tiles, brings x
// in and y out, shares the work among threads. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status linear_bf16(const TileKernels& isa, const si_weights& weights, const si_linear_args& args);

}  // namespace si
