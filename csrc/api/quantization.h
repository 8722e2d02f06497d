// The check of what a caller says about the bytes of a call.
#pragma once

#include "formats/formats.h"

namespace si {

// Copies `given` to *out, where a call of int8 weights has to have it and any other none. `tokens`: as many scales of x
// as there may be; -1 where one tensor has one.
[[nodiscard]] si_status check_quantization(const char* function, const si_weights& weights,
                                           const si_quantization* given, si_value_type y_type, int64_t tokens,
                                           si_quantization* out);

}  // namespace si
