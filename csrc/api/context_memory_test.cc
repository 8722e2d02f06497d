// What runs of a model take: the bytes of a context, of which the last one lies before a page that nothing may touch,
// and nothing else, from the first run on.
#include <fstream>
#include <string>
#include <thread>

#include "testing/allocations.h"
#include "testing/model_file.h"

using namespace si::testing;

namespace {

AlignedBytes golden(const char* name) {
  std::ifstream in(std::string(SI_SOURCE_DIR "/csrc/runtime/golden/") + name + "_v1.sinf", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  SI_CHECK(!text.empty());
  return AlignedBytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

// Arrays for a model's inputs and outputs.
struct Tensors {
  explicit Tensors(const si_model* model) {
    const si_model_info info = describe(model);
    for (size_t i = 0; i < info.inputs + info.outputs; ++i) {
      si_tensor_info tensor = sized<si_tensor_info>();
      const bool is_input = i < info.inputs;
      SI_CHECK_EQ(is_input ? si_model_input(model, i, &tensor) : si_model_output(model, i - info.inputs, &tensor),
                  SI_OK);
      std::vector<uint8_t>& own = (is_input ? in : out).emplace_back(tensor.bytes);
      if (is_input && tensor.type == SI_F32)
        for (size_t k = 0; k < own.size() / sizeof(float); ++k) {
          const float v = static_cast<float>(k % 23) / 8.0f - 1.0f;
          std::memcpy(own.data() + k * sizeof v, &v, sizeof v);
        }
      else if (is_input && tensor.type == SI_BOOL)
        own.assign(own.size(), 1);
    }
    for (const auto& each : in) inputs.push_back(each.data());
    for (auto& each : out) outputs.push_back(each.data());
  }
  si_status run(si_context* context) { return si_context_run(context, inputs.data(), outputs.data(), nullptr); }

  std::vector<std::vector<uint8_t>> in, out;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
};

void on_threads(void*, int32_t threads, void (*work)(void*), void* job) {
  std::vector<std::thread> started;
  for (int32_t i = 0; i < threads; ++i) started.emplace_back([=] { work(job); });
  for (std::thread& thread : started) thread.join();
}

// The first two runs of a context of its own scratch: what they allocate, and that a context of shared scratch gives
// the same.
void check_memory(const si_model* model, const si_context_options& options) {
  Tensors tensors(model);
  const auto bytes = static_cast<size_t>(si_context_bytes(model, options.threads));
  const Guarded memory(bytes);
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create_with(model, memory.data(), bytes - 1, &options, &context), SI_ERR_ARGUMENT);
  SI_CHECK(says(std::to_string(bytes).c_str()));
  if (!SI_CHECK_EQ(si_context_create_with(model, memory.data(), bytes, &options, &context), SI_OK)) return;
  const size_t scratch = si_scratch_bytes();
  for (int call = 0; call < 2; ++call) {
#ifdef SI_COUNTS_ALLOCATIONS
    const long before = g_allocations;
    const si_status status = tensors.run(context);
    const long after = g_allocations;
    // Threads that a test starts are its own allocations.
    if (options.parallel_for == nullptr) SI_CHECK_EQ(after, before);
#else
    const si_status status = tensors.run(context);
#endif
    SI_CHECK_EQ(status, SI_OK);
    SI_CHECK_EQ(si_scratch_bytes(), scratch);
  }
  const std::vector<std::vector<uint8_t>> own = tensors.out;
  si_context_options sharing = options;
  sharing.shared_scratch = 1;
  const auto least = static_cast<size_t>(describe(model).context_bytes);
  SI_CHECK(least <= bytes);
  const Guarded less(least);
  SI_CHECK_EQ(si_context_create_with(model, less.data(), least - 1, &sharing, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create_with(model, less.data(), least, &sharing, &context), SI_OK);
  SI_CHECK_EQ(tensors.run(context), SI_OK);
  SI_CHECK(tensors.out == own);
  si_release_scratch();
}

void check_model(const AlignedBytes& file) {
  const OpenModel model = open(file);
  if (!SI_CHECK(model != nullptr)) return;
  for (const int32_t threads : {1, 2, 3}) {
    si_context_options options = sized<si_context_options>();
    options.threads = threads;
    check_memory(model.get(), options);
    options.parallel_for = on_threads;
    check_memory(model.get(), options);
  }
}

// Convolutions and a linear layer that are shared out and that fill their scratch, in floats.
ModelFile large_network() {
  ModelFile file;
  const auto weight = [](size_t count) {
    std::vector<float> out(count);
    for (size_t i = 0; i < count; ++i) out[i] = i % 3 == 0 ? 0.0f : static_cast<float>(i % 13) / 16.0f - 0.25f;
    return out;
  };
  const std::vector<int32_t> same{1, 1, 1, 1, 1, 1, 1, 1}, point{1, 1, 0, 0, 0, 0, 1, 1};
  uint32_t at = file.input({2, 16, 33, 35});
  at = file.node(2, {at, file.packed({32, 16, 3, 3}, weight(32 * 16 * 9))}, {2, 32, 33, 35}, same, SI_ACT_SILU);
  at = file.node(2, {at, file.packed({48, 32, 1, 1}, weight(48 * 32))}, {2, 48, 33, 35}, point);
  std::vector<int32_t> reflect = same;
  reflect.push_back(1);
  at = file.node(2, {at, file.packed({8, 48, 3, 3}, weight(8 * 48 * 9))}, {2, 8, 33, 35}, reflect, SI_ACT_RELU);
  at = file.node(6, {at}, {2, 8, 16, 17}, {2, 2, 2, 2, 0, 0, 0, 0});
  at = file.node(9, {at}, {16, 272});
  at = file.node(1, {at, file.packed({300, 272}, weight(300 * 272))}, {16, 300}, {}, SI_ACT_GELU);
  file.outputs = {file.node(1, {at, file.packed({7, 300}, weight(7 * 300))}, {16, 7})};
  return file;
}

}  // namespace

int main() {
  // First, so that nothing of the process is warm.
  check_model(large_network().bytes());
  check_model(small_network().bytes());
  for (const char* name : {"small_network", "perceptron", "batched_network", "small_transformer"})
    check_model(golden(name));
  const AlignedBytes file = golden("batched_network");
  const OpenModel base = open(file);
  for (const int64_t batch : {int64_t{1}, describe(base.get()).most_batch}) {
    si_model* model = nullptr;
    SI_CHECK_EQ(si_model_at_batch(base.get(), batch, &model), SI_OK);
    si_context_options options = sized<si_context_options>();
    options.threads = 2;
    check_memory(model, options);
    si_model_close(model);
  }
  return finish("context_memory_test");
}
