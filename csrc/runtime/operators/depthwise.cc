// depthwise_conv: parameters are stride (vertical, horizontal) and padding (top, bottom, left, right).
#include "kernels/depthwise/depthwise.h"

#include "kernels/conv/geometry.h"
#include "runtime/operators.h"

namespace si {

namespace {

DepthwiseArgs depthwise_args(const si_model& model, const Node& node) {
  const Value &x = model.value(node.operand[0]), &weight = model.value(node.operand[1]), &y = model.value(node.output);
  DepthwiseArgs args{};
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

}  // namespace

si_status check_depthwise_conv(const si_model& model, Node* node) {
  const Value &x = *model.operand(*node, 0), &weight = *model.operand(*node, 1);
  SI_TRY(check_params(*node, 6));
  SI_TRY(check_float(*node, &x, "an x"));
  SI_TRY(check_float(*node, &weight, "a weight"));
  if (x.ndim != 4 || weight.ndim != 4 || weight.kind != kConstant || weight.dims[0] != x.dims[1] || weight.dims[1] != 1)
    return bad_node(*node, "expected an x of 4 dimensions and a constant weight [channels, 1, height, width]");
  SI_TRY(check_bias(*node, model.operand(*node, 2), x.dims[1]));
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
  SI_TRY(check_output(model, *node, dims, 4));
  // A padded row is scratch, so that it is not longer than an image.
  if ((geometry.ow - 1) * node->params[1] + geometry.kw > kScratchColumns)
    return bad_node(*node, "expected padded rows of at most ", kScratchColumns, " elements");
  node->isa = widest_tile_kernels();
  node->multiply_adds = model.value(node->output).elements() * geometry.kh * geometry.kw;
  return SI_OK;
}

si_status run_depthwise_conv(const Call& call) {
  DepthwiseArgs args = depthwise_args(call.model, call.node);
  args.x = call.input(0);
  args.weights = call.input(1);
  args.bias = call.input(2);
  args.y = call.output();
  args.threads = call.threads;
  return depthwise(call.node.isa, args);
}

}  // namespace si
