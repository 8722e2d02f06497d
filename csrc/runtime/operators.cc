#include "runtime/operators.h"

#include "kernels/source.h"

namespace si {

namespace {

// One that is left out has a line for its name, which a failure tells.
#define SI_LINE(...) __VA_ARGS__,
#if SI_MESSAGES
#define SI_NAMED SI_LINE
#else
#define SI_NAMED(...)
#endif
constexpr Operator kOperators[] = {
#define SI_OPERATOR(id, name, fewest, most, in_place)                                                            \
  SI_CHOSEN(name, SI_LINE, SI_NAMED)({id, #name, fewest, most, in_place, SI_CHOSEN(name, check_##name, nullptr), \
                                      SI_CHOSEN(name, run_##name, nullptr)})
#include "runtime/operators.inc"
#undef SI_OPERATOR
};

}  // namespace

const Operator* operator_of(uint32_t id) {
  for (const Operator& op : kOperators)
    if (op.id == id) return &op;
  return nullptr;
}

si_status check_float(const Node& node, const Value* value, const char* which) {
  if (value == nullptr) return bad_node(node, "expected ", which, ", got none");
  if (value->type != kFloat32) return bad_node(node, "expected ", which, " of float32, got type ", value->type);
  return SI_OK;
}

si_status check_bytes(const Node& node, const Value* value, const char* which) {
  if (value == nullptr) return bad_node(node, "expected ", which, ", got none");
  if (value->type != kUint8) return bad_node(node, "expected ", which, " of uint8, got type ", value->type);
  return SI_OK;
}

si_status check_same_scale(const Node& node, const Value& a, const Value& b) {
  if (a.scale == b.scale && a.zero_point == b.zero_point) return SI_OK;
  return bad_node(node, "expected an output of its operand's scale and zero point, got ", b.scale, " and ",
                  b.zero_point);
}

si_status check_moved(const Node& node, const Value& x, const Value& y, const char* which) {
  if (y.type != kUint8) {
    SI_TRY(check_float(node, &x, which));
    return check_float(node, &y, "an output");
  }
  SI_TRY(check_bytes(node, &x, which));
  return check_same_scale(node, x, y);
}

si_status check_clamp(const Node& node) {
  if (is_clamp(node.activation)) return SI_OK;
  return bad_node(node, "expected no activation, relu or relu6 of bytes, got activation ", node.activation);
}

si_status check_output(const si_model& model, const Node& node, const int64_t* dims, int32_t ndim) {
  SI_TRY(check_float(node, &model.value(node.output), "an output"));
  return check_shape(model, node, dims, ndim);
}

si_status check_shape(const si_model& model, const Node& node, const int64_t* dims, int32_t ndim) {
  const Value& y = model.value(node.output);
  if (y.ndim != ndim) return bad_node(node, "expected an output of ", ndim, " dimensions, got ", y.ndim);
  for (int i = 0; i < ndim; ++i)
    if (y.dims[i] != dims[i])
      return bad_node(node, "expected ", dims[i], " in dimension ", i, " of the output, got ", y.dims[i]);
  return SI_OK;
}

si_status check_params(const Node& node, int first) {
  for (int i = first; i < kParams; ++i)
    if (node.params[i] != 0) return bad_node(node, "expected zero in parameter ", i, ", got ", node.params[i]);
  return SI_OK;
}

si_status check_no_activation(const Node& node) {
  if (node.activation != SI_ACT_NONE) return bad_node(node, "expected no activation, got ", node.activation);
  return SI_OK;
}

si_status check_bias(const Node& node, const Value* bias, int64_t rows) {
  if (bias == nullptr) return SI_OK;
  SI_TRY(check_float(node, bias, "a bias"));
  if (bias->kind != kConstant || bias->ndim != 1 || bias->dims[0] != rows)
    return bad_node(node, "expected a constant bias of ", rows, " elements");
  return SI_OK;
}

}  // namespace si
