// unary: a function of each element. Parameters are its number, and the bits of two floats.
#include "kernels/network/unary.h"

#include <cmath>
#include <cstring>

#include "kernels/source.h"
#include "runtime/operators.h"

namespace si {

namespace {

UnaryFunction function_of(const Node& node) {
  UnaryFunction function{};
  function.kind = static_cast<UnaryKind>(node.params[0]);
  std::memcpy(function.p, node.params + 1, sizeof function.p);
  return function;
}

}  // namespace

si_status check_unary(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 3));
  constexpr auto kLast = static_cast<int32_t>(UnaryKind::kRound);
  if (node->params[0] < 0 || node->params[0] > kLast)
    return bad_node(*node, "expected a function from 0 to ", kLast, ", got ", node->params[0]);
  const UnaryFunction function = function_of(*node);
  for (const float p : function.p)
    if (std::isnan(p)) return bad_node(*node, "expected numbers as parameters 1 and 2, got NaN");
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_float(*node, &x, "an x"));
  return check_output(model, *node, x.dims, x.ndim);
}

si_status run_unary(const Call& call) {
  return unary(call.node.isa, function_of(call.node), call.input(0), call.output(), call.y().elements(), call.threads);
}

}  // namespace si
