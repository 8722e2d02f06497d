// embedding, permute, where and slice: what moves elements by numbers. Ids, and conditions that promise to be 0 or 1,
// are looked at when they are there: in a run.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "kernels/source.h"
#include "runtime/operators.h"

namespace si {

namespace {

// Elements from one index to the next of each dimension of y, in an x that is broadcast to it; 0 where it is repeated.
// False where it does not fit.
bool broadcast_steps(const Value& x, const Value& y, int64_t* steps) {
  if (x.ndim > y.ndim) return false;
  int64_t step = 1;
  for (int i = y.ndim - 1; i >= 0; --i) {
    const int own = i - (y.ndim - x.ndim);
    const int64_t size = own >= 0 ? x.dims[own] : 1;
    if (size != 1 && size != y.dims[i]) return false;
    steps[i] = size == 1 ? 0 : step;
    step *= size;
  }
  return true;
}

// Where element `at` of y stands in something with such steps.
int64_t place_of(const Value& y, int64_t at, const int64_t* steps) {
  int64_t place = 0;
  for (int i = y.ndim - 1; i >= 0; --i) {
    place += at % y.dims[i] * steps[i];
    at /= y.dims[i];
  }
  return place;
}

// The name of the input that the first operand shows.
const char* input_name(const Call& call) { return call.model.value(call.x().root).name; }

const int64_t* numbers_of(const Call& call) { return static_cast<const int64_t*>(call.data[call.node.operand[0]]); }

}  // namespace

si_status check_embedding(const si_model& model, Node* node) {
  const Value &ids = *model.operand(*node, 0), &table = *model.operand(*node, 1);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 0));
  if (ids.type != kInt64) return bad_node(*node, "expected ids of int64, got type ", ids.type);
  SI_TRY(check_float(*node, &table, "a table"));
  if (table.ndim != 2) return bad_node(*node, "expected a table of 2 dimensions, got ", table.ndim);
  if (ids.ndim >= kMostDims) return bad_node(*node, "expected ids of fewer than ", kMostDims, " dimensions");
  int64_t dims[kMostDims];
  for (int i = 0; i < ids.ndim; ++i) dims[i] = ids.dims[i];
  dims[ids.ndim] = table.dims[1];
  return check_output(model, *node, dims, ids.ndim + 1);
}

si_status run_embedding(const Call& call) {
  const Value& table = call.model.value(call.node.operand[1]);
  const int64_t rows = table.dims[0], n = table.dims[1], count = call.x().elements();
  const int64_t* const ids = numbers_of(call);
  for (int64_t i = 0; i < count; ++i)
    SI_REQUIRE(ids[i] >= 0 && ids[i] < rows, SI_ERR_ARGUMENT, "expected ids of '", input_name(call), "' from 0 to ",
               rows - 1, ", got ", ids[i], " at element ", i, "; try the tokenizer of the model");
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(call.output() + i * n, call.input(1) + ids[i] * n, static_cast<size_t>(n) * sizeof(float));
  return SI_OK;
}

si_status check_permute(const si_model& model, Node* node) {
  node->isa = widest_tile_kernels();
  const Value& x = *model.operand(*node, 0);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, x.ndim));
  SI_TRY(check_float(*node, &x, "an x"));
  int64_t dims[kMostDims];
  uint32_t seen = 0;
  for (int i = 0; i < x.ndim; ++i) {
    const int32_t axis = node->params[i];
    if (axis < 0 || axis >= x.ndim || (seen >> axis & 1) != 0)
      return bad_node(*node, "expected each axis below ", x.ndim, " once, got ", axis);
    seen |= 1u << axis;
    dims[i] = x.dims[axis];
  }
  return check_output(model, *node, dims, x.ndim);
}

si_status run_permute(const Call& call) {
  const Value &x = call.x(), &y = call.y();
  if (x.ndim == 0) return call.output()[0] = call.input(0)[0], SI_OK;
  int64_t steps[kMostDims]{}, own[kMostDims]{};
  int64_t step = 1;
  for (int i = x.ndim - 1; i >= 0; --i) {
    own[i] = step;
    step *= x.dims[i];
  }
  for (int i = 0; i < y.ndim; ++i) steps[i] = own[call.node.params[i]];
  // Some rows of the last dimension at a time, so that what one of them reads of a cache line the next ones find near.
  const int64_t n = y.dims[y.ndim - 1], rows = y.elements() / n, last = steps[y.ndim - 1];
  constexpr int64_t kRows = 16;
  const TileKernels* const isa = call.node.isa;
  const int threads = !has_tiles(isa) ? call.threads : useful_threads(isa->tuning.threads, call.threads, y.elements());
  return parallel_for(threads, (rows + kRows - 1) / kRows, [&](int64_t part) {
    const int64_t first = part * kRows, count = std::min(kRows, rows - first);
    const float* from[kRows];
    float* const to = call.output() + first * n;
    for (int64_t r = 0; r < count; ++r) from[r] = call.input(0) + place_of(y, (first + r) * n, steps);
    if (last == 1) {
      for (int64_t r = 0; r < count; ++r) std::memcpy(to + r * n, from[r], static_cast<size_t>(n) * sizeof(float));
      return;
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < count; ++r) to[r * n + i] = from[r][i * last];
  });
}

si_status check_where(const si_model& model, Node* node) {
  const Value &condition = *model.operand(*node, 0), &y = model.value(node->output);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 1));
  SI_TRY(check_float(*node, &y, "an output"));
  if (condition.type != kInt64 && condition.type != kBool)
    return bad_node(*node, "expected a condition of int64 or bool, got type ", condition.type);
  if (node->params[0] != 0 && node->params[0] != 1) return bad_node(*node, "expected parameter 0 to be 0 or 1");
  for (uint32_t which : {1u, 2u}) SI_TRY(check_float(*node, model.operand(*node, which), "an operand"));
  for (uint32_t which = 0; which < 3; ++which) {
    int64_t steps[kMostDims];
    if (!broadcast_steps(*model.operand(*node, which), y, steps))
      return bad_node(*node, "expected operand ", which, " to be broadcast to the output");
  }
  // That no dimension of y is larger than what is chosen from.
  for (int i = 0; i < y.ndim; ++i) {
    bool given = y.dims[i] == 1;
    for (uint32_t which = 0; which < 3; ++which) {
      const Value& x = *model.operand(*node, which);
      const int own = i - (y.ndim - x.ndim);
      given = given || (own >= 0 && x.dims[own] == y.dims[i]);
    }
    if (!given) return bad_node(*node, "expected dimension ", i, " of the output of an operand, got ", y.dims[i]);
  }
  return SI_OK;
}

si_status run_where(const Call& call) {
  const Value &condition = call.x(), &y = call.y();
  const int64_t* const numbers = numbers_of(call);
  const uint8_t* const bytes = call.input_bytes(0);
  if (call.node.params[0] == 1 && condition.type == kInt64)
    for (int64_t i = 0; i < condition.elements(); ++i)
      SI_REQUIRE(numbers[i] == 0 || numbers[i] == 1, SI_ERR_ARGUMENT, "expected 0 or 1 in '", input_name(call),
                 "', got ", numbers[i], " at element ", i, "; try the mask of a tokenizer");
  int64_t steps[3][kMostDims];
  for (uint32_t which = 0; which < 3; ++which) broadcast_steps(*call.model.operand(call.node, which), y, steps[which]);
  const int64_t n = y.elements();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t place = place_of(y, i, steps[0]);
    const bool yes = condition.type == kBool ? bytes[place] != 0 : numbers[place] != 0;
    call.output()[i] = yes ? call.input(1)[place_of(y, i, steps[1])] : call.input(2)[place_of(y, i, steps[2])];
  }
  return SI_OK;
}

si_status check_slice(const si_model& model, Node* node) {
  const Value &x = *model.operand(*node, 0), &y = model.value(node->output);
  SI_TRY(check_no_activation(*node));
  SI_TRY(check_params(*node, 3));
  SI_TRY(check_moved(*node, x, y, "an x"));
  const int32_t axis = node->params[0];
  if (axis < 0 || axis >= x.ndim) return bad_node(*node, "expected an axis below ", x.ndim, ", got ", axis);
  if (y.ndim != x.ndim) return bad_node(*node, "expected an output of ", x.ndim, " dimensions, got ", y.ndim);
  const int64_t first = node->params[1], step = node->params[2], count = y.dims[axis];
  if (first < 0 || step < 1 || first + (count - 1) * step >= x.dims[axis])
    return bad_node(*node, "expected ", count, " elements from ", first, " on within the ", x.dims[axis], " of axis ",
                    axis);
  int64_t dims[kMostDims];
  for (int i = 0; i < x.ndim; ++i) dims[i] = i == axis ? count : x.dims[i];
  return check_shape(model, *node, dims, x.ndim);
}

si_status run_slice(const Call& call) {
  const Value &x = call.x(), &y = call.y();
  const int32_t axis = call.node.params[0];
  const int64_t step = call.node.params[2], count = y.dims[axis];
  int64_t outer = 1, inner = y.element_bytes();
  for (int i = 0; i < axis; ++i) outer *= x.dims[i];
  for (int i = axis + 1; i < x.ndim; ++i) inner *= x.dims[i];
  const uint8_t* const from = call.input_bytes(0) + call.node.params[1] * inner;
  // Of a step of one, all that is taken of a row stands together.
  const int64_t pieces = step == 1 ? 1 : count, piece = step == 1 ? count * inner : inner;
  for (int64_t row = 0; row < outer; ++row)
    for (int64_t i = 0; i < pieces; ++i)
      std::memcpy(call.output_bytes() + (row * pieces + i) * piece, from + (row * x.dims[axis] + i * step) * inner,
                  static_cast<size_t>(piece));
  return SI_OK;
}

}  // namespace si
