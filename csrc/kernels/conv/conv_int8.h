// The convolution of int8 weights, whose x and y are bytes or float32. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status conv_int8(const TileKernels& isa, const si_weights& weights, const si_conv_args& args);

}  // namespace si
