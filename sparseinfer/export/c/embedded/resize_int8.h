/* The nearest pixels of bytes. */
#pragma once

#include <stdint.h>

#include "resize_shape.h"

static void resize_int8(const struct resize_shape* shape, const uint8_t* x, uint8_t* y) {
  for (int32_t plane = 0; plane < shape->planes; ++plane, x += shape->h * shape->w)
    for (int32_t r = 0; r < shape->oh; ++r) {
      const uint8_t* const row = x + first_of(source_of(shape, r, shape->ratio[0]), shape->h) * shape->w;
      for (int32_t c = 0; c < shape->ow; ++c) *y++ = row[first_of(source_of(shape, c, shape->ratio[1]), shape->w)];
    }
}
