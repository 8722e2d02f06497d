/* Images of another height and width, and which of their old pixels lie at a new one. */
#pragma once

#include <stdint.h>

struct resize_shape {
  int32_t planes, h, w, oh, ow;
  int32_t half, back; /* whether pixels are places by their middles, and half a pixel is taken off again */
  float ratio[2];     /* pixels of x that make one of y: vertical, horizontal */
};

/* Pixel `at` of y along an axis of x that has `size`. */
static float source_of(const struct resize_shape* shape, int32_t at, float ratio) {
  const float source = ((float)at + (shape->half ? 0.5f : 0.0f)) * ratio;
  if (!shape->back) return source;
  return source > 0.5f ? source - 0.5f : 0.0f;
}

static int32_t first_of(float source, int32_t size) { return (int32_t)source < size - 1 ? (int32_t)source : size - 1; }
