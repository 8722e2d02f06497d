/* y = act(a op b), broadcast to y. */
#pragma once

#include <stdint.h>

#include "functions.h"
#include "places.h"

struct binary {
  int32_t count, ndim, dims[8], a_step[8], b_step[8]; /* a step is 0 where an operand is repeated */
  float (*function)(float, float);
  float (*activation)(float);
};

static void binary(const struct binary* node, const float* a, const float* b, float* y) {
  for (int32_t i = 0; i < node->count; ++i) {
    const float v = node->function(a[place_of(i, node->ndim, node->dims, node->a_step)],
                                   b[place_of(i, node->ndim, node->dims, node->b_step)]);
    y[i] = node->activation ? node->activation(v) : v;
  }
}
