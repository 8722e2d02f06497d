/* Bytes as floats. */
#pragma once

#include <stdint.h>

static void dequantize(float scale, int32_t zero_point, const uint8_t* x, float* y, int32_t count) {
  for (int32_t i = 0; i < count; ++i) y[i] = (float)(x[i] - zero_point) * scale;
}
