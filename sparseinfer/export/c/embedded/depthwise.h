/* Each channel by a kernel of its own. */
#pragma once

#include <stdint.h>

#include "window.h"

struct depthwise {
  struct window window;
  int32_t channels;
  const float *weight, *bias; /* bias: NULL where there is none */
  float (*activation)(float);
};

static void depthwise(const struct depthwise* node, const float* x, float* y) {
  const struct window* const window = &node->window;
  for (int32_t plane = 0; plane < window->planes; ++plane, x += window->h * window->w) {
    const int32_t channel = plane % node->channels;
    const float* const weight = node->weight + channel * window->kernel[0] * window->kernel[1];
    for (int32_t r = 0; r < window->oh; ++r)
      for (int32_t c = 0; c < window->ow; ++c) {
        const struct part part = part_of(window, r, c);
        const int32_t top = r * window->stride[0] - window->padding[0];
        const int32_t left = c * window->stride[1] - window->padding[1];
        float sum = node->bias ? node->bias[channel] : 0.0f;
        for (int32_t i = part.top; i < part.bottom; ++i)
          for (int32_t j = part.left; j < part.right; ++j)
            sum += weight[(i - top) * window->kernel[1] + j - left] * x[i * window->w + j];
        *y++ = node->activation ? node->activation(sum) : sum;
      }
  }
}
