// Packing, and opening what was packed, whatever the format.
#pragma once

#include "formats/formats.h"

namespace si {

[[nodiscard]] si_status pack_weights(const float* weight, const si_weight_desc& desc, const si_pack_options& options,
                                     OwnedBlob* out);

// Validates, the checksum too unless it was checked already; fails with SI_ERR_CORRUPT or SI_ERR_ARGUMENT.
[[nodiscard]] si_status open_weights(const void* blob, size_t bytes, si_weights* out, bool is_summed = false);

void describe(const si_weights& weights, si_weight_info* info);

// Writes the dense weight.
[[nodiscard]] si_status unpack_weights(const si_weights& weights, float* weight);

}  // namespace si
