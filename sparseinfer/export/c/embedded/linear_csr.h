/* y = act(W x + bias) of weights by rows: of more columns than panels have. */
#pragma once

#include <stdint.h>

struct linear_csr {
  const uint32_t *start, *column; /* of each row, where its columns and values begin; and one more */
  const float *value, *bias;      /* bias: NULL where there is none */
  float (*activation)(float);
  int32_t tokens, inputs, outputs;
};

static void linear_csr(const struct linear_csr* node, const float* x, float* y) {
  for (int32_t token = 0; token < node->tokens; ++token, x += node->inputs)
    for (int32_t row = 0; row < node->outputs; ++row) {
      float sum = node->bias ? node->bias[row] : 0.0f;
      for (uint32_t i = node->start[row]; i < node->start[row + 1]; ++i) sum += node->value[i] * x[node->column[i]];
      *y++ = node->activation ? node->activation(sum) : sum;
    }
}
