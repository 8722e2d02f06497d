#include "runtime/model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/chosen.h"
#include "core/parallel.h"
#include "formats/half.h"
#include "formats/panel/quads.h"
#include "runtime/operators.h"
#include "runtime/selftest.h"

namespace si {

namespace {

// Whether bytes are UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing past U+10FFFF.
bool is_utf8(const char* text, uint32_t bytes) {
  const auto* at = reinterpret_cast<const uint8_t*>(text);
  const uint8_t* const end = at + bytes;
  while (at < end) {
    const uint32_t lead = *at++;
    if (lead < 0x80) continue;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || end - at < more) return false;
    uint32_t point = lead & (0x3Fu >> more);
    for (int i = 0; i < more; ++i, ++at) {
      if ((*at & 0xC0) != 0x80) return false;
      point = point << 6 | (*at & 0x3Fu);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (point < kLeast[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) return false;
  }
  return true;
}

// The names of tensors, and then those of nodes, follow one another, a zero byte after each.
class Names {
 public:
  explicit Names(const FileView& file) : at_(file.names), end_(file.names + file.header->names_bytes) {}

  [[nodiscard]] si_status next(uint32_t bytes, const char** out) {
    if (bytes > kMostName) return bad_model("expected a name of at most ", kMostName, " bytes, got ", bytes);
    if (static_cast<uint64_t>(end_ - at_) <= bytes) return bad_model("its names end early");
    if (std::memchr(at_, 0, bytes + 1) != at_ + bytes) return bad_model("a name does not end where it should");
    if (!is_utf8(at_, bytes)) return bad_model("a name is not UTF-8");
    *out = at_;
    at_ += bytes + 1;
    return SI_OK;
  }
  [[nodiscard]] si_status done() const { return at_ == end_ ? SI_OK : bad_model("it has more names than it names"); }

 private:
  const char* at_;
  const char* const end_;
};

uint64_t element_size(TensorType type) {
  if (type == kInt64) return sizeof(int64_t);
  if (type == kBFloat16) return sizeof(uint16_t);
  return type == kInt8 || type == kUint8 || type == kBool ? 1 : sizeof(float);
}

// Bytes have a scale and a zero point, which nothing else has. Ids and masks come in, what goes out is float32.
si_status read_type(const FileTensor& tensor, uint32_t index, Value* value) {
  if (tensor.type != kFloat32 && (tensor.type < kBFloat16 || tensor.type > kBool) && tensor.type != kPacked)
    return bad_model("tensor ", index, " has type ", tensor.type);
  if (tensor.kind > kBatchedInput) return bad_model("tensor ", index, " is of kind ", tensor.kind);
  value->type = static_cast<TensorType>(tensor.type);
  value->kind = tensor.kind == kBatchedInput ? kInput : static_cast<TensorKind>(tensor.kind);
  if (value->type == kPacked && value->kind != kConstant)
    return bad_model("tensor ", index, " is a packed weight and no constant");
  if (value->type == kInt8 && value->kind != kConstant) return bad_model("tensor ", index, " of int8 is no constant");
  if ((value->type == kInt64 || value->type == kBool) && value->kind == kConstant)
    return bad_model("tensor ", index, " of ids or of a mask is constant");
  if ((value->type == kUint8 || value->type == kBFloat16) && value->kind != kComputed)
    return bad_model("tensor ", index, value->type == kUint8 ? " of uint8" : " of bfloat16",
                     " is not computed by a node");
  // Bytes are what weights of int8 take. Floats stand between the kernels of every type.
  const si_value_type needs = value->type == kUint8 ? SI_I8 : static_cast<si_value_type>(value->type);
  if ((needs == SI_I8 || needs == SI_BF16) && !has_type(needs))
    return left_out("values of", type_name(needs), "SPARSEINFER_TYPES");
  value->scale = tensor.scale;
  value->zero_point = static_cast<int32_t>(tensor.zero_point);
  if (value->type != kUint8) {
    if (float_bits(tensor.scale) != 0 || tensor.zero_point != 0)
      return bad_model("tensor ", index, " is not of uint8 and has a scale or a zero point");
    return SI_OK;
  }
  if (!sound_scale(tensor.scale))
    return bad_model("expected a scale of tensor ", index, " from 2^-60 to 2^48, got ", tensor.scale);
  if (tensor.zero_point > 255)
    return bad_model("expected a zero point of tensor ", index, " from 0 to 255, got ", tensor.zero_point);
  return SI_OK;
}

// Elements stay below 2^40, so that nothing that is computed from them wraps. Zero for more, and for a dimension that
// no tensor has.
uint64_t elements_of(const Value& value) {
  uint64_t elements = 1;
  for (int i = 0; i < value.ndim; ++i) {
    const int64_t size = value.dims[i];
    if (size < 1 || size > INT32_MAX || elements > (uint64_t{1} << 40) / static_cast<uint64_t>(size)) return 0;
    elements *= static_cast<uint64_t>(size);
  }
  return elements;
}

si_status set_bytes(Value* value, uint64_t elements) {
  value->bytes = elements * element_size(value->type);
  SI_REQUIRE(value->bytes <= SIZE_MAX / 4, SI_ERR_UNSUPPORTED, "expected tensors that fit this machine's ",
             8 * sizeof(size_t), "-bit addresses, got ", elements, " elements; try a larger machine");
  return SI_OK;
}

si_status read_shape(const FileTensor& tensor, uint32_t index, Value* value) {
  if (tensor.ndim > kMostDims)
    return bad_model("expected at most ", kMostDims, " dimensions of tensor ", index, ", got ", tensor.ndim);
  value->ndim = static_cast<int32_t>(tensor.ndim);
  for (uint32_t i = 0; i < kMostDims; ++i) {
    const uint32_t size = tensor.dims[i];
    if (i >= tensor.ndim ? size != 0 : size < 1 || size > INT32_MAX)
      return bad_model("expected dimension ", i, " of tensor ", index, i < tensor.ndim ? " from 1 to 2^31-1" : " 0",
                       ", got ", size);
    value->dims[i] = size;
  }
  const uint64_t elements = elements_of(*value);
  if (elements == 0) return bad_model("expected at most 2^40 elements in tensor ", index);
  return set_bytes(value, elements);
}

// Dimension 0 of a batched input is the batch.
si_status read_batch(const FileTensor& tensor, uint32_t index, uint32_t batch, Value* value) {
  if (tensor.kind != kBatchedInput) return SI_OK;
  if (batch == 0) return bad_model("input ", index, " varies with the batch, and the header tells none");
  if (value->ndim == 0 || value->dims[0] != batch)
    return bad_model("expected the batch of ", batch, " as dimension 0 of input ", index);
  value->per_batch = 1;
  return SI_OK;
}

// Of what is computed from a tensor that varies with the batch, dimension 0 grows with it.
si_status spread_batch(si_model* model, const Node& node) {
  bool varies = false;
  for (uint32_t k = 0; k < node.operands; ++k)
    if (const Value* value = model->operand(node, k); value != nullptr) varies = varies || value->per_batch != 0;
  if (!varies) return SI_OK;
  Value& y = model->values[node.output];
  if (y.ndim == 0 || y.dims[0] % model->batch != 0)
    return bad_node(node, "expected a multiple of the batch of ", model->batch, " as dimension 0 of its output");
  y.per_batch = y.dims[0] / model->batch;
  return SI_OK;
}

si_status read_values(si_model* model, Names* names) {
  const FileView& file = model->file;
  SI_TRY(model->values.allocate(file.header->tensors));
  int64_t packed = 0;
  for (uint32_t i = 0; i < file.header->tensors; ++i) packed += file.tensors[i].type == kPacked;
  SI_TRY(model->weights.allocate(packed));
  uint64_t at = file.data;
  packed = 0;
  for (uint32_t i = 0; i < file.header->tensors; ++i) {
    const FileTensor& tensor = file.tensors[i];
    Value& value = model->values[i];
    SI_TRY(names->next(tensor.name_bytes, &value.name));
    SI_TRY(read_type(tensor, i, &value));
    SI_TRY(read_shape(tensor, i, &value));
    SI_TRY(read_batch(tensor, i, file.header->batch, &value));
    if (value.kind == kConstant) {
      value.data = file.bytes() + at;
      at += aligned(tensor.bytes);
    }
    if (value.type == kPacked) {
      value.packed = &model->weights[packed++];
      value.bytes = tensor.bytes;
    } else if (value.kind == kConstant && value.bytes != tensor.bytes) {
      return bad_model("expected ", value.bytes, " bytes of tensor ", i, ", got ", tensor.bytes);
    }
    if (value.kind == kInput) value.offset = static_cast<uint64_t>(model->inputs++);
  }
  return SI_OK;
}

// Of packed weights that a thread more is taken for: fewer are checked in the time that it may take to come.
constexpr uint64_t kBytesPerThread = uint64_t{16} << 20;

// Opens the packed weights on up to `threads` threads, the largest first.
si_status read_weights(si_model* model, int threads) {
  const int64_t count = model->weights.size();
  if (count == 0) return SI_OK;
  Buffer<const Value*> values;
  Buffer<BlobBytes> blobs;
  Buffer<bool> sums, sound;
  SI_TRY(values.allocate(count));
  SI_TRY(blobs.allocate(count));
  SI_TRY(sums.allocate(count));
  SI_TRY(sound.allocate(count));
  int64_t next = 0;
  for (const Value& value : model->values)
    if (value.packed != nullptr) values[next++] = &value;
  std::qsort(values.data(), static_cast<size_t>(count), sizeof(const Value*), [](const void* a, const void* b) {
    const uint64_t left = (*static_cast<const Value* const*>(a))->bytes;
    const uint64_t right = (*static_cast<const Value* const*>(b))->bytes;
    return left > right ? -1 : left < right ? 1 : 0;
  });
  uint64_t bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    blobs[i] = {values[i]->data, values[i]->bytes};
    bytes += values[i]->bytes;
  }
  const auto used = static_cast<int>(std::min<uint64_t>(static_cast<uint64_t>(threads), 1 + bytes / kBytesPerThread));
  const auto open = [&](int64_t i) {
    return open_weights(blobs[i].data, static_cast<size_t>(blobs[i].bytes),
                        &model->weights[values[i]->packed - model->weights.data()], true);
  };
  // Sums are one item. Validators take any bytes, so that they need not wait for it.
  SI_TRY(parallel_for(used, count + 1, [&](int64_t item) {
    if (item == 0)
      check_blob_sums(blobs.data(), count, sums.data());
    else
      sound[item - 1] = open(item - 1) == SI_OK;
  }));
  for (int64_t i = 0; i < count; ++i) {
    // What is damaged is told by its checksum, and what is not by the check that it fails: once more, for its message.
    if (!sums[i]) {
      SI_TRY(open_weights(blobs[i].data, static_cast<size_t>(blobs[i].bytes),
                          &model->weights[values[i]->packed - model->weights.data()]));
    }
    if (!sound[i]) SI_TRY(open(i));
    const Value& value = *values[i];
    bool same = value.packed->shape.ndim == value.ndim;
    for (int d = 0; same && d < value.ndim; ++d) same = value.packed->shape.dims[d] == value.dims[d];
    if (!same) return bad_model("the packed weight of tensor '", value.name, "' has another shape than the tensor");
  }
  return SI_OK;
}

// A tensor is there from its node on, and each is computed once: what `seen` keeps.
si_status read_nodes(si_model* model, Names* names) {
  const FileView& file = model->file;
  SI_TRY(model->nodes.allocate(file.header->nodes));
  Buffer<uint8_t> seen;
  SI_TRY(seen.allocate(model->values.size()));
  for (int64_t i = 0; i < model->values.size(); ++i) seen[i] = model->values[i].kind != kComputed;
  uint32_t at = 0;
  for (uint32_t i = 0; i < file.header->nodes; ++i) {
    const FileNode& record = file.nodes[i];
    Node& node = model->nodes[i];
    SI_TRY(names->next(record.name_bytes, &node.name));
    node.op = operator_of(record.op);
    SI_REQUIRE(node.op != nullptr, SI_ERR_UNSUPPORTED, "node '", node.name, "' has operator ", record.op,
               ", which this library does not know; try a newer one");
    if (node.op->check == nullptr) {
      return fail(SI_ERR_UNSUPPORTED, "node '", node.name, "': expected a library that has the operator ",
                  node.op->name,
                  ", got one that was built without it; try a build with SPARSEINFER_OPERATORS of ALL, or a list that "
                  "names ",
                  node.op->name);
    }
    if (record.reserved != 0) return bad_node(node, "expected zero in its reserved word, got ", record.reserved);
    if (record.activation > SI_ACT_HARDSIGMOID) return bad_node(node, "unknown activation ", record.activation);
    if (record.operands < node.op->fewest || record.operands > node.op->most)
      return bad_node(node, "expected ", node.op->fewest, " to ", node.op->most, " operands, got ", record.operands);
    if (record.operands > file.header->operands - at) return bad_node(node, "its operands end after the file's");
    node.activation = static_cast<si_activation>(record.activation);
    node.operands = record.operands;
    node.operand = file.operands + at;
    node.params = record.params;
    node.output = record.output;
    at += record.operands;
    for (uint32_t k = 0; k < node.operands; ++k) {
      const uint32_t tensor = node.operand[k];
      if (tensor == kNoTensor ? k < node.op->fewest : tensor >= file.header->tensors)
        return bad_node(node, "expected a tensor as operand ", k, ", got ", tensor);
      if (tensor != kNoTensor && seen[tensor] == 0)
        return bad_node(node, "its operand ", k, " is not computed before it");
    }
    if (node.output >= file.header->tensors || seen[node.output] != 0)
      return bad_node(node, "expected an output that nothing else gives, got tensor ", node.output);
    seen[node.output] = 1;
    SI_TRY(spread_batch(model, node));
    SI_TRY(node.op->check(*model, &node));
  }
  if (at != file.header->operands) return bad_model("it has more operands than its nodes");
  for (int64_t i = 0; i < seen.size(); ++i)
    if (seen[i] == 0) return bad_model("nothing computes tensor ", i);
  return SI_OK;
}

// Each output is computed by a node, and no tensor is two outputs.
si_status read_outputs(si_model* model) {
  const FileView& file = model->file;
  for (uint32_t i = 0; i < file.header->outputs; ++i) {
    const uint32_t tensor = file.outputs[i];
    if (tensor >= file.header->tensors || model->values[tensor].kind != kComputed)
      return bad_model("expected output ", i, " to be a tensor that a node computes, got ", tensor);
    Value& value = model->values[tensor];
    if (value.place == Place::kOutput) return bad_model("output ", i, " is an output already");
    if (value.type != kFloat32) return bad_model("expected output ", i, " of float32, got type ", value.type);
    value.place = Place::kOutput;
    value.offset = i;
  }
  return SI_OK;
}

si_status place_values(si_model* model) {
  for (Value& value : model->values)
    value.place = value.kind == kInput ? Place::kInput : value.kind == kConstant ? Place::kConstant : Place::kArena;
  SI_TRY(read_outputs(model));
  return plan_memory(model);
}

}  // namespace

si_status open_model(const void* file, size_t bytes, bool sealed, int threads, si_model* out) {
  SI_TRY(read_file(file, bytes, sealed, &out->file));
  out->batch = out->file.header->batch;
  Names names(out->file);
  SI_TRY(read_values(out, &names));
  SI_TRY(read_weights(out, threads));
  SI_TRY(read_nodes(out, &names));
  SI_TRY(names.done());
  bool varies = false;
  for (const Value& value : out->values) varies = varies || value.per_batch != 0;
  if (!varies && out->batch != 0) return bad_model("its header tells a batch, and no input varies with it");
  SI_TRY(place_values(out));
  SI_TRY(check_golden(*out));
  if (sealed && out->arena_bytes != out->file.header->arena_bytes)
    return bad_model("its header tells an arena of ", out->file.header->arena_bytes, " bytes, its nodes need ",
                     out->arena_bytes);
  return SI_OK;
}

si_status model_at_batch(const si_model& base, int64_t batch, si_model* out) {
  const FileHeader& header = *base.file.header;
  SI_REQUIRE(header.batch != 0, SI_ERR_ARGUMENT,
             "expected a model whose batch may vary, got one of a fixed batch; try exporting it with a dynamic batch");
  SI_REQUIRE(batch >= 1 && batch <= header.most_batch, SI_ERR_ARGUMENT, "expected a batch from 1 to ",
             header.most_batch, ", got ", batch, "; try exporting the model for a larger one");
  out->file = base.file;
  out->inputs = base.inputs;
  out->batch = batch;
  SI_TRY(out->values.allocate(base.values.size()));
  std::copy(base.values.begin(), base.values.end(), out->values.begin());
  for (Value& value : out->values) {
    if (value.per_batch == 0) continue;
    value.dims[0] = value.per_batch * batch;
    const uint64_t elements = elements_of(value);
    SI_REQUIRE(elements != 0, SI_ERR_ARGUMENT, "expected a batch that leaves at most 2^40 elements in tensor '",
               value.name, "', got ", batch, "; try a smaller one");
    SI_TRY(set_bytes(&value, elements));
  }
  SI_TRY(out->nodes.allocate(base.nodes.size()));
  std::copy(base.nodes.begin(), base.nodes.end(), out->nodes.begin());
  for (Node& node : out->nodes) {
    node.shares = false;
    SI_TRY(node.op->check(*out, &node));
  }
  return place_values(out);
}

}  // namespace si
