/* y = act(a + b); y may be a or b. */
#pragma once

#include <stdint.h>

static void add(const float* a, const float* b, float* y, int32_t count, float (*activation)(float)) {
  for (int32_t i = 0; i < count; ++i) {
    const float v = a[i] + b[i];
    y[i] = activation ? activation(v) : v;
  }
}
