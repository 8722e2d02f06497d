/* Images with what a convolution reads around them. */
#pragma once

#include <stdint.h>
#include <string.h>

struct pad {
  int32_t planes, h, w, top, left, padded_h, padded_w;
  int32_t mode; /* 1 for reflection at the outermost pixels, 2 for these repeated, 3 for the other side */
  int32_t element_bytes;
};

/* The pixel that stands for one outside of an axis of `size`. */
static int32_t pixel_of(int32_t at, int32_t size, int32_t mode) {
  if (at >= 0 && at < size) return at;
  if (mode == 1) return at < 0 ? -at : 2 * (size - 1) - at;
  if (mode == 2) return at < 0 ? 0 : size - 1;
  return at < 0 ? at + size : at - size;
}

static void pad(const struct pad* node, const void* x, void* y) {
  const size_t bytes = (size_t)node->element_bytes;
  uint8_t* to = (uint8_t*)y;
  for (int32_t plane = 0; plane < node->planes; ++plane)
    for (int32_t r = 0; r < node->padded_h; ++r) {
      const int32_t row = plane * node->h + pixel_of(r - node->top, node->h, node->mode);
      for (int32_t c = 0; c < node->padded_w; ++c, to += bytes) {
        const int32_t column = pixel_of(c - node->left, node->w, node->mode);
        memcpy(to, (const uint8_t*)x + ((size_t)row * (size_t)node->w + (size_t)column) * bytes, bytes);
      }
    }
}
