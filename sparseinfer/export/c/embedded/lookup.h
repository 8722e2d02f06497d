/* A function of one byte, as a table of all. */
#pragma once

#include <stdint.h>

static void lookup(const uint8_t* table, const uint8_t* x, uint8_t* y, int32_t count) {
  for (int32_t i = 0; i < count; ++i) y[i] = table[x[i]];
}
