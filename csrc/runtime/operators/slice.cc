// slice: some of the entries along one axis. Parameters are the axis, the first entry, how many, and the step.
#include <cstring>

#include "runtime/operators.h"

namespace si {

si_status check_slice(const si_model& model, Node* node) {
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 4));
  SI_TRY(check_float(*node, &x, "an x"));
  const int32_t axis = node->params[0];
  if (axis < 0 || axis >= x.ndim) return bad_node(*node, "expected an axis below ", x.ndim, ", got ", axis);
  const int64_t first = node->params[1], count = node->params[2], step = node->params[3];
  if (first < 0 || count < 1 || step < 1 || first + (count - 1) * step >= x.dims[axis])
    return bad_node(*node, "expected entries below ", x.dims[axis], ", got ", count, " from ", first, " by steps of ",
                    step);
  int64_t dims[kMostDims];
  for (int i = 0; i < x.ndim; ++i) dims[i] = i == axis ? count : x.dims[i];
  return check_output(model, *node, dims, x.ndim);
}

si_status run_slice(const Call& call) {
  const Value& x = call.x();
  const int32_t* const params = call.node.params;
  const int32_t axis = params[0];
  const int64_t first = params[1], count = params[2], step = params[3];
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= x.dims[i];
  for (int i = axis + 1; i < x.ndim; ++i) inner *= x.dims[i];
  const int64_t run = step == 1 ? count * inner : inner;  // elements that follow one another
  const float* from = call.input(0) + first * inner;
  float* to = call.output();
  for (int64_t row = 0; row < outer; ++row, from += x.dims[axis] * inner)
    for (int64_t i = 0; i < count * inner; i += run, to += run)
      std::memcpy(to, from + i * step, static_cast<size_t>(run) * sizeof(float));
  return SI_OK;
}

}  // namespace si
