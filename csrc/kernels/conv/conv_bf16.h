// The convolution of pairs of bfloat16 weights, whose x and y are bfloat16 or float32. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status conv_bf16(const TileKernels& isa, const si_weights& weights, const si_conv_args& args);

}  // namespace si
