/* y = act(W x + bias). */
#pragma once

#include <stdint.h>

#include "weight.h"

struct linear {
  struct weight weight;
  const float* bias; /* by position, or NULL */
  float (*activation)(float);
  int32_t tokens, inputs, outputs;
};

static void linear(const struct linear* node, const float* x, float* y) {
  const struct weight* const weight = &node->weight;
  for (int32_t token = 0; token < node->tokens; ++token, x += node->inputs, y += node->outputs)
    for (int32_t i = 0; i < weight->panels; ++i) {
      const int32_t rows = weight->panel[i].rows;
      float sum[4];
      for (int32_t row = 0; row < rows; ++row) sum[row] = node->bias ? node->bias[4 * i + row] : 0.0f;
      for (int32_t block = 0; block < weight->blocks; ++block) {
        const struct panel* const panel = weight->panel + block * weight->panels + i;
        const uint16_t* index = weight->index + panel->first_index;
        const float* value = (const float*)weight->value + panel->first_value;
        for (int32_t pattern = 1; pattern < 16; ++pattern)
          for (int32_t left = panel->count[pattern - 1]; left > 0; left -= 16) {
            const int32_t columns = left < 16 ? left : 16;
            for (int32_t row = 0; row < 4; ++row) {
              if (!(pattern >> row & 1)) continue;
              for (int32_t j = 0; j < columns; ++j) sum[row] += *value++ * x[index[j]];
            }
            index += columns;
          }
      }
      for (int32_t row = 0; row < rows; ++row)
        y[row_at(weight, 4 * i + row)] = node->activation ? node->activation(sum[row]) : sum[row];
    }
}
