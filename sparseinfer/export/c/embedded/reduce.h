/* A sum, mean, maximum or minimum over some dimensions. */
#pragma once

#include <stdint.h>

#include "functions.h"
#include "places.h"

struct reduce {
  int32_t stay, stay_ndim, stay_dims[8], stay_step[8]; /* elements of y, and where they begin in x */
  int32_t gone, gone_ndim, gone_dims[8], gone_step[8]; /* elements of x for each */
  float (*join)(float, float);
  int32_t is_mean;
};

static void reduce(const struct reduce* node, const float* x, float* y) {
  for (int32_t i = 0; i < node->stay; ++i) {
    const float* const from = x + place_of(i, node->stay_ndim, node->stay_dims, node->stay_step);
    float all = from[0];
    for (int32_t j = 1; j < node->gone; ++j)
      all = node->join(all, from[place_of(j, node->gone_ndim, node->gone_dims, node->gone_step)]);
    y[i] = node->is_mean ? all / (float)node->gone : all;
  }
}
