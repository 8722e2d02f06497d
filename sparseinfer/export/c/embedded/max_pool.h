/* The maximum of each window; NaN is one. */
#pragma once

#include <math.h>
#include <stdint.h>

#include "window.h"

static void max_pool(const struct window* window, const float* x, float* y) {
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w)
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        float most = -INFINITY;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j) {
            const float v = x[i * window->w + j];
            if (v > most || v != v) most = v;
          }
        *y++ = most;
      }
}
