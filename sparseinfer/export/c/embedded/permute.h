/* The dimensions of x in another order. */
#pragma once

#include <stdint.h>

#include "places.h"

struct permute {
  int32_t count, ndim, dims[8], step[8]; /* of y, and in x */
};

static void permute(const struct permute* node, const float* x, float* y) {
  for (int32_t i = 0; i < node->count; ++i) y[i] = x[place_of(i, node->ndim, node->dims, node->step)];
}
