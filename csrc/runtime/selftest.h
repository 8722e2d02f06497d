// Golden inputs of a model file and the outputs that they give: what tells that a machine computes the model.
#pragma once

#include "runtime/context.h"

namespace si {

// That the golden bytes of a file, if it has any, are those of its inputs and outputs, with sound bounds.
[[nodiscard]] si_status check_golden(const si_model& model);
// `worst` gets the largest difference over its bound.
[[nodiscard]] si_status selftest(si_context* context, double* worst);

}  // namespace si
