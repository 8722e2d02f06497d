// resize: images of another height and width. Parameters are the kind, height, width, and the bits of how many pixels
// of x make one of y, vertically and horizontally.
#include "kernels/network/resize.h"

#include <cstring>

#include "runtime/operators.h"

namespace si {

si_status check_resize(const si_model& model, Node* node) {
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 5));
  SI_TRY(check_moved(*node, x, model.value(node->output), "an x"));
  if (x.ndim != 4) return bad_node(*node, "expected an x of 4 dimensions, got ", x.ndim);
  constexpr auto kLast = static_cast<int32_t>(ResizeKind::kBilinearAligned);
  if (node->params[0] < 0 || node->params[0] > kLast)
    return bad_node(*node, "expected a kind from 0 to ", kLast, ", got ", node->params[0]);
  if (x.type == kUint8 && node->params[0] > static_cast<int32_t>(ResizeKind::kNearestExact))
    return bad_node(*node, "expected the nearest pixels of bytes, got kind ", node->params[0]);
  float ratio[2];
  std::memcpy(ratio, node->params + 3, sizeof ratio);
  constexpr float kMost = 1 << 20;
  for (const float each : ratio)
    if (!(each >= 0.0f && each <= kMost)) return bad_node(*node, "expected a ratio from 0 to 2^20, got ", each);
  const int64_t dims[] = {x.dims[0], x.dims[1], node->params[1], node->params[2]};
  return check_shape(model, *node, dims, 4);
}

si_status run_resize(const Call& call) {
  const Value &x = call.x(), &y = call.y();
  ResizeJob job{};
  job.kind = static_cast<ResizeKind>(call.node.params[0]);
  job.x = call.input(0);
  job.y = call.output();
  job.planes = x.dims[0] * x.dims[1];
  job.h = x.dims[2];
  job.w = x.dims[3];
  job.oh = y.dims[2];
  job.ow = y.dims[3];
  std::memcpy(job.ratio, call.node.params + 3, sizeof job.ratio);
  job.bytes = x.type == kUint8;
  return resize(job, call.threads);
}

}  // namespace si
