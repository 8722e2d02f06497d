/* Each channel of bytes by an int8 kernel of its own; outside of the image the zero point stands. */
#pragma once

#include <stdint.h>

#include "bytes.h"
#include "fused.h"
#include "window.h"

struct depthwise_int8 {
  struct window window;
  int32_t channels, x_zero_point;
  const int8_t* weight;
  const float *scale, *bias; /* by channel: of the weight times that of x; bias: NULL where there is none */
  struct to_byte to;
};

static void depthwise_int8(const struct depthwise_int8* node, const uint8_t* x, uint8_t* y) {
  const struct window* const window = &node->window;
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w) {
    const int32_t channel = plane % node->channels;
    const int8_t* const weight = node->weight + channel * window->kernel[0] * window->kernel[1];
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        const int32_t top = r * window->stride[0] - window->padding[0];
        const int32_t left = c * window->stride[1] - window->padding[1];
        int32_t sum = 0;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j)
            sum += weight[(i - top) * window->kernel[1] + j - left] * (x[i * window->w + j] - node->x_zero_point);
        const float bias = node->bias ? node->bias[channel] : 0.0f;
        *y++ = byte_of(fused_multiply_add((float)sum, node->scale[channel], bias), &node->to);
      }
  }
}
