// Element-wise operations of two tensors whose shapes are broadcast as numpy does, over threads. isa null: the scalar
// loops. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

constexpr int kBinaryDims = 8;

// y[...] = act(a[...] op b[...]). Of a dimension along which an operand repeats, the step is zero.
struct BinaryJob {
  BinaryKind kind;
  si_activation activation;
  const float* a;
  const float* b;
  float* y;  // may be an operand that does not repeat
  int ndim;
  int64_t dims[kBinaryDims], a_step[kBinaryDims], b_step[kBinaryDims];
};

// Lays out operands of these dimensions, which fit: neighbours become one dimension where that is possible.
void broadcast_dims(const int64_t* a, int a_ndim, const int64_t* b, int b_ndim, BinaryJob* job);

[[nodiscard]] si_status binary(const TileKernels* isa, const BinaryJob& job, int threads);

// One element.
float scalar_binary(BinaryKind kind, float a, float b);

}  // namespace si
