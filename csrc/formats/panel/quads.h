// Panels of int8 values: quads of four values a row, a scale and a sum a row. Layout: csrc/formats/panel/LAYOUT.md.
#pragma once

#include "formats/panel/panel.h"

namespace si {

// Scales of weights, inputs and outputs: products of two with any int32 stay within float32, and so do their inverses.
constexpr float kLeastScale = 0x1p-60f, kMostScale = 0x1p48f;
constexpr bool sound_scale(float scale) { return scale >= kLeastScale && scale <= kMostScale; }

// The sum of a row's products with bytes: 128 * 255 * 65535 < 2^31.
static_assert(int64_t{128} * 255 * kPanelMaxK <= INT32_MAX, "no accumulation of a row overflows");

// q = clamp(rint(w / scale), -128, 127), ties to even; scale = max|w| / 127 of the row unless the options give it. What
// becomes 0 is not stored.
[[nodiscard]] si_status quads_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                   OwnedBlob* out);
// panel_validate where the values are int8.
[[nodiscard]] si_status quads_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out);

}  // namespace si
