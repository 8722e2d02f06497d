// Models: what they compute, what they take of memory, and which files they refuse.
#include <algorithm>
#include <cmath>

#include "kernels/scalar/scalar.h"
#include "testing/allocations.h"
#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

std::vector<float> run(const si_model* model, const std::vector<float>& x, size_t size, int threads = 1) {
  Runner runner(model, threads);
  std::vector<float> y(size), second(12);
  std::vector<void*> outputs{y.data(), second.data()};
  outputs.resize(describe(model).outputs);
  SI_CHECK_EQ(runner.run({x.data()}, outputs), SI_OK);
  return y;
}

// A linear layer with a fused activation, and a residual block.
void test_results() {
  Random random;
  const std::vector<float> weight = random.weight(20, 30, 0.3, true, 99, 99), bias = random.tensor(20, true);
  ModelFile file;
  const uint32_t x = file.input({3, 30}), w = file.packed({20, 30}, weight), b = file.constant({20}, bias);
  file.outputs = {file.node(1, {x, w, b}, {3, 20}, {}, SI_ACT_RELU)};
  const AlignedBytes bytes = file.bytes();
  const OpenModel model = open(bytes);
  SI_CHECK(model != nullptr);
  const std::vector<float> in = random.tensor(90, true), y = run(model.get(), in, 60);
  for (size_t n = 0; n < 3; ++n)
    for (size_t m = 0; m < 20; ++m) {
      float sum = bias[m];
      for (size_t k = 0; k < 30; ++k) sum += weight[m * 30 + k] * in[n * 30 + k];
      SI_CHECK_EQ(y[n * 20 + m], std::max(sum, 0.0f));
    }
}

// A convolution that adds a residual, by every activation, against the two steps.
void test_residual() {
  Random random;
  const struct {
    uint32_t M, C, size, kernel;
    int pad;
  } cases[] = {{8, 4, 9, 3, 1}, {40, 24, 14, 1, 0}, {16, 8, 33, 3, 1}, {5, 3, 30, 1, 0}};
  for (const auto& c : cases)
    for (si_activation activation : {SI_ACT_NONE, SI_ACT_RELU, SI_ACT_SILU})
      for (int threads : {1, 3}) {
        const int64_t pixels = int64_t{c.size} * c.size, K = c.C * c.kernel * c.kernel;
        const std::vector<float> weight = random.weight(c.M, K, 0.3, true, 99, 99);
        ModelFile fused, apart;
        const std::vector<int32_t> params{1, 1, c.pad, c.pad, c.pad, c.pad, 1, 1};
        const std::vector<uint32_t> shape{2, c.M, c.size, c.size};
        for (ModelFile* file : {&fused, &apart}) {
          const uint32_t x = file->input({2, c.C, c.size, c.size}), more = file->input(shape);
          const uint32_t w = file->packed({c.M, c.C, c.kernel, c.kernel}, weight);
          if (file == &fused)
            file->outputs = {file->node(2, {x, w, si::kNoTensor, more}, shape, params, activation)};
          else
            file->outputs = {file->node(4, {file->node(2, {x, w}, shape, params), more}, shape, {}, activation)};
        }
        const std::vector<float> x = random.tensor(2 * c.C * pixels, true),
                                 more = random.tensor(2 * c.M * pixels, true);
        std::vector<std::vector<float>> y;
        for (ModelFile* file : {&fused, &apart}) {
          const AlignedBytes bytes = file->bytes();
          const OpenModel model = open(bytes);
          if (!SI_CHECK(model != nullptr)) return;
          Output out(2 * c.M * pixels, 1);
          SI_CHECK_EQ(Runner(model.get(), threads).run({x.data(), more.data()}, {out.data()}), SI_OK);
          out.check_canaries("residual");
          y.emplace_back(out.data(), out.data() + 2 * c.M * pixels);
        }
        SI_CHECK(y[0] == y[1]);
      }
}

// The whole of a network: the same with any number of threads, and of plain operations.
void test_network() {
  const AlignedBytes file = small_network().bytes();
  const OpenModel model = open(file);
  if (!SI_CHECK(model != nullptr)) return;
  Random random;
  const std::vector<float> x = random.tensor(4 * 81, false);
  const std::vector<float> y = run(model.get(), x, 12);
  SI_CHECK(y == run(model.get(), x, 12, 3));
  float total = 0.0f;
  for (float v : y) total += v;
  SI_CHECK_NEAR(total, 1.0f, 1e-6);
  const si_model_info info = describe(model.get());
  SI_CHECK_EQ(info.inputs, size_t{1});
  SI_CHECK_EQ(info.outputs, size_t{2});
  SI_CHECK_EQ(info.nodes, size_t{12});
  SI_CHECK(std::string(info.metadata, info.metadata_bytes) == "{}");
  si_tensor_info tensor = sized<si_tensor_info>();
  SI_CHECK_EQ(si_model_input(model.get(), 0, &tensor), SI_OK);
  SI_CHECK(std::string(tensor.name) == "t0" && tensor.ndim == 4 && tensor.shape[3] == 9);
  SI_CHECK_EQ(si_model_input(model.get(), 1, &tensor), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_output(model.get(), 1, &tensor), SI_OK);
  SI_CHECK_EQ(si_model_output(model.get(), 2, &tensor), SI_ERR_ARGUMENT);
  si_node_info node = sized<si_node_info>();
  SI_CHECK_EQ(si_model_node(model.get(), 0, &node), SI_OK);
  SI_CHECK(std::string(node.op) == "conv" && std::string(node.format) == "panel" && node.weights == 288);
  SI_CHECK_EQ(si_model_node(model.get(), 8, &node), SI_OK);
  SI_CHECK(std::string(node.op) == "reshape" && node.runs == 0);
  SI_CHECK_EQ(si_model_node(model.get(), 99, &node), SI_ERR_ARGUMENT);
  double seconds[12] = {};
  std::vector<float> out(12), logits(12);
  SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {out.data(), logits.data()}, seconds), SI_OK);
  SI_CHECK(seconds[0] > 0.0 && out == y);
}

// What describes a model's graph: its tensors, and which of them each node reads and gives.
void test_description() {
  const AlignedBytes file = small_network().bytes();
  const OpenModel model = open(file);
  if (!SI_CHECK(model != nullptr)) return;
  const si_model_info info = describe(model.get());
  SI_CHECK_EQ(info.version, si::kModelVersion);
  SI_CHECK_EQ(info.golden_bytes, uint64_t{0});
  si_tensor_info tensor = sized<si_tensor_info>();
  SI_CHECK_EQ(si_model_tensor(model.get(), info.tensors, &tensor), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_tensor(nullptr, 0, &tensor), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_tensor(model.get(), 0, &tensor), SI_OK);
  SI_CHECK(tensor.kind == SI_TENSOR_INPUT && tensor.bytes == 4 * 324 && tensor.format[0] == 0);
  SI_CHECK_EQ(si_model_tensor(model.get(), 1, &tensor), SI_OK);
  SI_CHECK(tensor.kind == SI_TENSOR_CONSTANT && tensor.type == SI_F32 && std::string(tensor.format) == "panel");
  SI_CHECK(tensor.nnz > 0 && tensor.nnz < 288);
  si_node_info node = sized<si_node_info>();
  SI_CHECK_EQ(si_model_node(model.get(), 2, &node), SI_OK);
  SI_CHECK(node.activation == SI_ACT_SILU && node.operands == 4 && node.operand[2] == UINT32_MAX);
  SI_CHECK_EQ(si_model_tensor(model.get(), node.operand[3], &tensor), SI_OK);
  si_node_info first = sized<si_node_info>();
  SI_CHECK_EQ(si_model_node(model.get(), 0, &first), SI_OK);
  SI_CHECK(node.operand[3] == first.output && tensor.kind == SI_TENSOR_COMPUTED);
}

struct Seen {
  std::vector<size_t> nodes;
  std::vector<float> first;
};

// Every node is seen once, in order, with what it computed.
void test_watching() {
  ModelFile network;
  const uint32_t x = network.input({1, 4});
  const uint32_t twice = network.node(4, {x, x}, {1, 4});
  const uint32_t flat = network.node(9, {twice}, {4});
  network.outputs = {network.node(5, {flat}, {4}, {}, SI_ACT_RELU)};
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file);
  const std::vector<uint8_t> zeros(si_context_bytes(model.get(), 2));
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(model.get(), memory.data(), memory.size(), 1, &context), SI_OK);
  const std::vector<float> in{-1.0f, 2.0f, 3.0f, 4.0f};
  std::vector<float> y(4);
  const void* const inputs[] = {in.data()};
  void* const outputs[] = {y.data()};
  Seen seen;
  const si_observer observer = [](void* user, size_t node, const void* output) {
    static_cast<Seen*>(user)->nodes.push_back(node);
    static_cast<Seen*>(user)->first.push_back(*static_cast<const float*>(output));
  };
  SI_CHECK_EQ(si_context_watch(context, inputs, outputs, observer, &seen), SI_OK);
  SI_CHECK((seen.nodes == std::vector<size_t>{0, 1, 2} && seen.first == std::vector<float>{-2.0f, -2.0f, 0.0f}));
  SI_CHECK(y[3] == 8.0f);
  SI_CHECK_EQ(si_context_watch(context, inputs, outputs, nullptr, &seen), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_watch(context, nullptr, outputs, observer, &seen), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_watch(nullptr, inputs, outputs, observer, &seen), SI_ERR_ARGUMENT);
}

si_status selftest(const ModelFile& network, double* worst) {
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file);
  if (!SI_CHECK(model != nullptr)) return SI_ERR_INTERNAL;
  const std::vector<uint8_t> zeros(si_context_bytes(model.get(), 2));
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(model.get(), memory.data(), memory.size(), 2, &context), SI_OK);
  return si_context_selftest(context, worst);
}

// A file that carries what its inputs give is told from one that carries something else.
void test_selftest() {
  ModelFile network = small_network();
  double worst = -1.0;
  SI_CHECK_EQ(selftest(network, &worst), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("golden"));
  network.add_golden(1e-5f);
  SI_CHECK_EQ(selftest(network, &worst), SI_ERR_INTERNAL);
  SI_CHECK(says("output 0"));
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file);
  const std::vector<float> x(324, 0.0f);
  std::vector<float> y(12), z(12);
  SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {y.data(), z.data()}), SI_OK);
  const size_t first = network.golden.size() - 128;
  std::memcpy(&network.golden[first], y.data(), 48);
  std::memcpy(&network.golden[first + 64], z.data(), 48);
  SI_CHECK_EQ(selftest(network, &worst), SI_OK);
  SI_CHECK_EQ(worst, 0.0);
  SI_CHECK_EQ(selftest(network, nullptr), SI_OK);
  // Half of the bound away, beyond it, and no number.
  for (const float more : {0.5e-5f, 2e-5f, NAN}) {
    const float off = z[3] + more;
    std::memcpy(&network.golden[first + 64 + 12], &off, sizeof off);
    SI_CHECK_EQ(selftest(network, &worst), more == 0.5e-5f ? SI_OK : SI_ERR_INTERNAL);
    if (more == 0.5e-5f)
      SI_CHECK_NEAR(worst, 0.5, 0.05);
    else
      SI_CHECK(says("output 1"));
  }
  SI_CHECK_EQ(si_context_selftest(nullptr, &worst), SI_ERR_ARGUMENT);
}

// The file of an earlier build: still read, and what it gives.
void test_golden(int argc, char** argv) {
  const AlignedBytes now = small_network().bytes();
  const AlignedBytes old = golden_file(argc, argv, "small_network_v1.sinf", now);
  if (old.size() == 0) return;
  const OpenModel old_model = open(old), model = open(now);
  if (!SI_CHECK(old_model != nullptr && model != nullptr)) return;
  Random random;
  const std::vector<float> x = random.tensor(4 * 81, false);
  SI_CHECK(run(old_model.get(), x, 12) == run(model.get(), x, 12));
}

// Arenas no larger than what lives at once: a chain needs two of its tensors, in-place steps one.
void test_memory() {
  ModelFile chain;
  const std::vector<uint32_t> dims{1, 1000};
  uint32_t at = chain.input(dims);
  for (int i = 0; i < 6; ++i) at = chain.node(10, {at}, dims, {1});
  chain.outputs = {at};
  AlignedBytes file = chain.bytes();
  SI_CHECK_EQ(describe(open(file).get()).arena_bytes, uint64_t{2 * 4032});

  ModelFile in_place;
  at = in_place.node(10, {in_place.input(dims)}, dims, {1});
  for (int i = 0; i < 6; ++i) at = in_place.node(4, {at, at}, dims, {}, SI_ACT_RELU);
  in_place.outputs = {in_place.node(10, {at}, dims, {1})};
  file = in_place.bytes();
  const OpenModel model = open(file);
  SI_CHECK_EQ(describe(model.get()).arena_bytes, uint64_t{4032});
  std::vector<float> x(1000, 1.0f), y(1000);
  SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {y.data()}), SI_OK);
  SI_CHECK_NEAR(y[7], 1e-3f, 1e-8);

  // What is read again later is not written over, and views of an input or of an output are what they show.
  ModelFile kept;
  const uint32_t in = kept.input({2, 3});
  const uint32_t soft = kept.node(10, {in}, {2, 3}, {1});
  const uint32_t twice = kept.node(4, {soft, soft}, {2, 3});
  const uint32_t thrice = kept.node(4, {twice, soft}, {2, 3});
  const uint32_t view = kept.node(9, {thrice}, {3, 2}), copy = kept.node(9, {in}, {6});
  kept.outputs = {view, thrice, copy};
  file = kept.bytes();
  const OpenModel views = open(file);
  const std::vector<float> six{1, 1, 1, 2, 2, 2};
  std::vector<float> a(6), b(6), c(6);
  SI_CHECK_EQ(Runner(views.get(), 1).run({six.data()}, {a.data(), b.data(), c.data()}), SI_OK);
  for (size_t i = 0; i < 6; ++i) {
    SI_CHECK_NEAR(a[i], 1.0f, 1e-6);
    SI_CHECK_EQ(a[i], b[i]);
    SI_CHECK_EQ(c[i], six[i]);
  }
}

void test_contexts() {
  const AlignedBytes file = small_network().bytes();
  const OpenModel model = open(file);
  const auto bytes = static_cast<size_t>(si_context_bytes(model.get(), 2));
  const auto least = static_cast<size_t>(si_context_bytes(model.get(), 1));
  const std::vector<uint8_t> zeros(bytes + 64);
  const AlignedBytes memory(zeros.data(), zeros.size());
  si_context* context = nullptr;
  SI_CHECK_EQ(si_context_create(model.get(), memory.data(), least - 1, 1, &context), SI_ERR_ARGUMENT);
  SI_CHECK(says(std::to_string(least).c_str()));
  SI_CHECK_EQ(si_context_create(model.get(), memory.data() + 8, bytes, 1, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create(model.get(), nullptr, bytes, 1, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create(model.get(), memory.data(), bytes, 0, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create(nullptr, memory.data(), bytes, 1, &context), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_create(model.get(), memory.data(), bytes, 2, &context), SI_OK);
  std::vector<float> x(4 * 81, 1.0f), y(12), z(12);
  const void* const inputs[] = {x.data()};
  void* const outputs[] = {y.data(), z.data()};
  const void* const no_inputs[] = {nullptr};
  void* const no_outputs[] = {y.data(), nullptr};
  SI_CHECK_EQ(si_context_run(context, no_inputs, outputs, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_run(context, inputs, no_outputs, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_run(context, nullptr, outputs, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_run(nullptr, inputs, outputs, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_context_run(context, inputs, outputs, nullptr), SI_OK);
#ifdef SI_COUNTS_ALLOCATIONS
  const long before = g_allocations;
  const si_status status = si_context_run(context, inputs, outputs, nullptr);
  const long after = g_allocations;
  SI_CHECK_EQ(status, SI_OK);
  SI_CHECK_EQ(after, before);
  SI_CHECK(before > 0);
#endif
}

// Weights so large that several threads check them; damage in any is told as by one.
void test_threads_of_opening() {
  Random random;
  ModelFile network;
  uint32_t at = network.input({1, 2000});
  const std::vector<float> weight = random.tensor(2000 * 2100, true), small = random.tensor(12 * 2100, true);
  at = network.node(1, {at, network.packed({2100, 2000}, weight)}, {1, 2100});
  at = network.node(1, {at, network.packed({12, 2100}, small)}, {1, 12});
  const uint32_t again = network.packed({2000, 2100}, weight);
  network.outputs = {at, network.node(1, {network.node(1, {0, 1}, {1, 2100}), again}, {1, 2000})};
  const AlignedBytes file = network.bytes();
  si_open_options options = sized<si_open_options>();
  si_model* model = nullptr;
  for (const int32_t threads : {1, 2, 5}) {
    options.threads = threads;
    SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), &options, &model), SI_OK);
    si_model_close(model);
    size_t end = file.size();
    for (const size_t back : {network.data[2].size(), network.data[1].size(), network.data[0].size()}) {
      end -= back;
      file.data()[end + 300] ^= 1;
      SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), &options, &model), SI_ERR_CORRUPT);
      SI_CHECK(says("checksum"));
      file.data()[end + 300] ^= 1;
    }
  }
  options.threads = 0;
  SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), &options, &model), SI_ERR_ARGUMENT);
  options = sized<si_open_options>();
  options.struct_size = sizeof(size_t);
  SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), &options, &model), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), &options, nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_open_with(file.data(), file.size(), nullptr, &model), SI_OK);
  si_model_close(model);
}

}  // namespace

int main(int argc, char** argv) {
  test_golden(argc, argv);
  test_results();
  test_residual();
  test_network();
  test_description();
  test_watching();
  test_selftest();
  test_memory();
  test_contexts();
  test_threads_of_opening();
  return finish("model_test");
}
