// float16 (IEEE binary16) and bfloat16, to and from float32, by integer arithmetic on the bits: the same result on
// every CPU, whatever its instructions and rounding mode.
//
// Narrowing rounds to nearest, ties to even. A NaN keeps its sign and the leading bits of its payload.
//
// The functions are static so that a copy compiled for one instruction set never serves another.
#pragma once

#include <cstdint>
#include <cstring>

namespace si {

static inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `bits` without its last `drop` (1-31), rounded; `bits` is far enough below 2^32 for the sum not to wrap.
static inline uint32_t round_off(uint32_t bits, uint32_t drop) {
  const uint32_t below_half = (uint32_t{1} << (drop - 1)) - 1;
  return (bits + below_half + (bits >> drop & 1)) >> drop;
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {  // NaN
    half = 0x7c00 | (magnitude >> 13 & 0x3ff);
    if (half == 0x7c00) half = 0x7e00;   // only low payload bits were set: without this it would read as Inf
  } else if (magnitude >= 0x47800000) {  // 2^16 and above, Inf
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // 2^-14 and above: normal; a carry out of the mantissa goes on to 65520 = Inf
    half = round_off(magnitude - 0x38000000, 13);
  } else if (magnitude >= 0x33000000) {  // 2^-25 and above: subnormal, in units of 2^-24
    half = round_off((magnitude & 0x7fffff) | 0x800000, 126 - (magnitude >> 23));
  } else {
    half = 0;
  }
  return static_cast<uint16_t>(sign | half);
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 0x1f;
  uint32_t mantissa = half & 0x3ff;
  if (exponent == 0x1f) return float_from_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  if (mantissa == 0) return float_from_bits(sign);
  uint32_t float_exponent = 113;  // of 2^-14: shift the subnormal up until its leading bit is the implicit one
  for (; (mantissa & 0x400) == 0; mantissa <<= 1) --float_exponent;
  return float_from_bits(sign | float_exponent << 23 | (mantissa & 0x3ff) << 13);
}

static inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude <= 0x7f800000) return static_cast<uint16_t>((bits >> 16 & 0x8000) | round_off(magnitude, 16));
  const uint32_t high = bits >> 16;
  return static_cast<uint16_t>((high & 0x7f) != 0 ? high : high | 0x40);
}

static inline float bfloat16_to_float(uint16_t value) { return float_from_bits(static_cast<uint32_t>(value) << 16); }

}  // namespace si
