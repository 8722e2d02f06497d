/* The mean of each channel of bytes. */
#pragma once

#include <stdint.h>

#include "bytes.h"

struct global_average_pool_int8 {
  int32_t planes, pixels, x_zero_point;
  float scale; /* of x over the pixels */
  struct to_byte to;
};

static void global_average_pool_int8(const struct global_average_pool_int8* node, const uint8_t* x, uint8_t* y) {
  for (int32_t plane = 0; plane < node->planes; ++plane, x += node->pixels) {
    int32_t sum = -node->pixels * node->x_zero_point;
    for (int32_t i = 0; i < node->pixels; ++i) sum += x[i];
    y[plane] = byte_of((float)sum * node->scale, &node->to);
  }
}
