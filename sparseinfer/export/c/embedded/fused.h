/* a * b + c, rounded once to the nearest, as not every libm's fmaf is. */
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "expected floats that are rounded as IEEE 754 says, got -ffast-math; try without it"
#endif

#ifdef __FP_FAST_FMAF

static float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

#else

/* A float without its sign: mantissa * 2^(exponent - 150). */
struct magnitude {
  uint32_t mantissa;
  int32_t exponent;
};

static struct magnitude magnitude_of(uint32_t bits) {
  const uint32_t exponent = bits >> 23 & 255, fraction = bits & 0x7fffff;
  struct magnitude magnitude = {fraction, 1};
  if (exponent != 0) magnitude.mantissa |= 0x800000, magnitude.exponent = (int32_t)exponent;
  return magnitude;
}

/* Shifts to the right; the last bit is set where one that is set falls out, so that no border is met by rounding. */
static uint64_t shifted(uint64_t bits, int32_t by) {
  if (by > 63) return bits != 0;
  return bits >> by | ((bits & (((uint64_t)1 << by) - 1)) != 0);
}

/* In integers: products of floats are exact in 64 bits. */
static float fused_multiply_add(float a, float b, float c) {
  uint32_t a_bits, b_bits, c_bits;
  memcpy(&a_bits, &a, sizeof a_bits);
  memcpy(&b_bits, &b, sizeof b_bits);
  memcpy(&c_bits, &c, sizeof c_bits);
  const struct magnitude x = magnitude_of(a_bits), y = magnitude_of(b_bits), z = magnitude_of(c_bits);
  /* Infinities, NaN and zeros: one of the two operations is exact. */
  if (x.exponent == 255 || y.exponent == 255 || x.mantissa == 0 || y.mantissa == 0) return a * b + c;
  if (z.exponent == 255) return c;
  uint32_t sign = (a_bits ^ b_bits) & 0x80000000u;
  uint64_t sum = (uint64_t)x.mantissa * y.mantissa << 14, other = (uint64_t)z.mantissa << 38;
  int32_t exponent = x.exponent + y.exponent - 314, other_exponent = z.exponent - 188;
  if (exponent >= other_exponent) {
    other = shifted(other, exponent - other_exponent);
  } else {
    sum = shifted(sum, other_exponent - exponent);
    exponent = other_exponent;
  }
  if (sign == (c_bits & 0x80000000u)) {
    sum += other;
  } else if (sum >= other) {
    sum -= other;
  } else {
    sum = other - sum;
    sign ^= 0x80000000u;
  }
  if (sum == 0) return 0.0f;
  while (sum >> 63 == 0) sum <<= 1, --exponent;
  /* The float's exponent, and the bits below its last one: more of them below 2^-126. */
  const int32_t biased = exponent + 190, least = biased < 1 ? 1 : biased;
  sum = shifted(sum, least - biased);
  const uint64_t below = sum & 0xffffffffffu, half = 0x8000000000u;
  uint32_t bits = (uint32_t)(sum >> 40);
  if (below > half || (below == half && bits % 2 != 0)) ++bits;
  bits = biased > 254 ? 0x7f800000 : bits + ((uint32_t)(least - 1) << 23);
  bits |= sign;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

#endif
