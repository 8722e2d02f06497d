// depthwise_conv: parameters are stride (vertical, horizontal) and padding (top, bottom, left, right). Bytes take
// weights of int8, and their scales.
#include "kernels/depthwise/depthwise.h"

#include "formats/panel/quads.h"
#include "kernels/conv/geometry.h"
#include "kernels/depthwise/depthwise_int8.h"
#include "runtime/operators.h"

namespace si {

namespace {

// What both types of weights have, in the words of either.
template <class Args>
Args depthwise_args(const si_model& model, const Node& node) {
  const Value &x = model.value(node.operand[0]), &weight = model.value(node.operand[1]), &y = model.value(node.output);
  Args args{};
  args.batch = x.dims[0];
  args.channels = x.dims[1];
  args.h = x.dims[2];
  args.w = x.dims[3];
  args.oh = y.dims[2];
  args.ow = y.dims[3];
  for (int i = 0; i < 2; ++i) args.kernel[i] = weight.dims[2 + i];
  for (int i = 0; i < 2; ++i) args.stride[i] = node.params[i];
  args.padding[0] = node.params[2];
  args.padding[1] = node.params[4];
  args.activation = node.activation;
  return args;
}

// Floats by floats without scales, or bytes by int8 with sound ones.
si_status check_types(const si_model& model, Node* node) {
  const Value &x = *model.operand(*node, 0), &weight = *model.operand(*node, 1), &y = model.value(node->output);
  const Value* scales = model.operand(*node, 3);
  if (!x.is_bytes()) {
    node->isa = widest_tile_kernels();
    SI_TRY(check_float(*node, &x, "an x"));
    SI_TRY(check_float(*node, &weight, "a weight"));
    SI_TRY(check_float(*node, &y, "an output"));
    return scales == nullptr ? SI_OK : bad_node(*node, "expected no scales with a weight of float32");
  }
  node->isa = widest_byte_kernels();
  if (weight.type != kInt8) return bad_node(*node, "expected a weight of int8, got type ", weight.type);
  SI_TRY(check_bytes(*node, &y, "an output"));
  SI_TRY(check_clamp(*node));
  SI_TRY(check_float(*node, scales, "scales of the weight"));
  if (scales->kind != kConstant) return bad_node(*node, "expected constant scales of the weight");
  for (int64_t i = 0; i < scales->elements(); ++i)
    if (const float scale = reinterpret_cast<const float*>(scales->data)[i]; !sound_scale(scale))
      return bad_node(*node, "expected scales of the weight from 2^-60 to 2^48, got ", scale);
  // 128 * 255 * 65535 < 2^31.
  if (weight.ndim == 4 && weight.dims[2] * weight.dims[3] > kPanelMaxK)
    return bad_node(*node, "expected kernels of at most ", kPanelMaxK, " taps of int8");
  return SI_OK;
}

}  // namespace

si_status check_depthwise_conv(const si_model& model, Node* node) {
  const Value &x = *model.operand(*node, 0), &weight = *model.operand(*node, 1);
  SI_TRY(check_params(*node, 6));
  SI_TRY(check_types(model, node));
  if (x.ndim != 4 || weight.ndim != 4 || weight.kind != kConstant || weight.dims[0] != x.dims[1] || weight.dims[1] != 1)
    return bad_node(*node, "expected an x of 4 dimensions and a constant weight [channels, 1, height, width]");
  SI_TRY(check_bias(*node, model.operand(*node, 2), x.dims[1]));
  SI_TRY(check_bias(*node, model.operand(*node, 3), x.dims[1]));
  WeightShape shape;
  shape.ndim = 4;
  shape.groups = weight.dims[0];
  for (int i = 0; i < 4; ++i) shape.dims[i] = weight.dims[i];
  si_conv_args conv{};
  conv.h = x.dims[2];
  conv.w = x.dims[3];
  for (int i = 0; i < 2; ++i) conv.stride[i] = node->params[i];
  for (int i = 0; i < 4; ++i) conv.padding[i] = node->params[2 + i];
  conv.dilation[0] = conv.dilation[1] = 1;
  ConvGeometry geometry;
  SI_TRY(conv_geometry(shape, conv, &geometry));
  const int64_t dims[] = {x.dims[0], x.dims[1], geometry.oh, geometry.ow};
  SI_TRY(check_shape(model, *node, dims, 4));
  // A padded row is scratch, so that it is not longer than an image.
  if ((geometry.ow - 1) * node->params[1] + geometry.kw > kScratchColumns)
    return bad_node(*node, "expected padded rows of at most ", kScratchColumns, " elements");
  node->multiply_adds = model.value(node->output).elements() * geometry.kh * geometry.kw;
  return SI_OK;
}

si_status run_depthwise_conv(const Call& call) {
  if (call.y().is_bytes()) {
    DepthwiseInt8Args args = depthwise_args<DepthwiseInt8Args>(call.model, call.node);
    args.x = call.input_bytes(0);
    args.weights = reinterpret_cast<const int8_t*>(call.input_bytes(1));
    args.bias = call.input(2);
    args.scales = call.input(3);
    args.y = call.output_bytes();
    args.quantization = quantization_of(call.x(), call.y());
    args.threads = call.threads;
    return depthwise_int8(call.node.isa, args);
  }
  DepthwiseArgs args = depthwise_args<DepthwiseArgs>(call.model, call.node);
  args.x = call.input(0);
  args.weights = call.input(1);
  args.bias = call.input(2);
  args.y = call.output();
  args.threads = call.threads;
  return depthwise(call.node.isa, args);
}

}  // namespace si
