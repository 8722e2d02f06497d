// reduce: a sum, mean, maximum or minimum over some dimensions. Parameters are the kind, the dimensions as bits, and 1
// where they stay, of size 1.
#include "kernels/network/reduce.h"

#include "kernels/source.h"
#include "runtime/operators.h"

namespace si {

si_status check_reduce(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 3));
  SI_TRY(check_float(*node, &x, "an x"));
  constexpr auto kLast = static_cast<int32_t>(ReduceKind::kMinimum);
  if (node->params[0] < 0 || node->params[0] > kLast)
    return bad_node(*node, "expected a kind from 0 to ", kLast, ", got ", node->params[0]);
  const int32_t over = node->params[1], keeps = node->params[2];
  if (over < 1 || over >= 1 << x.ndim)
    return bad_node(*node, "expected some of ", x.ndim, " dimensions as bits, got ", over);
  if (keeps != 0 && keeps != 1) return bad_node(*node, "expected 0 or 1 in parameter 2, got ", keeps);
  int64_t dims[kMostDims];
  int32_t ndim = 0;
  for (int i = 0; i < x.ndim; ++i) {
    const bool reduced = (over >> i & 1) != 0;
    if (!reduced || keeps == 1) dims[ndim++] = reduced ? 1 : x.dims[i];
  }
  return check_output(model, *node, dims, ndim);
}

si_status run_reduce(const Call& call) {
  const Value& x = call.x();
  ReduceJob job{};
  job.kind = static_cast<ReduceKind>(call.node.params[0]);
  job.x = call.input(0);
  job.y = call.output();
  job.ndim = x.ndim;
  for (int i = 0; i < x.ndim; ++i) {
    job.dims[i] = x.dims[i];
    job.reduced[i] = (call.node.params[1] >> i & 1) != 0;
  }
  return reduce(call.node.isa, job, call.threads);
}

}  // namespace si
