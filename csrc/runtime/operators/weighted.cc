// linear and conv: what the packed formats compute, by the drivers of kernels/. Weights of int8 take bytes, and give
// bytes or floats; pairs of bfloat16 take and give floats or bfloat16.
#include "core/scratch.h"
#include "kernels/conv/conv.h"
#include "kernels/conv/conv_bf16.h"
#include "kernels/conv/conv_int8.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_bf16.h"
#include "kernels/linear/linear_int8.h"
#include "kernels/network/network.h"
#include "kernels/scalar/scalar.h"
#include "runtime/operators.h"

namespace si {

namespace {

bool is_int8(const si_weights& weights) { return is_type(weights.value_type, SI_I8); }

// The types of a call and, of bytes, what they stand for.
template <class Args>
void set_types(const Call& call, Args* args, si_quantization* quantization) {
  args->x_type = static_cast<si_value_type>(call.x().type);
  args->y_type = static_cast<si_value_type>(call.y().type);
  if (args->x_type != SI_U8) return;
  *quantization = quantization_of(call.x(), call.y());
  if (const Value* residual = call.model.operand(call.node, 3); residual != nullptr) {
    quantization->residual_scale = residual->scale;
    quantization->residual_zero_point = residual->zero_point;
  }
  args->quantization = quantization;
}

// The packed weight, and the best row that runs it here.
si_status check_weight(const si_model& model, si_op op, Node* node) {
  const Value* weight = model.operand(*node, 1);
  if (weight->packed == nullptr) return bad_node(*node, "expected a packed weight");
  const Value& y = model.value(node->output);
  const Value* x = model.operand(*node, 0);
  const bool bytes = is_int8(*weight->packed), pairs = weight->packed->panel.pairs();
  if (bytes)
    SI_TRY(check_bytes(*node, x, "an x"));
  else if (!pairs || x->type != kBFloat16)
    SI_TRY(check_float(*node, x, "an x"));
  if (!(bytes && y.is_bytes()) && !(pairs && y.type == kBFloat16)) SI_TRY(check_float(*node, &y, "an output"));
  const CallTypes types{static_cast<si_value_type>(x->type), static_cast<si_value_type>(y.type)};
  const Row* row = nullptr;
  SI_TRY(row_for_call(*weight->packed, op, types, SI_ROW_BEST, &row));
  node->isa = tile_kernels(row->isa);
  SI_TRY(check_bias(*node, model.operand(*node, 2), weight->packed->shape.M()));
  const Value* residual = model.operand(*node, 3);
  if (residual == nullptr) return SI_OK;
  // The sum is a second pass over y.
  if (pairs) SI_TRY(check_float(*node, &y, "an output beside a residual"));
  SI_TRY(bytes ? check_bytes(*node, residual, "a residual") : check_float(*node, residual, "a residual"));
  bool same = residual->ndim == y.ndim;
  for (int i = 0; same && i < y.ndim; ++i) same = residual->dims[i] == y.dims[i];
  return same ? SI_OK : bad_node(*node, "expected a residual of the output's shape");
}

si_linear_args linear_args(const si_model& model, const Node& node) {
  const Value& x = model.value(node.operand[0]);
  const WeightShape& shape = model.operand(node, 1)->packed->shape;
  si_linear_args args{};
  args.struct_size = sizeof args;
  args.n = x.elements() / shape.K();
  args.ldx = shape.K();
  args.ldy = shape.M();
  args.layout = SI_TOKEN_MAJOR;
  args.activation = node.activation;
  args.row = SI_ROW_BEST;
  return args;
}

si_conv_args conv_args(const si_model& model, const Node& node) {
  const Value& x = model.value(node.operand[0]);
  const bool flat = x.ndim == 3;  // a signal: an image of one row
  si_conv_args args{};
  args.struct_size = sizeof args;
  args.batch = x.dims[0];
  args.h = flat ? 1 : x.dims[2];
  args.w = x.dims[x.ndim - 1];
  for (int i = 0; i < 2; ++i) args.stride[i] = node.params[i];
  for (int i = 0; i < 4; ++i) args.padding[i] = node.params[2 + i];
  for (int i = 0; i < 2; ++i) args.dilation[i] = node.params[6 + i];
  args.padding_mode = static_cast<si_padding>(node.params[8]);
  args.activation = node.activation;
  args.row = SI_ROW_BEST;
  return args;
}

// The kernels of pairs take no residual: it is added to what they give.
si_status run_pairs(const Call& call, const si_weights& weights, si_conv_args args) {
  const auto* residual = static_cast<const float*>(args.residual);
  args.residual = nullptr;
  if (residual != nullptr) args.activation = SI_ACT_NONE;
  SI_TRY(has_tiles(call.node.isa) ? conv_bf16(*call.node.isa, weights, args) : scalar_conv_bf16(weights, args));
  if (residual == nullptr || measures_scratch()) return SI_OK;
  return add(widest_tile_kernels(), call.output(), residual, call.output(), call.y().elements(), call.node.activation,
             call.threads);
}

}  // namespace

si_status check_linear(const si_model& model, Node* node) {
  SI_TRY(check_weight(model, SI_OP_LINEAR, node));
  SI_TRY(check_params(*node, 0));
  const Value& x = *model.operand(*node, 0);
  const si_weights& weights = *model.operand(*node, 1)->packed;
  if (weights.shape.ndim != 2) return bad_node(*node, "expected a weight of 2 dimensions");
  if (x.ndim < 1 || x.dims[x.ndim - 1] != weights.shape.K())
    return bad_node(*node, "expected an x of ", weights.shape.K(), " columns");
  int64_t dims[kMostDims];
  for (int i = 0; i < x.ndim; ++i) dims[i] = x.dims[i];
  dims[x.ndim - 1] = weights.shape.M();
  SI_TRY(check_shape(model, *node, dims, x.ndim));
  node->multiply_adds = weights.nnz * (x.elements() / weights.shape.K());
  return SI_OK;
}

si_status run_linear(const Call& call) {
  const si_weights& weights = *call.model.operand(call.node, 1)->packed;
  si_linear_args args = linear_args(call.model, call.node);
  args.x = call.input(0);
  args.y = call.output();
  args.bias = call.input(2);
  args.threads = call.threads;
  si_quantization quantization{};
  set_types(call, &args, &quantization);
  if (is_int8(weights))
    return has_tiles(call.node.isa) ? linear_int8(*call.node.isa, weights, args) : scalar_linear_int8(weights, args);
  if (weights.panel.pairs())
    return has_tiles(call.node.isa) ? linear_bf16(*call.node.isa, weights, args) : scalar_linear_bf16(weights, args);
  return has_tiles(call.node.isa) ? linear(*call.node.isa, weights, args) : scalar_linear(weights, args);
}

si_status check_conv(const si_model& model, Node* node) {
  SI_TRY(check_weight(model, SI_OP_CONV, node));
  SI_TRY(check_params(*node, 9));
  const Value& x = *model.operand(*node, 0);
  const si_weights& weights = *model.operand(*node, 1)->packed;
  if (x.ndim != weights.shape.ndim || x.ndim < 3)
    return bad_node(*node, "expected an x of ", weights.shape.ndim, " dimensions, 3 or 4, got ", x.ndim);
  ConvGeometry geometry;
  SI_TRY(conv_geometry(weights.shape, conv_args(model, *node), &geometry));
  if (x.dims[1] != geometry.channels)
    return bad_node(*node, "expected ", geometry.channels, " channels, got ", x.dims[1]);
  const bool flat = x.ndim == 3;
  if (flat && geometry.oh != 1) return bad_node(*node, "expected one row of the output of a signal");
  const int64_t dims[] = {x.dims[0], weights.shape.M(), flat ? geometry.ow : geometry.oh, geometry.ow};
  SI_TRY(check_shape(model, *node, dims, x.ndim));
  node->multiply_adds = weights.nnz * (model.value(node->output).elements() / weights.shape.M());
  return SI_OK;
}

si_status run_conv(const Call& call) {
  const si_weights& weights = *call.model.operand(call.node, 1)->packed;
  si_conv_args args = conv_args(call.model, call.node);
  args.x = call.input(0);
  args.y = call.output();
  args.bias = call.input(2);
  args.residual = call.input(3);
  args.residual_type = args.residual != nullptr && is_int8(weights) ? SI_U8 : SI_F32;
  args.threads = call.threads;
  si_quantization quantization{};
  set_types(call, &args, &quantization);
  if (is_int8(weights))
    return has_tiles(call.node.isa) ? conv_int8(*call.node.isa, weights, args) : scalar_conv_int8(weights, args);
  if (weights.panel.pairs()) return run_pairs(call, weights, args);
  return has_tiles(call.node.isa) ? conv(*call.node.isa, weights, args) : scalar_conv(weights, args);
}

}  // namespace si
