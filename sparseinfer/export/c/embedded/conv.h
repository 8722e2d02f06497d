/* y = act(conv(x) + bias + residual). */
#pragma once

#include <stdint.h>

#include "conv_shape.h"
#include "weight.h"

struct conv {
  struct weight weight;
  const float* bias; /* by position, or NULL */
  float (*activation)(float);
  struct conv_shape shape;
};

/* Adds the products of a panel to row `r` of the output of each of its rows: `sum` has `ow` for each. */
static void add_panel_row(const struct conv* node, const struct panel* panel, const float* x, int32_t r,
                          int32_t channel, float* sum) {
  const struct conv_shape* const shape = &node->shape;
  const uint16_t* index = node->weight.index + panel->first_index;
  const float* value = (const float*)node->weight.value + panel->first_value;
  for (int32_t pattern = 1; pattern < 16; ++pattern)
    for (int32_t left = panel->count[pattern - 1]; left > 0; left -= 16) {
      const int32_t columns = left < 16 ? left : 16;
      for (int32_t row = 0; row < 4; ++row) {
        if (!(pattern >> row & 1)) continue;
        for (int32_t i = 0; i < columns; ++i) {
          const float weight = *value++;
          const struct span span = span_of(shape, index[i], r, channel);
          for (int32_t c = span.first; c < span.last; ++c)
            sum[row * shape->ow + c] += weight * x[span.source + c * shape->stride[1]];
        }
      }
      index += columns;
    }
}

/* `sum` is of 4 ow floats. */
static void conv(const struct conv* node, const float* x, const float* residual, float* y, float* sum) {
  const struct conv_shape* const shape = &node->shape;
  const struct weight* const weight = &node->weight;
  for (int32_t b = 0; b < shape->batch; ++b)
    for (int32_t i = 0; i < weight->panels; ++i)
      for (int32_t r = 0; r < shape->oh; ++r) {
        const int32_t group = i / weight->panels_per_group,
                      channel = b * shape->channels + group * shape->group_channels;
        const int32_t first = position_of(weight, i), rows = weight->panel[i].rows;
        for (int32_t j = 0; j < rows * shape->ow; ++j) sum[j] = node->bias ? node->bias[first + j / shape->ow] : 0.0f;
        for (int32_t block = 0; block < weight->blocks; ++block)
          add_panel_row(node, weight->panel + block * weight->panels + i, x, r, channel, sum);
        for (int32_t row = 0; row < rows; ++row) {
          const int32_t m = b * shape->out_channels + row_at(weight, first + row);
          for (int32_t c = 0; c < shape->ow; ++c) {
            const int32_t at = (m * shape->oh + r) * shape->ow + c;
            const float v = sum[row * shape->ow + c] + (residual ? residual[at] : 0.0f);
            y[at] = node->activation ? node->activation(v) : v;
          }
        }
      }
}
