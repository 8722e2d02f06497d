// Convolution by the linear tiles, without im2col: the image is copied once to a zero-padded, channel-major scratch
// image in which every tap of the kernel is a constant offset. Arguments have been checked.
#pragma once

#include "formats/weights.h"
#include "kernels/conv/geometry.h"
#include "kernels/tile/tile.h"

namespace si {

[[nodiscard]] si_status conv(const TileKernels& isa, const si_weights& weights, const si_conv_args& args);

}  // namespace si
