/* A packed weight: row-pattern panels, as csrc/formats/panel/LAYOUT.md of sparseinfer has them, without their header. A
 * position is a row's place in the order in which rows are packed. */
#pragma once

#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "expected a little-endian processor, which the weights are packed for"
#endif

struct panel {
  uint32_t first_index, first_value;
  uint16_t rows, count[15]; /* columns of pattern 1, 2, ... 15; of int8: units of four values a row */
};

struct weight {
  const struct panel* panel; /* [blocks][panels] */
  const uint32_t* order;     /* the output row at each position; NULL: each row stands at its own */
  const uint16_t* index;
  const void* value;
  int32_t panels, panels_per_group, rows_per_group;
  int32_t blocks;            /* of columns */
  int32_t columns_per_index; /* of int8: 4, or 1 */
};

static int32_t row_at(const struct weight* weight, int32_t position) {
  return weight->order ? (int32_t)weight->order[position] : position;
}
