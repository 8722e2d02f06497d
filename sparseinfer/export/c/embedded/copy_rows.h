/* Copies `rows` of so many bytes, which stand closer in x than in y: a part of a concatenation. */
#pragma once

#include <stdint.h>
#include <string.h>

static void copy_rows(const void* x, void* y, int32_t rows, size_t bytes, size_t y_bytes) {
  for (int32_t row = 0; row < rows; ++row)
    memcpy((uint8_t*)y + (size_t)row * y_bytes, (const uint8_t*)x + (size_t)row * bytes, bytes);
}
