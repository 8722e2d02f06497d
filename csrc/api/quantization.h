// The checks of what a caller says about the bytes of a call.
#pragma once

#include "formats/formats.h"

namespace si {

// What of a call may be bytes beside x. The type of a residual is null where there is none.
struct ByteTypes {
  si_value_type y;
  const si_value_type* residual;
};

// Copies `given` to *out, where a call of int8 weights has to have it and any other none. `tokens`: as many scales of x
// as there may be; -1 where one tensor has one.
[[nodiscard]] si_status check_quantization(const char* function, const si_weights& weights,
                                           const si_quantization* given, const ByteTypes& types, int64_t tokens,
                                           si_quantization* out);

// That the kernels of these weights and this operation add a residual of such a type.
[[nodiscard]] si_status check_residual(const char* function, const si_weights& weights, si_op op, si_value_type type);

}  // namespace si
