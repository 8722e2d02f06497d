#include "runtime/model.h"

#include <cstring>

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
  return type == kInt8 || type == kUint8 || type == kBool ? 1 : sizeof(float);
}

// Bytes have a scale and a zero point, which nothing else has. Ids and masks come in, what goes out is float32.
si_status read_type(const FileTensor& tensor, uint32_t index, Value* value) {
  if (tensor.type != kFloat32 && (tensor.type < kInt8 || tensor.type > kBool) && tensor.type != kPacked)
    return bad_model("tensor ", index, " has type ", tensor.type);
  if (tensor.kind > kComputed) return bad_model("tensor ", index, " is of kind ", tensor.kind);
  value->type = static_cast<TensorType>(tensor.type);
  value->kind = static_cast<TensorKind>(tensor.kind);
  if (value->type == kPacked && value->kind != kConstant)
    return bad_model("tensor ", index, " is a packed weight and no constant");
  if (value->type == kInt8 && value->kind != kConstant) return bad_model("tensor ", index, " of int8 is no constant");
  if ((value->type == kInt64 || value->type == kBool) && value->kind == kConstant)
    return bad_model("tensor ", index, " of ids or of a mask is constant");
  if (value->type == kUint8 && value->kind != kComputed)
    return bad_model("tensor ", index, " of uint8 is not computed by a node");
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

si_status read_shape(const FileTensor& tensor, uint32_t index, Value* value) {
  if (tensor.ndim > kMostDims)
    return bad_model("expected at most ", kMostDims, " dimensions of tensor ", index, ", got ", tensor.ndim);
  uint64_t elements = 1;
  value->ndim = static_cast<int32_t>(tensor.ndim);
  for (uint32_t i = 0; i < kMostDims; ++i) {
    const uint32_t size = tensor.dims[i];
    if (i >= tensor.ndim ? size != 0 : size < 1 || size > INT32_MAX)
      return bad_model("expected dimension ", i, " of tensor ", index, i < tensor.ndim ? " from 1 to 2^31-1" : " 0",
                       ", got ", size);
    value->dims[i] = size;
    if (i >= tensor.ndim) continue;
    // Elements stay below 2^40, so that nothing that is computed from them wraps.
    if (elements > (uint64_t{1} << 40) / size) return bad_model("expected at most 2^40 elements in tensor ", index);
    elements *= size;
  }
  value->bytes = elements * element_size(value->type);
  SI_REQUIRE(value->bytes <= SIZE_MAX / 4, SI_ERR_UNSUPPORTED, "expected tensors that fit this machine's ",
             8 * sizeof(size_t), "-bit addresses, got ", elements, " elements; try a larger machine");
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
    if (value.kind == kConstant) {
      value.data = file.bytes() + at;
      at += aligned(tensor.bytes);
    }
    if (value.type == kPacked) {
      si_weights* weights = &model->weights[packed++];
      SI_TRY(open_weights(value.data, static_cast<size_t>(tensor.bytes), weights));
      bool same = weights->shape.ndim == value.ndim;
      for (int d = 0; same && d < value.ndim; ++d) same = weights->shape.dims[d] == value.dims[d];
      if (!same) return bad_model("the packed weight of tensor ", i, " has another shape than the tensor");
      value.packed = weights;
      value.bytes = tensor.bytes;
    } else if (value.kind == kConstant && value.bytes != tensor.bytes) {
      return bad_model("expected ", value.bytes, " bytes of tensor ", i, ", got ", tensor.bytes);
    }
    if (value.kind == kInput) value.offset = static_cast<uint64_t>(model->inputs++);
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
    if (record.reserved != 0) return bad_node(node, "expected zero in its reserved word, got ", record.reserved);
    if (record.activation > SI_ACT_TANH) return bad_node(node, "unknown activation ", record.activation);
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

}  // namespace

si_status open_model(const void* file, size_t bytes, bool sealed, si_model* out) {
  SI_TRY(read_file(file, bytes, sealed, &out->file));
  Names names(out->file);
  SI_TRY(read_values(out, &names));
  SI_TRY(read_nodes(out, &names));
  SI_TRY(names.done());
  for (Value& value : out->values)
    value.place = value.kind == kInput ? Place::kInput : value.kind == kConstant ? Place::kConstant : Place::kArena;
  SI_TRY(read_outputs(out));
  SI_TRY(check_golden(*out));
  SI_TRY(plan_memory(out));
  if (sealed && out->arena_bytes != out->file.header->arena_bytes)
    return bad_model("its header tells an arena of ", out->file.header->arena_bytes, " bytes, its nodes need ",
                     out->arena_bytes);
  return SI_OK;
}

}  // namespace si
