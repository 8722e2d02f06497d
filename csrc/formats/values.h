// The values that packed formats store in a type narrower than float32: to and from bits, and what packing refuses.
#pragma once

#include <cmath>
#include <string>

#include "core/error.h"
#include "formats/blob.h"
#include "formats/half.h"

namespace si {

inline size_t value_bytes(si_value_type type) { return type == SI_F32 ? sizeof(float) : sizeof(uint16_t); }

inline uint32_t encode_value(float weight, si_value_type type) {
  if (type == SI_F16) return float_to_half(weight);
  if (type == SI_BF16) return float_to_bfloat16(weight);
  return float_bits(weight);
}

inline uint32_t load_bits(const void* values, int64_t at, si_value_type type) {
  return type == SI_F32 ? static_cast<const uint32_t*>(values)[at] : static_cast<const uint16_t*>(values)[at];
}

inline void store_bits(void* values, int64_t at, si_value_type type, uint32_t bits) {
  if (type == SI_F32)
    static_cast<uint32_t*>(values)[at] = bits;
  else
    static_cast<uint16_t*>(values)[at] = static_cast<uint16_t>(bits);
}

// Of the value's bits: false for 0 and for -0.
inline bool is_nonzero(uint32_t bits, si_value_type type) {
  return (bits & (type == SI_F32 ? 0x7fffffffu : 0x7fffu)) != 0;
}

// Throws SI_ERR_ARGUMENT where a finite weight would become Inf: the layer would compute nothing else.
inline void check_range(const float* weight, const WeightShape& shape, si_value_type type) {
  if (type == SI_F32) return;
  const int64_t M = shape.M(), K = shape.K();
  for (int64_t i = 0; i < M * K; ++i) {
    if (!std::isfinite(weight[i])) continue;
    const float stored =
        type == SI_F16 ? half_to_float(float_to_half(weight[i])) : bfloat16_to_float(float_to_bfloat16(weight[i]));
    if (std::isfinite(stored)) continue;
    fail(SI_ERR_ARGUMENT, std::string("expected weights in the range of ") + (type == SI_F16 ? "float16" : "bfloat16") +
                              ", got " + std::to_string(weight[i]) + " in row " + std::to_string(i / K) + ", column " +
                              std::to_string(i % K) + "; try float32");
  }
}

}  // namespace si
