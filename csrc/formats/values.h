// The values that packed formats store in a type narrower than float32: to and from bits, and what packing refuses.
#pragma once

#include <cmath>

#include "core/chosen.h"
#include "core/error.h"
#include "formats/blob.h"
#include "formats/half.h"

namespace si {

// Sets of value types: the bit 1 << type of each.
constexpr uint32_t type_bit(si_value_type type) { return type >= 0 && type < 32 ? uint32_t{1} << type : 0; }
constexpr uint32_t kTypeF32 = type_bit(SI_F32), kTypeF16 = type_bit(SI_F16), kTypeBF16 = type_bit(SI_BF16),
                   kTypeI8 = type_bit(SI_I8), kTypeU8 = type_bit(SI_U8);

inline const char* type_name(si_value_type type) {
  switch (type) {
    case SI_F32:
      return "float32";
    case SI_F16:
      return "float16";
    case SI_BF16:
      return "bfloat16";
    case SI_I8:
      return "int8";
    case SI_U8:
      return "uint8";
    case SI_I64:
      return "int64";
    case SI_BOOL:
      return "bool";
  }
  return "an unknown type";
}

inline int64_t element_bytes(si_value_type type) {
  if (type == SI_I8 || type == SI_U8) return 1;
  return type == SI_F32 ? 4 : 2;
}

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

// Fails where a finite weight would become Inf: the layer would compute nothing else.
[[nodiscard]] inline si_status check_range(const float* weight, const WeightShape& shape, si_value_type type) {
  if (type == SI_F32) return SI_OK;
  const int64_t M = shape.M(), K = shape.K();
  for (int64_t i = 0; i < M * K; ++i) {
    if (!std::isfinite(weight[i])) continue;
    const float stored =
        type == SI_F16 ? half_to_float(float_to_half(weight[i])) : bfloat16_to_float(float_to_bfloat16(weight[i]));
    if (std::isfinite(stored)) continue;
    return fail(SI_ERR_ARGUMENT, "expected weights in the range of ", type_name(type), ", got ", weight[i], " in row ",
                i / K, ", column ", i % K, "; try float32");
  }
  return SI_OK;
}

}  // namespace si
