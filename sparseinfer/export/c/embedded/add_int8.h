/* The sum of bytes, as a byte; y may be a or b. */
#pragma once

#include <stdint.h>

#include "bytes.h"
#include "fused.h"

struct add_int8 {
  int32_t count, a_zero_point, b_zero_point;
  float a_scale, b_scale;
  struct to_byte to;
};

static void add_int8(const struct add_int8* node, const uint8_t* a, const uint8_t* b, uint8_t* y) {
  for (int32_t i = 0; i < node->count; ++i) {
    const float other = (float)(b[i] - node->b_zero_point) * node->b_scale;
    y[i] = byte_of(fused_multiply_add((float)(a[i] - node->a_zero_point), node->a_scale, other), &node->to);
  }
}
