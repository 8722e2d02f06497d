// y = act(W x + bias) for token-major or channel-major tensors: cuts the work in tiles, brings x into the tiles' order
// and y out of it, and shares it among threads. Arguments have been checked.
#pragma once

#include "formats/weights.h"
#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status linear(const TileKernels& isa, const si_weights& weights, const si_linear_args& args);

}  // namespace si
