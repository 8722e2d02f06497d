/* Images under a window: depthwise convolutions and pooling, a channel at a time. */
#pragma once

#include <stdint.h>

struct window {
  int32_t planes, h, w, oh, ow; /* planes: batch times channels */
  int32_t kernel[2], stride[2]; /* vertical, horizontal */
  int32_t padding[2];           /* above and to the left */
};

/* The part of a window that lies in the image: its rows and columns there, from the first to one past the last. */
struct part {
  int32_t top, bottom, left, right;
};

static struct part part_of(const struct window* window, int32_t r, int32_t c) {
  const int32_t row = r * window->stride[0] - window->padding[0], column = c * window->stride[1] - window->padding[1];
  struct part part = {row, row + window->kernel[0], column, column + window->kernel[1]};
  if (part.top < 0) part.top = 0;
  if (part.left < 0) part.left = 0;
  if (part.bottom > window->h) part.bottom = window->h;
  if (part.right > window->w) part.right = window->w;
  return part;
}
