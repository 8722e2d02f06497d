/* y = act(x); y may be x. */
#pragma once

#include <stdint.h>

static void activate(const float* x, float* y, int32_t count, float (*activation)(float)) {
  for (int32_t i = 0; i < count; ++i) y[i] = activation ? activation(x[i]) : x[i];
}
