/* Means of the four nearest pixels, by how near they are. */
#pragma once

#include <stdint.h>

#include "resize_shape.h"

/* How much of the pixel after the first. */
static float share_of(float source, int32_t first) {
  const float share = source - (float)first;
  return share < 1.0f ? share : 1.0f;
}

static void resize(const struct resize_shape* shape, const float* x, float* y) {
  const int32_t h = shape->h, w = shape->w;
  for (int32_t plane = 0; plane < shape->planes; ++plane, x += h * w)
    for (int32_t r = 0; r < shape->oh; ++r) {
      const float at_row = source_of(shape, r, shape->ratio[0]);
      const int32_t row = first_of(at_row, h), next_row = row + 1 < h ? row + 1 : h - 1;
      const float down = share_of(at_row, row), *above = x + row * w, *below = x + next_row * w;
      for (int32_t c = 0; c < shape->ow; ++c) {
        const float at_column = source_of(shape, c, shape->ratio[1]);
        const int32_t column = first_of(at_column, w), next = column + 1 < w ? column + 1 : w - 1;
        const float right = share_of(at_column, column), left = 1.0f - right;
        *y++ = (1.0f - down) * (left * above[column] + right * above[next]) +
               down * (left * below[column] + right * below[next]);
      }
    }
}
