// reshape, and concat along the axis that is its parameter: bytes as they are, elsewhere.
#include <cstring>

#include "runtime/operators.h"

namespace si {

si_status check_reshape(const si_model& model, Node* node) {
  const Value &x = *model.operand(*node, 0), &y = model.value(node->output);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 0));
  if (x.is_bytes()) {
    SI_TRY(check_bytes(*node, &y, "an output"));
    SI_TRY(check_same_scale(*node, x, y));
  } else if (x.type == kInt64 || x.type == kBool) {
    if (y.type != x.type) return bad_node(*node, "expected an output of its operand's type, got type ", y.type);
  } else {
    SI_TRY(check_float(*node, &x, "an x"));
    SI_TRY(check_float(*node, &y, "an output"));
  }
  if (x.elements() != y.elements())
    return bad_node(*node, "expected an output of ", x.elements(), " elements, got ", y.elements());
  return SI_OK;
}

si_status run_reshape(const Call& call) {
  std::memcpy(call.output(), call.input(0), static_cast<size_t>(call.y().bytes));
  return SI_OK;
}

si_status check_concat(const si_model& model, Node* node) {
  const Value& first = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 1));
  const int32_t axis = node->params[0];
  if (axis < 0 || axis >= first.ndim) return bad_node(*node, "expected an axis below ", first.ndim, ", got ", axis);
  int64_t dims[kMostDims];
  for (int i = 0; i < first.ndim; ++i) dims[i] = i == axis ? 0 : first.dims[i];
  for (uint32_t k = 0; k < node->operands; ++k) {
    const Value* x = model.operand(*node, k);
    SI_TRY(check_moved(*node, *x, model.value(node->output), "an operand"));
    bool same = x->ndim == first.ndim;
    for (int i = 0; same && i < first.ndim; ++i) same = i == axis || x->dims[i] == first.dims[i];
    if (!same) return bad_node(*node, "expected operands of equal sizes but along axis ", axis);
    dims[axis] += x->dims[axis];
  }
  return check_shape(model, *node, dims, first.ndim);
}

si_status run_concat(const Call& call) {
  const Value& y = call.y();
  const int32_t axis = call.node.params[0];
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= y.dims[i];
  for (int i = axis + 1; i < y.ndim; ++i) inner *= y.dims[i];
  uint8_t* to = call.output_bytes();
  inner *= y.element_bytes();
  for (int64_t row = 0; row < outer; ++row)
    for (uint32_t k = 0; k < call.node.operands; ++k) {
      const int64_t count = call.model.operand(call.node, k)->dims[axis] * inner;
      std::memcpy(to, call.input_bytes(k) + row * count, static_cast<size_t>(count));
      to += count;
    }
  return SI_OK;
}

}  // namespace si
