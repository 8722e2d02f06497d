/* The mean of each window of bytes. */
#pragma once

#include <stdint.h>

#include "bytes.h"
#include "window.h"

struct average_pool_int8 {
  struct window window;
  int32_t count_padding; /* whether it is of the whole window, not of its part in the image */
  int32_t x_zero_point;
  float x_scale;
  struct to_byte to;
};

static void average_pool_int8(const struct average_pool_int8* node, const uint8_t* x, uint8_t* y) {
  const struct window* const window = &node->window;
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w)
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        const int32_t own = (part.bottom - part.top) * (part.right - part.left);
        const int32_t count = node->count_padding ? window->kernel[0] * window->kernel[1] : own;
        int32_t sum = -own * node->x_zero_point;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j) sum += x[i * window->w + j];
        *y++ = byte_of((float)sum * (node->x_scale / (float)count), &node->to);
      }
}
