/* Bytes that stand for scale * (byte - zero point). */
#pragma once

#include <stdint.h>

struct to_byte {
  float inverse, low, high; /* 1 / scale; the ends of an activation's clamp, and of what a byte holds */
  int32_t zero_point;
};

/* The nearest whole number, halves to even, of a float of at most 2^24. */
static int32_t nearest(float v) {
  int32_t whole = (int32_t)v;
  const float rest = v - (float)whole;
  if (rest > 0.5f || (rest == 0.5f && whole % 2 != 0)) ++whole;
  if (rest < -0.5f || (rest == -0.5f && whole % 2 != 0)) --whole;
  return whole;
}

static uint8_t byte_of(float v, const struct to_byte* to) {
  float t = v * to->inverse;
  t = t > to->low ? t : to->low;
  t = t < to->high ? t : to->high;
  return (uint8_t)(nearest(t) + to->zero_point);
}
