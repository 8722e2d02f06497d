// Functions of each element of a tensor, over threads. isa null: the scalar loops. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

// y = function(x), of `count` elements; y may be x.
[[nodiscard]] si_status unary(const TileKernels* isa, const UnaryFunction& function, const float* x, float* y,
                              int64_t count, int threads);

// One element.
float scalar_unary(const UnaryFunction& function, float x);

}  // namespace si
