/* The mean of each window. */
#pragma once

#include <stdint.h>

#include "window.h"

struct average_pool {
  struct window window;
  int32_t count_padding; /* whether it is of the whole window, not of its part in the image */
};

static void average_pool(const struct average_pool* node, const float* x, float* y) {
  const struct window* const window = &node->window;
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w)
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        const int32_t own = (part.bottom - part.top) * (part.right - part.left);
        float sum = 0.0f;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j) sum += x[i * window->w + j];
        *y++ = sum / (float)(node->count_padding ? window->kernel[0] * window->kernel[1] : own);
      }
}
