// Images of another size. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

// Where pixel d of y lies in x, in float32: nearest, floor(d ratio); nearest_exact, floor((d + 0.5) ratio); bilinear,
// (d + 0.5) ratio - 0.5, not below 0; bilinear_aligned, d ratio. None lies past the last pixel of x.
enum class ResizeKind : int32_t { kNearest, kNearestExact, kBilinear, kBilinearAligned };

struct ResizeJob {
  ResizeKind kind;
  const void* x;  // [planes][h][w], floats, or bytes where `bytes` is set
  void* y;        // [planes][oh][ow]
  int64_t planes, h, w, oh, ow;
  float ratio[2];  // vertical, horizontal
  bool bytes;      // of the nearest kinds alone
};

[[nodiscard]] si_status resize(const ResizeJob& job, int threads);

}  // namespace si
