// A model: a file that was read, checked and planned. It never changes, and any number of contexts use it at once.
#pragma once

#include <sparseinfer.h>

#include "core/buffer.h"
#include "core/handle.h"
#include "formats/weights.h"
#include "kernels/registry.h"
#include "runtime/file.h"
#include "runtime/load.h"

namespace si {

struct Operator;

// Where a tensor's bytes are while the model runs.
enum class Place : uint8_t { kInput, kOutput, kConstant, kArena };

struct Value {
  TensorType type;
  TensorKind kind;  // of batched inputs kInput
  int32_t ndim;
  int64_t dims[kMostDims];
  int64_t per_batch;  // dimension 0 over the batch; 0 where it does not vary with it
  uint64_t bytes;     // of the elements; of a packed weight, those of its buffer
  float scale;        // of uint8: an element is scale * (byte - zero_point)
  int32_t zero_point;
  const char* name;          // in the file, with a zero byte at its end
  const uint8_t* data;       // of a constant
  const si_weights* packed;  // of a packed weight
  // By the plan: tensors that share their bytes have one root, whose place and offset are theirs.
  uint32_t root;
  Place place;
  uint64_t offset;  // in the arena, or the number of the input or output

  // Whether they are bytes, which none are where int8 is left out.
  bool is_bytes() const { return SI_HAS(int8) && type == kUint8; }
  int64_t elements() const {
    int64_t product = 1;
    for (int i = 0; i < ndim; ++i) product *= dims[i];
    return product;
  }
  int64_t element_bytes() const { return static_cast<int64_t>(bytes) / elements(); }
};

struct Node {
  const Operator* op;
  si_activation activation;
  uint32_t operands;
  const uint32_t* operand;  // tensors, kNoTensor for those that it does without
  uint32_t output;
  const int32_t* params;
  const char* name;
  // What its operator's check prepares.
  const TileKernels* isa;  // null: the scalar kernels
  int64_t multiply_adds;   // that it computes
  bool shares;             // its output is its first operand's bytes: nothing runs
};

}  // namespace si

struct si_model {
  si::FileBytes loaded;  // none where the file is the caller's
  si::FileView file;
  si::Buffer<si::Value> values;
  si::Buffer<si::Node> nodes;
  si::Buffer<si_weights> weights;
  int64_t inputs = 0;
  int64_t batch = 0;  // that the dimensions of the tensors are for; 0: it cannot vary
  uint64_t arena_bytes = 0;
  uint32_t magic = si::kOpenHandle;

  const si::Value& value(uint32_t tensor) const { return values[tensor]; }
  // The operand of a node; null where it does without.
  const si::Value* operand(const si::Node& node, uint32_t which) const {
    return which < node.operands && node.operand[which] != si::kNoTensor ? &values[node.operand[which]] : nullptr;
  }
};

namespace si {

// Opens a file in place, on up to `threads` threads. Unless it is `sealed`, its checksum and the bytes of its arena are
// not compared.
[[nodiscard]] si_status open_model(const void* file, size_t bytes, bool sealed, int threads, si_model* out);

// The same file with the dimensions that another batch gives its tensors: checked and planned anew. `base` stays alive
// as long as `out`, which uses its weights.
[[nodiscard]] si_status model_at_batch(const si_model& base, int64_t batch, si_model* out);

// Fills in the roots, places and offsets of the tensors, and the bytes of the arena: plan.cc.
[[nodiscard]] si_status plan_memory(si_model* model);

}  // namespace si
