// The operators of a model's nodes (operators.inc). Each checks a node once, when a model is opened, so that running it
// can neither fail on shapes nor reach past a tensor, and runs it any number of times.
#pragma once

#include "runtime/model.h"

namespace si {

// A node at work.
struct Call {
  const si_model& model;
  const Node& node;
  void* const* data;  // of every tensor
  int threads;

  const Value& x() const { return model.value(node.operand[0]); }
  const Value& y() const { return model.value(node.output); }
  // The elements of an operand; null where the node does without.
  const float* input(uint32_t which) const {
    const bool given = which < node.operands && node.operand[which] != kNoTensor;
    return given ? static_cast<const float*>(data[node.operand[which]]) : nullptr;
  }
  float* output() const { return static_cast<float*>(data[node.output]); }
  const uint8_t* input_bytes(uint32_t which) const { return static_cast<const uint8_t*>(data[node.operand[which]]); }
  uint8_t* output_bytes() const { return static_cast<uint8_t*>(data[node.output]); }
};

struct Operator {
  uint32_t id;
  const char* name;
  uint32_t fewest, most;  // operands
  bool in_place;
  // Both are null of one that is left out.
  si_status (*check)(const si_model& model, Node* node);
  si_status (*run)(const Call& call);
};

constexpr uint32_t kReshape = 9;
// By their bits the operators whose kernels take scratch, linear, conv, the pools and attention: while it is measured,
// their `run` asks for it and touches no tensor. What another operator takes comes from the heap.
constexpr uint64_t kWithScratch = 1u << 1 | 1u << 2 | 1u << 6 | 1u << 7 | 1u << 15;

// Null for a number that no operator has.
const Operator* operator_of(uint32_t id);

#define SI_OPERATOR(id, name, fewest, most, in_place)                      \
  [[nodiscard]] si_status check_##name(const si_model& model, Node* node); \
  [[nodiscard]] si_status run_##name(const Call& call);
#include "runtime/operators.inc"
#undef SI_OPERATOR

// Of a row that is copied between paddings, or pooled: scratch holds up to 26 of them, so that it stays below 20 MB.
constexpr int64_t kScratchColumns = int64_t{1} << 17;

// What the bytes of an operand and an output stand for; y may be of float32.
inline si_quantization quantization_of(const Value& x, const Value& y) {
  si_quantization q{};
  q.struct_size = sizeof q;
  q.x_scale = x.scale;
  q.x_zero_point = x.zero_point;
  q.y_scale = y.scale;
  q.y_zero_point = y.zero_point;
  return q;
}

// ---- What checks share ---------------------------------------------------------------------------------------------

// The failure of a check: bad_node(node, parts...).
template <class... Parts>
[[nodiscard]] si_status bad_node(const Node& node, Parts... parts) {
  return bad_model("node '", node.name, "': ", parts...);
}

// That an operand, or the output, is of plain float32 elements.
[[nodiscard]] si_status check_float(const Node& node, const Value* value, const char* which);
// That it is of uint8.
[[nodiscard]] si_status check_bytes(const Node& node, const Value* value, const char* which);
// That the bytes of two tensors stand for the same.
[[nodiscard]] si_status check_same_scale(const Node& node, const Value& a, const Value& b);
// That x is of float32, or of bytes of y's scale and zero point, and y of the same type: what is moved as it is.
[[nodiscard]] si_status check_moved(const Node& node, const Value& x, const Value& y, const char* which);
// That the activation is one that bytes are clamped by.
[[nodiscard]] si_status check_clamp(const Node& node);
// That the output has these dimensions; of any type.
[[nodiscard]] si_status check_shape(const si_model& model, const Node& node, const int64_t* dims, int32_t ndim);
// And that it is of float32.
[[nodiscard]] si_status check_output(const si_model& model, const Node& node, const int64_t* dims, int32_t ndim);
// That the node has no parameter other than zero from `first` on.
[[nodiscard]] si_status check_params(const Node& node, int first);
[[nodiscard]] si_status check_no_activation(const Node& node);
// That a bias, if there is one, is a constant of `rows` floats.
[[nodiscard]] si_status check_bias(const Node& node, const Value* bias, int64_t rows);

}  // namespace si
