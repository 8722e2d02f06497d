/* Floats as bytes. */
#pragma once

#include <stdint.h>

#include "bytes.h"

static void quantize(const struct to_byte* to, const float* x, uint8_t* y, int32_t count) {
  for (int32_t i = 0; i < count; ++i) y[i] = byte_of(x[i], to);
}
