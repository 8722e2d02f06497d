/* The shape of a convolution, and where its weights meet the image, outside of which there are zeros. */
#pragma once

#include <stdint.h>

#include "weight.h"

struct conv_shape {
  int32_t batch, channels, h, w;
  int32_t out_channels, oh, ow;
  int32_t group_channels, kh, kw;
  int32_t stride[2], padding[2], dilation[2]; /* vertical, horizontal; padding above and to the left */
};

/* The columns of an output row that a weight has a part in, and the element of the image for column 0, of which the
 * next is `stride[1]` further. */
struct span {
  int32_t first, last, source;
};

/* Of the weight in column `k` of a row, in row `r` of the output, from `channel` of the image on. */
static struct span span_of(const struct conv_shape* shape, int32_t k, int32_t r, int32_t channel) {
  const int32_t tap = k % (shape->kh * shape->kw), stride = shape->stride[1];
  const int32_t row = r * shape->stride[0] + tap / shape->kw * shape->dilation[0] - shape->padding[0];
  const int32_t column = tap % shape->kw * shape->dilation[1] - shape->padding[1];
  struct span span = {0, 0, 0};
  if (row < 0 || row >= shape->h || column >= shape->w) return span;
  span.source = ((channel + k / (shape->kh * shape->kw)) * shape->h + row) * shape->w + column;
  if (column < 0) span.first = (stride - 1 - column) / stride;
  span.last = (shape->w - 1 - column) / stride + 1;
  if (span.last > shape->ow) span.last = shape->ow;
  return span;
}

/* The position of a panel's first row. */
static int32_t position_of(const struct weight* weight, int32_t panel) {
  const int32_t group = panel / weight->panels_per_group;
  return group * weight->rows_per_group + 4 * (panel % weight->panels_per_group);
}
