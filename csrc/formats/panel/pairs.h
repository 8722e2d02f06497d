// Panels of bfloat16 values in pairs, for products of two at a time. Layout: csrc/formats/panel/LAYOUT.md.
#pragma once

#include "formats/panel/panel.h"

namespace si {

// What a float32 is as an operand of those products: rounded to the nearest bfloat16, ties to even, where both what is
// below 2^-126 and what becomes so count as zero. Processors that multiply bfloat16 take it for zero, so all do.
static inline uint16_t bfloat16_operand(float value) {
  const bool tiny = (float_bits(value) & 0x7f800000) == 0;
  return tiny ? static_cast<uint16_t>(float_bits(value) >> 16 & 0x8000) : float_to_bfloat16(value);
}
static inline uint16_t bfloat16_operand(uint16_t bits) {
  return (bits & 0x7f80) == 0 ? static_cast<uint16_t>(bits & 0x8000) : bits;
}

// Weights as bfloat16_operand makes them; what becomes 0 is not stored.
[[nodiscard]] si_status pairs_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                   OwnedBlob* out);
// panel_validate where the values are pairs of bfloat16.
[[nodiscard]] si_status pairs_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out);

}  // namespace si
