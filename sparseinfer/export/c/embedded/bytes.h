/* Bytes that stand for scale * (byte - zero point). */
#pragma once

#include <stdint.h>
#include <string.h>

struct to_byte {
  float inverse, low, high; /* 1 / scale; the ends of an activation's clamp, and of what a byte holds */
  int32_t zero_point;
};

/* The nearest whole number, halves to even, of a float of at most 2^22: in integers, for processors that have no
 * floats.
 */
static int32_t nearest(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  /* mantissa / 2^shift, of which 2^25 and more makes nothing. */
  const uint32_t mantissa = (bits & 0x7fffff) | 0x800000, shift = 150 - (bits >> 23 & 255);
  if (shift > 24) return 0;
  const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
  int32_t whole = (int32_t)(mantissa >> shift);
  if (rest > half || (rest == half && whole % 2 != 0)) ++whole;
  return bits >> 31 ? -whole : whole;
}

static uint8_t byte_of(float v, const struct to_byte* to) {
  float t = v * to->inverse;
  t = t > to->low ? t : to->low;
  t = t < to->high ? t : to->high;
  return (uint8_t)(nearest(t) + to->zero_point);
}
