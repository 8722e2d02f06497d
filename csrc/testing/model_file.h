// Model files for tests, laid out as csrc/runtime/FORMAT.md says, and not by the library.
#pragma once

#include <sparseinfer.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "runtime/file.h"
#include "testing/c_api.h"
#include "testing/check.h"
#include "testing/guarded.h"

namespace si::testing {

// Memory that begins at a multiple of 64 bytes and ends where its content does.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  AlignedBytes(const uint8_t* bytes, size_t size) : size_(size) {
    void* memory = nullptr;
    SI_CHECK_EQ(posix_memalign(&memory, 64, size == 0 ? 1 : size), 0);
    data_.reset(static_cast<uint8_t*>(memory));
    if (size != 0) std::memcpy(data_.get(), bytes, size);
  }
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const { std::free(memory); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t size_ = 0;
};

struct ModelFile {
  std::vector<FileTensor> tensors;
  std::vector<FileNode> nodes;
  std::vector<uint32_t> operands, outputs;
  std::vector<std::string> tensor_names, node_names;
  std::vector<std::vector<uint8_t>> data;
  std::string metadata = "{}";
  std::vector<uint8_t> golden;  // the section as it is
  uint32_t batch = 0, most_batch = 0;

  uint32_t tensor(TensorKind kind, const std::vector<uint32_t>& dims, TensorType type = kFloat32) {
    FileTensor record{};
    record.type = type;
    record.kind = kind;
    record.ndim = static_cast<uint32_t>(dims.size());
    for (size_t i = 0; i < dims.size() && i < kMostDims; ++i) record.dims[i] = dims[i];
    tensor_names.push_back("t" + std::to_string(tensors.size()));
    record.name_bytes = static_cast<uint32_t>(tensor_names.back().size());
    tensors.push_back(record);
    return static_cast<uint32_t>(tensors.size() - 1);
  }
  uint32_t input(const std::vector<uint32_t>& dims) { return tensor(kInput, dims); }
  uint32_t constant(const std::vector<uint32_t>& dims, const std::vector<float>& values) {
    const uint32_t id = tensor(kConstant, dims);
    keep(id, reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float));
    return id;
  }
  uint32_t packed(const std::vector<uint32_t>& dims, const std::vector<float>& values, uint32_t groups = 1,
                  si_value_type type = SI_F32, int32_t g = 0) {
    si_weight_desc desc{static_cast<int32_t>(dims.size()), {}, groups};
    for (size_t i = 0; i < dims.size() && i < 4; ++i) desc.shape[i] = dims[i];
    si_pack_options options{};
    options.struct_size = sizeof options;
    options.format = SI_FORMAT_PANEL;
    options.value_type = type;
    options.g = g;
    void* blob = nullptr;
    size_t bytes = 0;
    SI_CHECK_EQ(si_pack(values.data(), &desc, &options, &blob, &bytes), SI_OK);
    const uint32_t id = tensor(kConstant, dims, kPacked);
    keep(id, static_cast<const uint8_t*>(blob), bytes);
    si_free(blob);
    return id;
  }
  uint32_t int8(const std::vector<uint32_t>& dims, const std::vector<int8_t>& values) {
    const uint32_t id = tensor(kConstant, dims, kInt8);
    keep(id, reinterpret_cast<const uint8_t*>(values.data()), values.size());
    return id;
  }
  // Lets a tensor be of bytes; gives it.
  uint32_t as_bytes(uint32_t id, float scale, uint32_t zero_point) {
    tensors[id].type = kUint8;
    tensors[id].scale = scale;
    tensors[id].zero_point = zero_point;
    return id;
  }
  // Gives the output, of these dimensions.
  uint32_t node(uint32_t op, const std::vector<uint32_t>& from, const std::vector<uint32_t>& dims,
                const std::vector<int32_t>& params = {}, si_activation activation = SI_ACT_NONE) {
    FileNode record{};
    record.op = op;
    record.activation = static_cast<uint32_t>(activation);
    record.operands = static_cast<uint32_t>(from.size());
    record.output = tensor(kComputed, dims);
    for (size_t i = 0; i < params.size() && i < kParams; ++i) record.params[i] = params[i];
    node_names.push_back("n" + std::to_string(nodes.size()));
    record.name_bytes = static_cast<uint32_t>(node_names.back().size());
    operands.insert(operands.end(), from.begin(), from.end());
    nodes.push_back(record);
    return record.output;
  }

  // Gives the file a golden section of zeros with this bound of every output.
  void add_golden(float bound) {
    const auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    const auto bytes_of = [&](const FileTensor& tensor) {
      size_t bytes = sizeof(float);
      for (uint32_t i = 0; i < tensor.ndim; ++i) bytes *= tensor.dims[i];
      return aligned(bytes);
    };
    size_t size = aligned(outputs.size() * sizeof(float));
    for (const FileTensor& tensor : tensors)
      size += tensor.kind == kInput || tensor.kind == kBatchedInput ? bytes_of(tensor) : 0;
    for (const uint32_t output : outputs) size += bytes_of(tensors[output]);
    golden.assign(size, 0);
    for (size_t i = 0; i < outputs.size(); ++i) std::memcpy(&golden[i * sizeof bound], &bound, sizeof bound);
  }

  // Sealed, unless the test wants it as it is.
  AlignedBytes bytes(bool seal = true) const {
    FileHeader header{};
    std::memcpy(header.magic, "SINFMODL", 8);
    header.version = kModelVersion;
    header.tensors = static_cast<uint32_t>(tensors.size());
    header.nodes = static_cast<uint32_t>(nodes.size());
    header.operands = static_cast<uint32_t>(operands.size());
    header.outputs = static_cast<uint32_t>(outputs.size());
    std::string names;
    for (const auto* each : {&tensor_names, &node_names})
      for (const std::string& name : *each) names.append(name.c_str(), name.size() + 1);
    header.names_bytes = static_cast<uint32_t>(names.size());
    header.metadata_bytes = static_cast<uint32_t>(metadata.size());
    header.golden_bytes = golden.size();
    header.batch = batch;
    header.most_batch = most_batch;
    std::vector<uint8_t> out;
    const auto add = [&](const void* section, size_t size) {
      const size_t at = out.size();
      out.resize(at + (size + 63) / 64 * 64);
      if (size != 0) std::memcpy(out.data() + at, section, size);
    };
    add(&header, sizeof header);
    add(tensors.data(), tensors.size() * sizeof(FileTensor));
    add(nodes.data(), nodes.size() * sizeof(FileNode));
    add(operands.data(), operands.size() * sizeof(uint32_t));
    add(outputs.data(), outputs.size() * sizeof(uint32_t));
    add(names.data(), names.size());
    add(metadata.data(), metadata.size());
    for (const auto& each : data) add(each.data(), each.size());
    add(golden.data(), golden.size());
    const uint64_t total = out.size();
    std::memcpy(out.data() + offsetof(FileHeader, total_bytes), &total, sizeof total);
    AlignedBytes file(out.data(), out.size());
    if (seal) SI_CHECK_EQ(si_model_seal(file.data(), file.size()), SI_OK);
    return file;
  }

 private:
  void keep(uint32_t id, const uint8_t* bytes, size_t size) {
    data.emplace_back(bytes, bytes + size);
    tensors[id].bytes = size;
  }
};

struct ModelDeleter {
  void operator()(si_model* model) const { si_model_close(model); }
};
using OpenModel = std::unique_ptr<si_model, ModelDeleter>;

// Null where it is refused; `status`, unless null, says why.
inline OpenModel open(const AlignedBytes& file, si_status* status = nullptr) {
  si_model* model = nullptr;
  const si_status got = si_model_open(file.data(), file.size(), &model);
  if (status != nullptr) *status = got;
  return OpenModel(got == SI_OK ? model : nullptr);
}

// Checks that a file is refused for a reason that names `part`, whether or not it is sealed.
inline void refused(const ModelFile& file, const char* part, const std::function<void(uint8_t*)>& change = {}) {
  const AlignedBytes bytes = file.bytes(false);
  if (change) change(bytes.data());
  const auto says = [](const char* text) { return std::strstr(si_last_error(), text) != nullptr; };
  for (const bool sealing : {true, false}) {
    si_status status = SI_OK;
    if (sealing)
      status = si_model_seal(bytes.data(), bytes.size());
    else
      open(bytes, &status);
    SI_CHECK(status == SI_ERR_CORRUPT || status == SI_ERR_UNSUPPORTED || status == SI_ERR_ARGUMENT);
    // Unsealed, it is refused for its checksum before its tensors and nodes are looked at.
    if (!SI_CHECK(says(part) || (!sealing && says("checksum"))))
      std::fprintf(stderr, "  expected '%s' in '%s'\n", part, si_last_error());
  }
}

// Checks that a file is refused with any bit of it flipped.
inline void refused_where_flipped(const AlignedBytes& whole) {
  AlignedBytes flipped(whole.data(), whole.size());
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    si_status status = SI_OK;
    flipped.data()[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    open(flipped, &status);
    flipped.data()[bit / 8] ^= static_cast<uint8_t>(1u << bit % 8);
    if (!SI_CHECK(status == SI_ERR_CORRUPT || status == SI_ERR_UNSUPPORTED))
      std::fprintf(stderr, "  bit %zu of byte %zu\n", bit % 8, bit / 8);
  }
}

inline si_model_info describe(const si_model* model) {
  si_model_info info = sized<si_model_info>();
  SI_CHECK_EQ(si_model_describe(model, &info), SI_OK);
  return info;
}

// A context with exactly the bytes that it asks for, of which its runs take all that they need.
class Runner {
 public:
  Runner(const si_model* model, int threads)
      : bytes_(static_cast<size_t>(si_context_bytes(model, threads))), memory_(bytes_) {
    SI_CHECK_EQ(si_context_create(model, memory_.data(), bytes_, threads, &context_), SI_OK);
  }
  si_status run(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, double* seconds = nullptr) {
    const size_t scratch = si_scratch_bytes();
    const si_status status = si_context_run(context_, inputs.data(), outputs.data(), seconds);
    SI_CHECK_EQ(si_scratch_bytes(), scratch);
    return status;
  }
  si_status selftest() { return si_context_selftest(context_, nullptr); }

 private:
  const size_t bytes_;
  const Guarded memory_;
  si_context* context_ = nullptr;
};

// A small network of every operator, 1 x 4 x 9 x 9 to 1 x 12.
inline ModelFile small_network(uint32_t seed = 1) {
  ModelFile file;
  uint32_t state = seed;
  const auto values = [&](size_t count) {
    std::vector<float> out(count);
    for (float& v : out) {
      state = state * 1664525u + 1013904223u;
      v = (state >> 30) == 0 ? static_cast<float>(state >> 8 & 0xffff) / 65536.0f - 0.5f : 0.0f;
    }
    return out;
  };
  const uint32_t x = file.input({1, 4, 9, 9});
  const uint32_t first = file.packed({8, 4, 3, 3}, values(288)), bias = file.constant({8}, values(8));
  const uint32_t a = file.node(2, {x, first, bias}, {1, 8, 9, 9}, {1, 1, 1, 1, 1, 1, 1, 1}, SI_ACT_RELU);
  const uint32_t deep = file.constant({8, 1, 3, 3}, values(72));
  const uint32_t b = file.node(3, {a, deep, bias}, {1, 8, 9, 9}, {1, 1, 1, 1, 1, 1}, SI_ACT_RELU6);
  const uint32_t point = file.packed({8, 8, 1, 1}, values(64));
  const uint32_t c = file.node(2, {b, point, kNoTensor, a}, {1, 8, 9, 9}, {1, 1, 0, 0, 0, 0, 1, 1}, SI_ACT_SILU);
  const uint32_t d = file.node(4, {c, b}, {1, 8, 9, 9}, {}, SI_ACT_RELU);
  const uint32_t e = file.node(6, {d}, {1, 8, 5, 5}, {3, 3, 2, 2, 1, 1, 1, 1});
  const uint32_t f = file.node(7, {d}, {1, 8, 5, 5}, {3, 3, 2, 2, 1, 1, 1, 1, 1});
  const uint32_t g = file.node(11, {e, f}, {1, 16, 5, 5}, {1});
  const uint32_t h = file.node(8, {g}, {1, 16, 1, 1});
  const uint32_t i = file.node(9, {h}, {1, 16});
  const uint32_t last = file.packed({12, 16}, values(192));
  const uint32_t j = file.node(1, {i, last}, {1, 12});
  const uint32_t k = file.node(5, {j}, {1, 12}, {}, SI_ACT_TANH);
  file.outputs = {file.node(10, {k}, {1, 12}, {1}), j};
  return file;
}

// A network of batch 1 at another one, which may vary up to `most`; 0: it is fixed.
inline ModelFile at_batch(ModelFile file, uint32_t batch, uint32_t most) {
  for (FileTensor& tensor : file.tensors) {
    if (tensor.kind == kConstant) continue;
    tensor.dims[0] *= batch;
    if (tensor.kind == kInput && most != 0) tensor.kind = kBatchedInput;
  }
  file.batch = most != 0 ? batch : 0;
  file.most_batch = most;
  return file;
}

// The file of an earlier build under this name; where a program is run with --write-golden FOLDER, none, and `now` is
// written there.
inline AlignedBytes golden_file(int argc, char** argv, const std::string& name, const AlignedBytes& now) {
  if (argc == 3 && std::string(argv[1]) == "--write-golden") {
    std::ofstream out(argv[2] + ("/" + name), std::ios::binary);
    out.write(reinterpret_cast<const char*>(now.data()), static_cast<std::streamsize>(now.size()));
    SI_CHECK(out.good());
    return {};
  }
  std::ifstream in(SI_SOURCE_DIR "/csrc/runtime/golden/" + name, std::ios::binary);
  const std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  SI_CHECK(!content.empty());
  return AlignedBytes(reinterpret_cast<const uint8_t*>(content.data()), content.size());
}

}  // namespace si::testing
