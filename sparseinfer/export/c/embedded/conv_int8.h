/* y = act(conv(x) + bias + residual) of int8 weights and bytes of x, outside of which the zero point stands. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "conv_shape.h"
#include "result_int8.h"
#include "weight.h"

struct conv_int8 {
  struct weight weight;
  struct result_int8 result;
  struct conv_shape shape;
  int32_t x_zero_point;
};

/* Adds the products of a panel to row `r` of the output of each of its rows: `sum` has `ow` for each. */
static void add_panel_row_int8(const struct conv_int8* node, const struct panel* panel, const uint8_t* x, int32_t r,
                               int32_t channel, int32_t* sum) {
  const struct conv_shape* const shape = &node->shape;
  const uint16_t* index = node->weight.index + panel->first_index;
  const int8_t* value = (const int8_t*)node->weight.value + 4 * (size_t)panel->first_value;
  const int32_t g = node->weight.columns_per_index, per_unit = 4 / g, stride = shape->stride[1];
  for (int32_t pattern = 1; pattern < 16; ++pattern)
    for (int32_t left = panel->count[pattern - 1]; left > 0; left -= 16) {
      const int32_t units = left < 16 ? left : 16;
      for (int32_t row = 0; row < 4; ++row) {
        if (!(pattern >> row & 1)) continue;
        int32_t* const own = sum + row * shape->ow;
        for (int32_t i = 0; i < 4 * units; ++i) {
          const int32_t weight = *value++;
          /* What repeats a column, or lies past the last, is zero. */
          if (weight == 0) continue;
          const int32_t k = g == 1 ? index[i] : 4 * index[i / 4] + i % 4;
          const struct span span = span_of(shape, k, r, channel);
          for (int32_t c = span.first; c < span.last; ++c)
            own[c] += weight * (x[span.source + c * stride] - node->x_zero_point);
        }
      }
      index += units * per_unit;
    }
}

/* `sum` is of 4 ow int32. */
static void conv_int8(const struct conv_int8* node, const uint8_t* x, const uint8_t* residual, void* y, int32_t* sum) {
  const struct conv_shape* const shape = &node->shape;
  const struct weight* const weight = &node->weight;
  for (int32_t b = 0; b < shape->batch; ++b)
    for (int32_t i = 0; i < weight->panels; ++i)
      for (int32_t r = 0; r < shape->oh; ++r) {
        const struct panel* const panel = weight->panel + i;
        const int32_t group = i / weight->panels_per_group,
                      channel = b * shape->channels + group * shape->group_channels;
        memset(sum, 0, 4 * (size_t)shape->ow * sizeof *sum);
        add_panel_row_int8(node, panel, x, r, channel, sum);
        for (int32_t row = 0; row < panel->rows; ++row) {
          const int32_t position = position_of(weight, i) + row, m = b * shape->out_channels + row_at(weight, position);
          for (int32_t c = 0; c < shape->ow; ++c)
            store_int8(&node->result, position, sum[row * shape->ow + c], (m * shape->oh + r) * shape->ow + c, residual,
                       y);
        }
      }
}
