/* Some of each row of x: `pieces` of so many bytes, the first `first` bytes after the row's beginning. */
#pragma once

#include <stdint.h>
#include <string.h>

static void slice(const void* x, void* y, int32_t rows, int32_t pieces, size_t bytes, size_t row_bytes, size_t first,
                  size_t step) {
  uint8_t* to = (uint8_t*)y;
  for (int32_t row = 0; row < rows; ++row)
    for (int32_t i = 0; i < pieces; ++i, to += bytes)
      memcpy(to, (const uint8_t*)x + (size_t)row * row_bytes + first + (size_t)i * step, bytes);
}
