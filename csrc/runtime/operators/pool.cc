// max_pool and average_pool: parameters are kernel, stride (vertical, horizontal each), padding (top, bottom, left,
// right) and, of average_pool, 1 where padding counts. global_average_pool has none. Bytes are taken too.
#include "kernels/network/byte_network.h"
#include "kernels/network/network.h"
#include "runtime/operators.h"

namespace si {

namespace {

PoolJob pool_job(const si_model& model, const Node& node, bool average) {
  const Value &x = model.value(node.operand[0]), &y = model.value(node.output);
  PoolJob job{};
  job.h = x.dims[2];
  job.w = x.dims[3];
  job.oh = y.dims[2];
  job.ow = y.dims[3];
  for (int i = 0; i < 2; ++i) job.kernel[i] = node.params[i];
  for (int i = 0; i < 2; ++i) job.stride[i] = node.params[2 + i];
  for (int i = 0; i < 2; ++i) job.padding[i] = node.params[4 + 2 * i];
  job.average = average;
  job.count_padding = node.params[8] != 0;
  return job;
}

si_status check_pool(const si_model& model, Node* node) {
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  if (x.ndim != 4) return bad_node(*node, "expected an x of 4 dimensions, got ", x.ndim);
  int64_t dims[] = {x.dims[0], x.dims[1], 0, 0};
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t kernel = node->params[axis], stride = node->params[2 + axis];
    const int64_t before = node->params[4 + 2 * axis], after = node->params[5 + 2 * axis], size = x.dims[2 + axis];
    // A window that lies outside of x altogether would have no maximum and no mean.
    if (kernel < 1 || stride < 1 || kernel > kScratchColumns || stride > kScratchColumns || before < 0 ||
        before >= kernel || after < 0 || after >= kernel || size > kScratchColumns || size + before + after < kernel)
      return bad_node(*node,
                      "expected a kernel and a stride of at least 1, paddings smaller than the kernel, and height and "
                      "width of at most ",
                      kScratchColumns);
    dims[2 + axis] = (size + before + after - kernel) / stride + 1;
  }
  SI_TRY(check_shape(model, *node, dims, 4));
  // The rows of each window, and then its columns.
  const int64_t line = node->params[0] * x.dims[3] + node->params[1] * dims[3];
  node->multiply_adds = dims[0] * dims[1] * dims[2] * line;
  return SI_OK;
}

si_status check_float_pool(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  SI_TRY(check_float(*node, model.operand(*node, 0), "an x"));
  SI_TRY(check_float(*node, &model.value(node->output), "an output"));
  return check_pool(model, node);
}

si_status run_pool(const Call& call, bool average) {
  const Value& x = call.x();
  return pool(call.node.isa, pool_job(call.model, call.node, average), call.input(0), call.output(),
              x.dims[0] * x.dims[1], call.threads);
}

}  // namespace

si_status check_max_pool(const si_model& model, Node* node) {
  SI_TRY(check_params(*node, 8));
  const Value &x = *model.operand(*node, 0), &y = model.value(node->output);
  if (!x.is_bytes()) return check_float_pool(model, node);
  node->isa = widest_byte_kernels();
  SI_TRY(check_bytes(*node, &y, "an output"));
  SI_TRY(check_same_scale(*node, x, y));
  return check_pool(model, node);
}

si_status run_max_pool(const Call& call) {
  if (!call.y().is_bytes()) return run_pool(call, false);
  const Value& x = call.x();
  return max_pool_bytes(call.node.isa, pool_job(call.model, call.node, false), call.input_bytes(0), call.output_bytes(),
                        x.dims[0] * x.dims[1], call.threads);
}

si_status check_average_pool(const si_model& model, Node* node) {
  SI_TRY(check_params(*node, 9));
  if (node->params[8] != 0 && node->params[8] != 1) return bad_node(*node, "expected parameter 8 to be 0 or 1");
  const Value& x = *model.operand(*node, 0);
  if (x.type != kUint8) return check_float_pool(model, node);
  node->isa = widest_byte_kernels();
  SI_TRY(check_bytes(*node, &model.value(node->output), "an output"));
  if (int64_t{node->params[0]} * node->params[1] > kMostByteSums)
    return bad_node(*node, "expected windows of at most ", kMostByteSums, " bytes");
  return check_pool(model, node);
}

si_status run_average_pool(const Call& call) {
  const Value& x = call.x();
  if (x.type != kUint8) return run_pool(call, true);
  return average_pool_bytes(call.node.isa, pool_job(call.model, call.node, true), quantization_of(x, call.y()),
                            call.input_bytes(0), call.output_bytes(), x.dims[0] * x.dims[1], call.threads);
}

si_status check_global_average_pool(const si_model& model, Node* node) {
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 0));
  const Value& y = model.value(node->output);
  if (x.ndim != 4) return bad_node(*node, "expected an x of 4 dimensions, got ", x.ndim);
  const int64_t dims[] = {x.dims[0], x.dims[1], 1, 1};
  SI_TRY(check_shape(model, *node, dims, y.ndim == 2 ? 2 : 4));
  if (x.is_bytes()) {
    node->isa = widest_byte_kernels();
    if (x.dims[2] * x.dims[3] > kMostByteSums)
      return bad_node(*node, "expected images of at most ", kMostByteSums, " bytes");
    return check_bytes(*node, &y, "an output");
  }
  node->isa = widest_tile_kernels();
  SI_TRY(check_float(*node, &x, "an x"));
  return check_float(*node, &y, "an output");
}

si_status run_global_average_pool(const Call& call) {
  const Value& x = call.x();
  if (x.is_bytes())
    return average_bytes(call.node.isa, quantization_of(x, call.y()), call.input_bytes(0), call.output_bytes(),
                         x.dims[0] * x.dims[1], x.dims[2] * x.dims[3], call.threads);
  return global_average_pool(call.node.isa, call.input(0), call.output(), x.dims[0] * x.dims[1], x.dims[2] * x.dims[3],
                             call.threads);
}

}  // namespace si
