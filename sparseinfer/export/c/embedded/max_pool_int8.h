/* The maximum of each window of bytes. */
#pragma once

#include <stdint.h>

#include "window.h"

static void max_pool_int8(const struct window* window, const uint8_t* x, uint8_t* y) {
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w)
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        uint8_t most = 0;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j)
            if (x[i * window->w + j] > most) most = x[i * window->w + j];
        *y++ = most;
      }
}
