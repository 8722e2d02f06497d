/* Along an axis of n elements, `inner` apart. */
#pragma once

#include <math.h>
#include <stdint.h>

static void softmax(const float* x, float* y, int32_t outer, int32_t n, int32_t inner) {
  for (int32_t row = 0; row < outer; ++row, x += n * inner, y += n * inner)
    for (int32_t c = 0; c < inner; ++c) {
      float most = x[c], total = 0.0f;
      for (int32_t i = 1; i < n; ++i) most = fmaxf(most, x[i * inner + c]);
      for (int32_t i = 0; i < n; ++i) total += y[i * inner + c] = expf(x[i * inner + c] - most);
      for (int32_t i = 0; i < n; ++i) y[i * inner + c] /= total;
    }
}
