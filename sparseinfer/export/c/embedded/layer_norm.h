/* Rows of mean 0 and variance 1, or of mean square 1. */
#pragma once

#include <math.h>
#include <stdint.h>

struct layer_norm {
  const float *weight, *bias; /* NULL where there is none */
  int32_t rows, n;
  float eps;
  int32_t centred; /* whether the mean is taken off */
};

/* The residual, where it is not NULL, is added to x first. */
static void layer_norm(const struct layer_norm* node, const float* x, const float* residual, float* y) {
  const int32_t n = node->n;
  for (int32_t row = 0; row < node->rows; ++row, x += n, y += n) {
    float mean = 0.0f, variance = 0.0f;
    for (int32_t i = 0; i < n; ++i) {
      y[i] = x[i] + (residual ? residual[row * n + i] : 0.0f);
      mean += y[i];
    }
    mean = node->centred ? mean / (float)n : 0.0f;
    for (int32_t i = 0; i < n; ++i) variance += (y[i] - mean) * (y[i] - mean);
    const float factor = 1.0f / sqrtf(variance / (float)n + node->eps);
    for (int32_t i = 0; i < n; ++i)
      y[i] = (y[i] - mean) * factor * (node->weight ? node->weight[i] : 1.0f) + (node->bias ? node->bias[i] : 0.0f);
  }
}
