// quantize and dequantize: between floats and bytes, whose scale and zero point are those of the tensor. lookup: bytes
// of bytes, by a table that is an operand.
#include "kernels/network/byte_network.h"
#include "runtime/operators.h"

namespace si {

namespace {

si_status check_borders(const si_model& model, Node* node) {
  const Value& x = *model.operand(*node, 0);
  node->isa = widest_byte_kernels();
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 0));
  return check_shape(model, *node, x.dims, x.ndim);
}

}  // namespace

si_status check_quantize(const si_model& model, Node* node) {
  SI_TRY(check_float(*node, model.operand(*node, 0), "an x"));
  SI_TRY(check_bytes(*node, &model.value(node->output), "an output"));
  return check_borders(model, node);
}

si_status run_quantize(const Call& call) {
  const ToByte to = to_byte(call.y().scale, call.y().zero_point, clamp_of(SI_ACT_NONE));
  return quantize_floats(call.node.isa, to, call.input(0), call.output_bytes(), call.y().elements(), call.threads);
}

si_status check_dequantize(const si_model& model, Node* node) {
  SI_TRY(check_bytes(*node, model.operand(*node, 0), "an x"));
  SI_TRY(check_float(*node, &model.value(node->output), "an output"));
  return check_borders(model, node);
}

si_status run_dequantize(const Call& call) {
  return dequantize_bytes(call.node.isa, call.x().scale, call.x().zero_point, call.input_bytes(0), call.output(),
                          call.y().elements(), call.threads);
}

si_status check_lookup(const si_model& model, Node* node) {
  const Value& table = *model.operand(*node, 1);
  SI_TRY(check_bytes(*node, model.operand(*node, 0), "an x"));
  SI_TRY(check_bytes(*node, &model.value(node->output), "an output"));
  if (table.type != kInt8 || table.ndim != 1 || table.dims[0] != kBytesInTable)
    return bad_node(*node, "expected a constant table of ", kBytesInTable, " int8");
  return check_borders(model, node);
}

si_status run_lookup(const Call& call) {
  return lookup_bytes(call.node.isa, call.input_bytes(1), call.input_bytes(0), call.output_bytes(), call.y().elements(),
                      call.threads);
}

}  // namespace si
