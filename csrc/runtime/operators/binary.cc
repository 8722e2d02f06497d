// binary: an element-wise operation, its parameter, of two tensors that are broadcast as numpy does.
#include "kernels/network/binary.h"

#include <algorithm>

#include "kernels/source.h"
#include "runtime/operators.h"

namespace si {

si_status check_binary(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  SI_TRY(check_params(*node, 1));
  const int32_t kind = node->params[0];
  if (kind < 0 || kind > static_cast<int32_t>(BinaryKind::kPower))
    return bad_node(*node, "expected an operation from 0 to ", static_cast<int32_t>(BinaryKind::kPower), ", got ",
                    kind);
  const Value *a = model.operand(*node, 0), *b = model.operand(*node, 1);
  SI_TRY(check_float(*node, a, "an operand"));
  SI_TRY(check_float(*node, b, "an operand"));
  const int32_t ndim = std::max(a->ndim, b->ndim);
  int64_t dims[kMostDims];
  for (int i = 1; i <= ndim; ++i) {
    const int64_t a_size = i <= a->ndim ? a->dims[a->ndim - i] : 1, b_size = i <= b->ndim ? b->dims[b->ndim - i] : 1;
    if (a_size != b_size && a_size != 1 && b_size != 1)
      return bad_node(*node, "expected operands whose sizes are equal or 1 in dimension ", ndim - i, ", got ", a_size,
                      " and ", b_size);
    dims[ndim - i] = std::max(a_size, b_size);
  }
  return check_output(model, *node, dims, ndim);
}

si_status run_binary(const Call& call) {
  const Value &a = call.x(), &b = call.model.value(call.node.operand[1]);
  BinaryJob job{};
  job.kind = static_cast<BinaryKind>(call.node.params[0]);
  job.activation = call.node.activation;
  job.a = call.input(0);
  job.b = call.input(1);
  job.y = call.output();
  broadcast_dims(a.dims, a.ndim, b.dims, b.ndim, &job);
  return binary(call.node.isa, job, call.threads);
}

}  // namespace si
