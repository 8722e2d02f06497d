// Fuzz target: any bytes as a model file. What is accepted is described and run, in memory of exactly the size that it
// asks for.
//
// Built as packed_fuzz.cc is. Seeds are the golden files of csrc/runtime/.
#include <sparseinfer.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "runtime/file.h"

namespace {

constexpr uint64_t kMostBytes = 1 << 22;  // of a context, or of a tensor
constexpr int64_t kMostWork = 1 << 22;    // multiply-adds of a run

void expect(bool ok) {
  if (!ok) std::abort();
}

// Refusals are as good as results; an internal error is a fault of ours.
bool ran(si_status status) {
  expect(status != SI_ERR_INTERNAL);
  return status == SI_OK;
}

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<uint8_t, Free>;

// The allocation ends where it should, so that a sanitizer sees any access past it.
Memory memory_of(size_t bytes) {
  void* memory = nullptr;
  expect(posix_memalign(&memory, si::kModelAlign, std::max<size_t>(bytes, 1)) == 0);
  return Memory(static_cast<uint8_t*>(memory));
}

// The sizes and checksums that a mutation has made wrong are put right, so that it gets past them.
void mend(uint8_t* file, size_t size, bool sizes) {
  if (size < sizeof(si::FileHeader)) return;
  auto* const header = reinterpret_cast<si::FileHeader*>(file);
  header->reserved[5] = 0;  // what chooses below
  if (sizes) header->total_bytes = size;
  si::FileView view{};
  if (si::read_file(file, size, false, &view) != SI_OK) return;
  uint64_t at = view.data;
  for (uint32_t i = 0; i < header->tensors; ++i) {
    const si::FileTensor& tensor = view.tensors[i];
    if (tensor.kind != si::kConstant) continue;
    if (tensor.type == si::kPacked) ran(si_seal(file + at, static_cast<size_t>(tensor.bytes)));
    at += si::aligned(tensor.bytes);
  }
  ran(si_model_seal(file, size));
}

void run(const si_model* model, int32_t threads) {
  si_model_info info{};
  info.struct_size = sizeof info;
  expect(ran(si_model_describe(model, &info)));
  int64_t work = 0;
  for (size_t i = 0; i < info.nodes; ++i) {
    si_node_info node{};
    node.struct_size = sizeof node;
    expect(ran(si_model_node(model, i, &node)));
    work += std::min(node.multiply_adds, kMostWork + 1);
  }
  if (info.context_bytes > kMostBytes || work > kMostWork) return;
  std::vector<Memory> tensors;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  for (size_t i = 0; i < info.inputs + info.outputs; ++i) {
    const bool is_input = i < info.inputs;
    si_tensor_info tensor{};
    tensor.struct_size = sizeof tensor;
    expect(ran(is_input ? si_model_input(model, i, &tensor) : si_model_output(model, i - info.inputs, &tensor)));
    if (tensor.bytes > kMostBytes) return;
    tensors.push_back(memory_of(static_cast<size_t>(tensor.bytes)));
    // Ids are small, so that tables have them.
    std::memset(tensors.back().get(), tensor.type == SI_I64 ? 0 : 0x3f, static_cast<size_t>(tensor.bytes));
    if (is_input)
      inputs.push_back(tensors.back().get());
    else
      outputs.push_back(tensors.back().get());
  }
  const uint64_t bytes = si_context_bytes(model, threads);
  if (bytes > 2 * kMostBytes) return;
  const Memory memory = memory_of(static_cast<size_t>(bytes));
  si_context* context = nullptr;
  expect(ran(si_context_create(model, memory.get(), static_cast<size_t>(bytes), threads, &context)));
  for (int call = 0; call < 2; ++call) ran(si_context_run(context, inputs.data(), outputs.data(), nullptr));
  // Golden outputs of a mutation are seldom right: SI_ERR_INTERNAL says so.
  if (info.golden_bytes != 0) si_context_selftest(context, nullptr);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Memory file = memory_of(size);
  if (size != 0) std::memcpy(file.get(), data, size);
  const uint8_t choice = size >= sizeof(si::FileHeader) ? data[offsetof(si::FileHeader, reserved) + 40] : 0;
  if (choice % 64 != 0) mend(file.get(), size, choice % 16 != 1);
  si_model* model = nullptr;
  if (!ran(si_model_open(file.get(), size, &model))) return 0;
  const int32_t threads = 1 + choice / 64 % 3;
  run(model, threads);
  // Batches next to the file's and far from it, and those that are refused.
  for (const int64_t batch : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{choice}, int64_t{INT32_MAX}}) {
    si_model* other = nullptr;
    if (!ran(si_model_at_batch(model, batch, &other))) continue;
    run(other, threads);
    si_model_close(other);
  }
  si_model_close(model);
  return 0;
}
