/* Where an element stands in a tensor whose dimensions are walked through in another order, or repeated. */
#pragma once

#include <stdint.h>

/* The last dimension is the nearest. */
static int32_t place_of(int32_t index, int32_t ndim, const int32_t* dims, const int32_t* step) {
  int32_t place = 0;
  for (int32_t i = ndim - 1; i >= 0; --i) {
    place += index % dims[i] * step[i];
    index /= dims[i];
  }
  return place;
}
