/* a * b + c, rounded once. */
#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "expected floats that are rounded as IEEE 754 says, got -ffast-math; try without it"
#endif

static float fused_multiply_add(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  /* Not every fmaf rounds once. The product of two floats is exact as a double; where the sum is not, its last bit is
   * set, so that it lies on no border between floats and rounds as the exact sum would. */
  const double product = (double)a * b, sum = product + c, part = sum - product;
  const double error = (product - (sum - part)) + (c - part);
  uint64_t bits;
  double odd;
  memcpy(&bits, &sum, sizeof bits);
  if ((error > 0 || error < 0) && bits % 2 == 0) bits += (error > 0) == (sum > 0) ? 1 : (uint64_t)-1;
  memcpy(&odd, &bits, sizeof odd);
  return (float)odd;
#endif
}
