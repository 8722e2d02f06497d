// layer_norm: its parameters are eps, as the bits of a float32, and 1 where rows are divided by their root mean square
// and no mean is taken off. attention: heads, features of a head, the scale as the bits of a float32, 1 where a query
// attends to keys up to its own place, where in their last dimension the heads of q, k and v begin, and 1 where tokens
// come before batches: [tokens][batch][features] instead of [batch][tokens][features], of all of them; 1 where both
// products may round what they multiply to bfloat16, which they do where that is faster.
#include "kernels/network/attention.h"

#include <cmath>
#include <cstring>

#include "runtime/operators.h"

namespace si {

namespace {

float float_of(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

si_status check_elements(const si_model& model, const Node& node, uint32_t which, int64_t n) {
  const Value* value = model.operand(node, which);
  if (value == nullptr) return SI_OK;
  SI_TRY(check_float(node, value, "an operand"));
  if (value->kind == kConstant && value->ndim == 1 && value->dims[0] == n) return SI_OK;
  return bad_node(node, "expected ", n, " constant elements of operand ", which);
}

// Which dimensions of q, k, v and y are the batch and the tokens.
int batch_axis(const Node& node) { return node.params[7] == 0 ? 0 : 1; }
int64_t batch_of(const Node& node, const Value& x) { return x.dims[batch_axis(node)]; }
int64_t tokens_of(const Node& node, const Value& x) { return x.dims[1 - batch_axis(node)]; }
// Elements from one of either to the next.
int64_t batch_step(const Node& node, const Value& x) {
  return batch_axis(node) == 1 ? x.dims[2] : x.dims[1] * x.dims[2];
}
int64_t token_step(const Node& node, const Value& x) {
  return batch_axis(node) == 0 ? x.dims[2] : x.dims[1] * x.dims[2];
}

// One of q, k and v, of which `used` features from `first` on are the heads.
si_status check_heads(const si_model& model, const Node& node, uint32_t which, int64_t batch, int64_t used) {
  const Value& value = *model.operand(node, which);
  SI_TRY(check_float(node, &value, "an operand"));
  const int64_t first = node.params[4 + which];
  if (value.ndim != 3 || batch_of(node, value) != batch)
    return bad_node(node, "expected ", batch, " sequences of 3 dimensions in operand ", which);
  if (first < 0 || first > value.dims[2] || used > value.dims[2] - first)
    return bad_node(node, "expected heads within the ", value.dims[2], " features of operand ", which);
  return SI_OK;
}

}  // namespace

si_status check_layer_norm(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 2));
  SI_TRY(check_float(*node, &x, "an x"));
  if (x.ndim < 1) return bad_node(*node, "expected an x of dimensions, got none");
  SI_TRY(check_output(model, *node, x.dims, x.ndim));
  for (uint32_t which : {1u, 2u}) SI_TRY(check_elements(model, *node, which, x.dims[x.ndim - 1]));
  if (const Value* residual = model.operand(*node, 3); residual != nullptr) {
    SI_TRY(check_float(*node, residual, "a residual"));
    SI_TRY(check_output(model, *node, residual->dims, residual->ndim));
  }
  const float eps = float_of(node->params[0]);
  if (!(eps >= 0.0f) || !std::isfinite(eps)) return bad_node(*node, "expected a finite eps >= 0, got ", eps);
  if (node->params[1] != 0 && node->params[1] != 1) return bad_node(*node, "expected parameter 1 to be 0 or 1");
  return SI_OK;
}

si_status run_layer_norm(const Call& call) {
  const Value& x = call.x();
  NormJob job{};
  job.x = call.input(0);
  job.weight = call.input(1);
  job.bias = call.input(2);
  job.residual = call.input(3);
  job.y = call.output();
  job.n = x.dims[x.ndim - 1];
  job.rows = x.elements() / job.n;
  job.eps = float_of(call.node.params[0]);
  job.centred = call.node.params[1] == 0;
  return norm(call.node.isa, job, call.threads);
}

si_status check_attention(const si_model& model, Node* node) {
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 9));
  const int64_t heads = node->params[0], dim = node->params[1];
  if (heads < 1 || dim < 1 || dim > kMostHeadFeatures)
    return bad_node(*node, "expected heads of 1 to ", kMostHeadFeatures, " features, got ", heads, " of ", dim);
  if (!std::isfinite(float_of(node->params[2]))) return bad_node(*node, "expected a finite scale");
  for (const int which : {3, 7, 8})
    if (node->params[which] != 0 && node->params[which] != 1)
      return bad_node(*node, "expected parameter ", which, " to be 0 or 1");
  node->isa = attention_kernels(node->params[8] != 0);
  const Value &q = *model.operand(*node, 0), &k = *model.operand(*node, 1), &v = *model.operand(*node, 2);
  if (q.ndim != 3) return bad_node(*node, "expected a q of 3 dimensions, got ", q.ndim);
  const int64_t batch = batch_of(*node, q), queries = tokens_of(*node, q);
  for (uint32_t which = 0; which < 3; ++which) SI_TRY(check_heads(model, *node, which, batch, heads * dim));
  const int64_t keys = tokens_of(*node, k);
  if (keys != tokens_of(*node, v)) return bad_node(*node, "expected as many keys as values");
  const int64_t dims[] = {q.dims[0], q.dims[1], heads * dim};
  SI_TRY(check_output(model, *node, dims, 3));
  if (const Value* mask = model.operand(*node, 3); mask != nullptr) {
    SI_TRY(check_float(*node, mask, "a mask"));
    const int64_t whole[] = {batch, heads, queries};
    bool fits = mask->ndim == 4 && mask->dims[3] == keys;
    for (int i = 0; fits && i < 3; ++i) fits = mask->dims[i] == 1 || mask->dims[i] == whole[i];
    if (!fits) return bad_node(*node, "expected a mask of ", keys, " keys, by batch, head and query or for all");
  }
  const double products =
      2.0 * static_cast<double>(batch * queries) * static_cast<double>(heads * dim) * static_cast<double>(keys);
  node->multiply_adds = static_cast<int64_t>(products < 4e18 ? products : 4e18);
  return SI_OK;
}

si_status run_attention(const Call& call) {
  const si_model& model = call.model;
  const Node& node = call.node;
  const Value &q = call.x(), &k = model.value(node.operand[1]), &v = model.value(node.operand[2]), &y = call.y();
  Attention whole{};
  whole.batch = batch_of(node, q);
  whole.heads = node.params[0];
  AttentionJob& job = whole.job;
  job.q = call.input(0) + node.params[4];
  job.k = call.input(1) + node.params[5];
  job.v = call.input(2) + node.params[6];
  job.y = call.output();
  job.ldq = token_step(node, q);
  job.ldk = token_step(node, k);
  job.ldv = token_step(node, v);
  job.ldy = token_step(node, y);
  job.queries = tokens_of(node, q);
  job.keys = tokens_of(node, k);
  job.dim = node.params[1];
  job.scale = float_of(node.params[2]);
  job.causal = node.params[3] != 0;
  whole.q_step = batch_step(node, q);
  whole.k_step = batch_step(node, k);
  whole.v_step = batch_step(node, v);
  whole.y_step = batch_step(node, y);
  if (const Value* mask = model.operand(node, 3); mask != nullptr) {
    job.mask = call.input(3);
    // A dimension of one element is that of all.
    job.mask_ld = mask->dims[2] == 1 ? 0 : mask->dims[3];
    whole.mask_head = mask->dims[1] == 1 ? 0 : mask->dims[2] * mask->dims[3];
    whole.mask_step = mask->dims[0] == 1 ? 0 : mask->dims[1] * mask->dims[2] * mask->dims[3];
  }
  return attend(node.isa, whole, call.threads);
}

}  // namespace si
