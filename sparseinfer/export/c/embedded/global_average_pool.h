/* The mean of each channel. */
#pragma once

#include <stdint.h>

static void global_average_pool(const float* x, float* y, int32_t planes, int32_t pixels) {
  for (int32_t plane = 0; plane < planes; ++plane, x += pixels) {
    float sum = 0.0f;
    for (int32_t i = 0; i < pixels; ++i) sum += x[i];
    y[plane] = sum / (float)pixels;
  }
}
