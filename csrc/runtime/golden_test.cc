// The golden models, in a library of whatever is in: each is run, or refused for what is left out. The one of a small
// perceptron carries what its inputs give.
#include <cstring>
#include <string>
#include <vector>

#include "core/chosen.h"
#include "core/error.h"
#include "runtime/file.h"
#include "testing/check.h"
#include "testing/model_file.h"
#include "testing/problem.h"

namespace {

using namespace si::testing;

struct OperatorLine {
  uint32_t number;
  const char* name;
  bool is_in;
};
constexpr OperatorLine kOperators[] = {
#define SI_OPERATOR(id, name, fewest, most, in_place) {id, #name, SI_HAS(name)},
#include "runtime/operators.inc"
#undef SI_OPERATOR
};

// The first operator of a file that is left out; null where there is none.
const OperatorLine* lacking(const AlignedBytes& file) {
  si::FileHeader header{};
  std::memcpy(&header, file.data(), sizeof header);
  const uint8_t* nodes = file.data() + sizeof header + header.tensors * sizeof(si::FileTensor);
  for (uint32_t i = 0; i < header.nodes; ++i) {
    si::FileNode node{};
    std::memcpy(&node, nodes + i * sizeof node, sizeof node);
    for (const OperatorLine& line : kOperators)
      if (line.number == node.op && !line.is_in) return &line;
  }
  return nullptr;
}

bool says(const char* part) { return std::strstr(si_last_error(), part) != nullptr; }

// Runs a model of floats on zeros: that it can be run at all.
void run_on_zeros(const si_model* model) {
  std::vector<std::vector<uint8_t>> arrays;
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  const si_model_info info = describe(model);
  for (size_t i = 0; i < info.inputs + info.outputs; ++i) {
    si_tensor_info tensor = sized<si_tensor_info>();
    const bool is_input = i < info.inputs;
    SI_CHECK_EQ(is_input ? si_model_input(model, i, &tensor) : si_model_output(model, i - info.inputs, &tensor), SI_OK);
    arrays.emplace_back(tensor.bytes);
    if (is_input)
      inputs.push_back(arrays.back().data());
    else
      outputs.push_back(arrays.back().data());
  }
  SI_CHECK_EQ(Runner(model, 1).run(inputs, outputs), SI_OK);
}

void test_file(const AlignedBytes& file, const char* name, bool has_golden) {
  si_status status = SI_OK;
  const OpenModel model = open(file, &status);
  const OperatorLine* left_out = lacking(file);
  const bool is_in = left_out == nullptr && SI_HAS(panel) && SI_HAS(float32);
  if (!SI_CHECK_EQ(status, is_in ? SI_OK : SI_ERR_UNSUPPORTED))
    std::fprintf(stderr, "  of %s: %s\n", name, si_last_error());
  if (model != nullptr) {
    run_on_zeros(model.get());
    if (has_golden) SI_CHECK_EQ(Runner(model.get(), 1).selftest(), SI_OK);
  } else if (si::kMessages && (!SI_HAS(panel) || !SI_HAS(float32))) {
    SI_CHECK(says(SI_HAS(panel) ? "SPARSEINFER_TYPES" : "SPARSEINFER_FORMATS"));
  } else if (si::kMessages && left_out != nullptr) {
    SI_CHECK(says("SPARSEINFER_OPERATORS") && says((std::string("operator ") + left_out->name).c_str()));
  }
}

// Two layers and a softmax of 2 x 20 to 2 x 5, with golden zeros.
ModelFile perceptron() {
  ModelFile file;
  Random random;
  const uint32_t x = file.input({2, 20});
  const uint32_t first = file.packed({16, 20}, random.weight(16, 20, 0.3, false, 20, 20)),
                 bias = file.constant({16}, random.tensor(16, false));
  const uint32_t a = file.node(1, {x, first, bias}, {2, 16}, {}, SI_ACT_RELU);
  const uint32_t second = file.packed({5, 16}, random.weight(5, 16, 0.3, false, 16, 16));
  file.outputs = {file.node(10, {file.node(1, {a, second}, {2, 5})}, {2, 5}, {1})};
  file.add_golden(1e-5f);
  return file;
}

// With inputs, and what they give.
AlignedBytes perceptron_file() {
  ModelFile file = perceptron();
  Random random;
  const std::vector<float> x = random.tensor(40, false);
  std::vector<float> y(10);
  const AlignedBytes bytes = file.bytes();
  const OpenModel model = open(bytes);
  SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {y.data()}), SI_OK);
  std::memcpy(&file.golden[64], x.data(), 160);
  std::memcpy(&file.golden[64 + 192], y.data(), 40);
  return file.bytes();
}

}  // namespace

int main(int argc, char** argv) {
  const AlignedBytes now = argc == 3 ? perceptron_file() : AlignedBytes();
  const AlignedBytes old = golden_file(argc, argv, "perceptron_v1.sinf", now);
  if (old.size() == 0) return finish("golden_test");
  test_file(old, "perceptron_v1.sinf", true);
  for (const char* name : {"small_network_v1.sinf", "batched_network_v1.sinf", "small_transformer_v1.sinf"})
    test_file(golden_file(0, nullptr, name, {}), name, false);
  return finish("golden_test");
}
