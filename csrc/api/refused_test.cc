// Every function of the C API with what it must refuse: null pointers, handles that are none or were closed, indices
// and sizes that are too large, and buffers that are one byte short.
#include <cstdio>
#include <vector>

#include "runtime/context.h"
#include "testing/small_model.h"

// Whether memory that is freed stays as it is for a moment, and may be read.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SI_CLOSED_HANDLES_SHOW 1
#else
#define SI_CLOSED_HANDLES_SHOW 0
#endif

using namespace si::testing;

namespace {

// Every function with a handle that is none, and with contexts of one.
void check_refused(const si_model* model, si_context* context) {
  alignas(64) static uint8_t memory[1 << 16];
  si_model_info info = sized<si_model_info>();
  si_tensor_info tensor = sized<si_tensor_info>();
  si_node_info node = sized<si_node_info>();
  si_model* made = nullptr;
  si_context* placed = nullptr;
  float x = 0.0f;
  const void* const inputs[] = {&x, &x};
  void* const outputs[] = {&x, &x};
  const si_observer observer = [](void*, size_t, const void*) {};
  const si_status failures[] = {
      si_model_describe(model, &info),
      si_model_input(model, 0, &tensor),
      si_model_output(model, 0, &tensor),
      si_model_tensor(model, 0, &tensor),
      si_model_node(model, 0, &node),
      si_model_at_batch(model, 1, &made),
      si_context_create(model, memory, sizeof memory, 1, &placed),
      si_context_run(context, inputs, outputs, nullptr),
      si_context_watch(context, inputs, outputs, observer, nullptr),
      si_context_selftest(context, nullptr),
  };
  for (const si_status status : failures)
    if (!SI_CHECK_EQ(status, SI_ERR_ARGUMENT)) std::fprintf(stderr, "  failure %td\n", &status - failures);
  SI_CHECK(made == nullptr && placed == nullptr);
  SI_CHECK_EQ(si_context_bytes(model, 1), 0u);
  SI_CHECK(says("expected an open"));
}

void test_handles_that_are_none() {
  alignas(64) static uint8_t zeros[1024];
  static_assert(sizeof(si_model) <= sizeof zeros && sizeof(si_context) <= sizeof zeros, "what is read of a handle");
  check_refused(reinterpret_cast<const si_model*>(zeros), reinterpret_cast<si_context*>(zeros));
  si_model_close(reinterpret_cast<si_model*>(zeros));
#if SI_CLOSED_HANDLES_SHOW
  // Of one that was closed, this allocator leaves the mark as it is; a second close does nothing.
  Small small;
  si_model* model = nullptr;
  SI_CHECK_EQ(si_model_open(small.bytes.data(), small.bytes.size(), &model), SI_OK);
  const size_t bytes = si_context_bytes(model, 1);
  const Guarded memory(bytes);
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(model, memory.data(), bytes, 1, &context), SI_OK);
  si_model_close(model);
  check_refused(model, context);
  si_model_close(model);
#endif
}

void test_null() {
  Small small;
  const si_model* const model = small.model.get();
  std::vector<uint8_t> zeros(si_context_bytes(model, 1));
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(model, memory.data(), memory.size(), 1, &context), SI_OK);
  const void* const inputs[] = {small.x.data()};
  const void* const no_input[] = {nullptr};
  void* const outputs[] = {small.y.data(), small.y.data() + 12};
  void* const no_output[] = {small.y.data(), nullptr};
  si_model_info info = sized<si_model_info>();
  si_tensor_info tensor = sized<si_tensor_info>();
  si_node_info node = sized<si_node_info>();
  si_model* made = nullptr;
  const si_observer observer = [](void*, size_t, const void*) {};
  const si_status failures[] = {
      si_model_open(nullptr, 1 << 20, &made),
      si_model_open(small.bytes.data(), small.bytes.size(), nullptr),
      si_model_open_with(nullptr, 1 << 20, nullptr, &made),
      si_model_open_with(small.bytes.data(), small.bytes.size(), nullptr, nullptr),
      si_model_at_batch(nullptr, 1, &made),
      si_model_at_batch(model, 1, nullptr),
      si_model_at_batch(model, 1, &made),
      si_model_load(nullptr, SI_LOAD_READ, &made),
      si_context_create_with(model, memory.data(), memory.size(), nullptr, &context),
      si_model_seal(nullptr, 1 << 20),
      si_model_describe(nullptr, &info),
      si_model_describe(model, nullptr),
      si_model_input(nullptr, 0, &tensor),
      si_model_input(model, 0, nullptr),
      si_model_input(model, 1, &tensor),
      si_model_input(model, SIZE_MAX, &tensor),
      si_model_output(nullptr, 0, &tensor),
      si_model_output(model, 0, nullptr),
      si_model_output(model, 2, &tensor),
      si_model_tensor(nullptr, 0, &tensor),
      si_model_tensor(model, 0, nullptr),
      si_model_tensor(model, SIZE_MAX, &tensor),
      si_model_node(nullptr, 0, &node),
      si_model_node(model, 0, nullptr),
      si_model_node(model, SIZE_MAX, &node),
      si_context_create(nullptr, memory.data(), memory.size(), 1, &context),
      si_context_create(model, nullptr, memory.size(), 1, &context),
      si_context_create(model, memory.data(), memory.size(), 1, nullptr),
      si_context_create(model, memory.data(), memory.size(), 0, &context),
      si_context_create(model, memory.data(), memory.size(), INT32_MIN, &context),
      si_context_run(nullptr, inputs, outputs, nullptr),
      si_context_run(context, nullptr, outputs, nullptr),
      si_context_run(context, inputs, nullptr, nullptr),
      si_context_run(context, no_input, outputs, nullptr),
      si_context_run(context, inputs, no_output, nullptr),
      si_context_watch(nullptr, inputs, outputs, observer, nullptr),
      si_context_watch(context, nullptr, outputs, observer, nullptr),
      si_context_watch(context, inputs, outputs, nullptr, nullptr),
      si_context_selftest(nullptr, nullptr),
  };
  for (const si_status status : failures)
    if (!SI_CHECK_EQ(status, SI_ERR_ARGUMENT)) std::fprintf(stderr, "  failure %td\n", &status - failures);
  SI_CHECK(made == nullptr);
  // Results whose size is not set.
  for (size_t size : {size_t{0}, sizeof(size_t)}) {
    info.struct_size = tensor.struct_size = node.struct_size = size;
    SI_CHECK_EQ(si_model_describe(model, &info), SI_ERR_ARGUMENT);
    SI_CHECK_EQ(si_model_input(model, 0, &tensor), SI_ERR_ARGUMENT);
    SI_CHECK_EQ(si_model_output(model, 0, &tensor), SI_ERR_ARGUMENT);
    SI_CHECK_EQ(si_model_tensor(model, 0, &tensor), SI_ERR_ARGUMENT);
    SI_CHECK_EQ(si_model_node(model, 0, &node), SI_ERR_ARGUMENT);
  }
  si_model_close(nullptr);
}

// Every length of a file but its own is refused.
void test_lengths() {
  const AlignedBytes whole = small_network().bytes();
  for (size_t bytes = 0; bytes < whole.size(); bytes += bytes + 64 < whole.size() && bytes > 256 ? 61 : 1) {
    const Guarded part((bytes + 63) / 64 * 64);
    std::memcpy(part.data(), whole.data(), bytes);
    si_model* model = nullptr;
    SI_CHECK_EQ(si_model_open(part.data(), bytes, &model), SI_ERR_CORRUPT);
    SI_CHECK(model == nullptr);
  }
}

// A packed weight in memory of its own size.
struct Blob {
  Blob() {
    const std::vector<float> weight(6 * 8, 0.5f);
    const si_weight_desc desc{2, {6, 8}, 1};
    si_pack_options options = sized<si_pack_options>();
    options.format = SI_FORMAT_PANEL;
    SI_CHECK_EQ(si_pack(weight.data(), &desc, &options, &data, &bytes), SI_OK);
  }
  ~Blob() { si_free(data); }
  Blob(const Blob&) = delete;
  Blob& operator=(const Blob&) = delete;
  void* data = nullptr;
  size_t bytes = 0;
};

// The functions of packed weights and of what this machine offers.
void test_null_beside_models() {
  const Blob blob;
  const std::vector<float> weight(6 * 8, 0.5f);
  const si_weight_desc desc{2, {6, 8}, 1};
  si_pack_options options = sized<si_pack_options>();
  options.format = SI_FORMAT_PANEL;
  void* packed = nullptr;
  size_t bytes = 0;
  si_weights* made = nullptr;
  si_weight_info info = sized<si_weight_info>();
  si_target target = sized<si_target>();
  si_linear_args linear = sized<si_linear_args>();
  si_conv_args conv = sized<si_conv_args>();
  si_recurrent_args recurrent = sized<si_recurrent_args>();
  int64_t oh = 0, ow = 0;
  std::vector<float> dense(6 * 8);
  si_weights* weights = nullptr;
  SI_CHECK_EQ(si_weights_open(blob.data, blob.bytes, &weights), SI_OK);
  const si_status failures[] = {
      si_get_error(nullptr),
      si_target_at(0, nullptr),
      si_target_at(SIZE_MAX, &target),
      si_target_named(nullptr, &target),
      si_isa(0, nullptr),
      si_row(0, nullptr),
      si_select(SI_FORMAT_PANEL, SI_OP_LINEAR, nullptr),
      si_format_at(0, nullptr),
      si_pack(nullptr, &desc, &options, &packed, &bytes),
      si_pack(weight.data(), nullptr, &options, &packed, &bytes),
      si_pack(weight.data(), &desc, nullptr, &packed, &bytes),
      si_pack(weight.data(), &desc, &options, nullptr, &bytes),
      si_pack(weight.data(), &desc, &options, &packed, nullptr),
      si_seal(nullptr, blob.bytes),
      si_seal(blob.data, blob.bytes - 1),
      si_inspect(nullptr, blob.bytes, &info),
      si_inspect(blob.data, blob.bytes, nullptr),
      si_unpack(nullptr, blob.bytes, dense.data()),
      si_unpack(blob.data, blob.bytes, nullptr),
      si_weights_open(nullptr, blob.bytes, &made),
      si_weights_open(blob.data, blob.bytes, nullptr),
      si_weights_info(nullptr, &info),
      si_weights_info(weights, nullptr),
      si_weights_unpack(nullptr, dense.data()),
      si_weights_unpack(weights, nullptr),
      si_linear(nullptr, &linear),
      si_linear(weights, nullptr),
      si_conv(nullptr, &conv),
      si_conv(weights, nullptr),
      si_conv_output_size(nullptr, &conv, &oh, &ow),
      si_conv_output_size(weights, nullptr, &oh, &ow),
      si_conv_output_size(weights, &conv, nullptr, &ow),
      si_conv_output_size(weights, &conv, &oh, nullptr),
      si_recurrent(nullptr, &recurrent),
      si_recurrent(weights, nullptr),
  };
  for (const si_status status : failures)
    if (!SI_CHECK_EQ(status, SI_ERR_ARGUMENT)) std::fprintf(stderr, "  failure %td\n", &status - failures);
  SI_CHECK(packed == nullptr && made == nullptr);
  SI_CHECK(si_feature_name(SIZE_MAX) == nullptr);
  si_weights_close(nullptr);
  si_free(nullptr);
  si_weights_close(weights);
}

// A packed weight that is shorter than it says, before a page that nothing may touch.
void test_lengths_of_a_packed_weight() {
  const Blob blob;
  for (size_t bytes = 0; bytes < blob.bytes; ++bytes) {
    const Guarded part((bytes + 7) / 8 * 8);
    std::memcpy(part.data(), blob.data, bytes);
    si_weights* made = nullptr;
    SI_CHECK_EQ(si_weights_open(part.data(), bytes, &made), SI_ERR_CORRUPT);
    SI_CHECK(made == nullptr);
  }
}

void check_refused(const si_weights* weights) {
  si_weight_info info = sized<si_weight_info>();
  si_linear_args linear = sized<si_linear_args>();
  si_conv_args conv = sized<si_conv_args>();
  si_recurrent_args recurrent = sized<si_recurrent_args>();
  int64_t oh = 0, ow = 0;
  float dense[48];
  for (const si_status status :
       {si_weights_info(weights, &info), si_weights_unpack(weights, dense), si_linear(weights, &linear),
        si_conv(weights, &conv), si_conv_output_size(weights, &conv, &oh, &ow), si_recurrent(weights, &recurrent)}) {
    SI_CHECK_EQ(status, SI_ERR_ARGUMENT);
    SI_CHECK(says("expected an open packed weight"));
  }
}

void test_weights_that_are_none() {
  alignas(64) static uint8_t zeros[1024];
  static_assert(sizeof(si_weights) <= sizeof zeros, "what is read of a handle");
  check_refused(reinterpret_cast<const si_weights*>(zeros));
  si_weights_close(reinterpret_cast<si_weights*>(zeros));
#if SI_CLOSED_HANDLES_SHOW
  const Blob blob;
  si_weights* weights = nullptr;
  SI_CHECK_EQ(si_weights_open(blob.data, blob.bytes, &weights), SI_OK);
  si_weights_close(weights);
  check_refused(weights);
  si_weights_close(weights);
#endif
}

}  // namespace

int main() {
  test_handles_that_are_none();
  test_null();
  test_lengths();
  test_null_beside_models();
  test_lengths_of_a_packed_weight();
  test_weights_that_are_none();
  return finish("refused_test");
}
