/* y = act(W x + bias) of int8 weights and bytes of x. */
#pragma once

#include <stdint.h>

#include "result_int8.h"
#include "weight.h"

struct linear_int8 {
  struct weight weight;
  struct result_int8 result;
  const int32_t* start; /* by position: -zero point * sum of the row's weights */
  int32_t tokens, inputs, outputs;
};

/* Adds the products of a panel to the sums of its rows. */
static void add_panel_int8(const struct weight* weight, const struct panel* panel, const uint8_t* x, int32_t inputs,
                           int32_t* sum) {
  const uint16_t* index = weight->index + panel->first_index;
  const int8_t* value = (const int8_t*)weight->value + 4 * (size_t)panel->first_value;
  const int32_t per_unit = 4 / weight->columns_per_index;
  for (int32_t pattern = 1; pattern < 16; ++pattern)
    for (int32_t left = panel->count[pattern - 1]; left > 0; left -= 16) {
      const int32_t units = left < 16 ? left : 16;
      for (int32_t row = 0; row < 4; ++row) {
        if (!(pattern >> row & 1)) continue;
        int32_t own = 0;
        for (int32_t unit = 0; unit < units; ++unit, value += 4) {
          const uint16_t* const at = index + unit * per_unit;
          if (per_unit == 4) {
            own += value[0] * x[at[0]] + value[1] * x[at[1]] + value[2] * x[at[2]] + value[3] * x[at[3]];
          } else {
            const int32_t first = 4 * at[0], columns = inputs - first < 4 ? inputs - first : 4;
            for (int32_t j = 0; j < columns; ++j) own += value[j] * x[first + j];
          }
        }
        sum[row] += own;
      }
      index += units * per_unit;
    }
}

static void linear_int8(const struct linear_int8* node, const uint8_t* x, void* y) {
  const struct weight* const weight = &node->weight;
  for (int32_t token = 0; token < node->tokens; ++token)
    for (int32_t i = 0; i < weight->panels; ++i) {
      const struct panel* const panel = weight->panel + i;
      int32_t sum[4];
      for (int32_t row = 0; row < panel->rows; ++row) sum[row] = node->start[4 * i + row];
      add_panel_int8(weight, panel, x + token * node->inputs, node->inputs, sum);
      for (int32_t row = 0; row < panel->rows; ++row)
        store_int8(&node->result, 4 * i + row, sum[row], token * node->outputs + row_at(weight, 4 * i + row), 0, y);
    }
}
