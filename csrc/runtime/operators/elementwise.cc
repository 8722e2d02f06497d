// add, activation and softmax, which has its axis as parameter. add takes bytes too.
#include "kernels/network/byte_network.h"
#include "kernels/network/network.h"
#include "runtime/operators.h"

namespace si {

namespace {

si_status check_same(const si_model& model, const Node& node) {
  for (uint32_t i = 0; i < node.operands; ++i) {
    const Value& x = *model.operand(node, i);
    SI_TRY(check_float(node, &x, "an operand"));
    SI_TRY(check_output(model, node, x.dims, x.ndim));
  }
  return SI_OK;
}

}  // namespace

si_status check_add(const si_model& model, Node* node) {
  SI_TRY(check_params(*node, 0));
  if (!model.operand(*node, 0)->is_bytes()) {
    node->isa = widest_tile_kernels();
    return check_same(model, *node);
  }
  const Value &a = *model.operand(*node, 0), &b = *model.operand(*node, 1);
  node->isa = widest_byte_kernels();
  SI_TRY(check_bytes(*node, &b, "an operand"));
  SI_TRY(check_bytes(*node, &model.value(node->output), "an output"));
  SI_TRY(check_clamp(*node));
  SI_TRY(check_shape(model, *node, a.dims, a.ndim));
  return check_shape(model, *node, b.dims, b.ndim);
}

si_status run_add(const Call& call) {
  if (call.y().is_bytes()) {
    const Value& b = call.model.value(call.node.operand[1]);
    const ByteSum sum{call.x().scale, b.scale, call.x().zero_point, b.zero_point,
                      to_byte(call.y().scale, call.y().zero_point, clamp_of(call.node.activation))};
    return add_bytes(call.node.isa, sum, call.input_bytes(0), call.input_bytes(1), call.output_bytes(),
                     call.y().elements(), call.threads);
  }
  return add(call.node.isa, call.input(0), call.input(1), call.output(), call.y().elements(), call.node.activation,
             call.threads);
}

si_status check_activation(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  SI_TRY(check_params(*node, 0));
  return check_same(model, *node);
}

si_status run_activation(const Call& call) {
  return activation(call.node.isa, call.input(0), call.output(), call.y().elements(), call.node.activation,
                    call.threads);
}

si_status check_softmax(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 1));
  SI_TRY(check_same(model, *node));
  const int32_t axis = node->params[0], ndim = model.value(node->output).ndim;
  return axis >= 0 && axis < ndim ? SI_OK : bad_node(*node, "expected an axis below ", ndim, ", got ", axis);
}

si_status run_softmax(const Call& call) {
  const Value& x = call.x();
  const int32_t axis = call.node.params[0];
  int64_t outer = 1, inner = 1;
  for (int i = 0; i < axis; ++i) outer *= x.dims[i];
  for (int i = axis + 1; i < x.ndim; ++i) inner *= x.dims[i];
  return softmax(call.node.isa, call.input(0), call.output(), outer, x.dims[axis], inner, call.threads);
}

}  // namespace si
