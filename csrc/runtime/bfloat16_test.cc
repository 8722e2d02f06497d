// Models of pairs of bfloat16: what nodes of them give, with values between them of float32 and of bfloat16, and which
// files are refused.
#include <cmath>

#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr int32_t kPairs = 2;

// Two convolutions, the second with a residual, and a linear layer; `type` is that of what is between the last two.
ModelFile pairs_network(si::TensorType between = si::kBFloat16) {
  ModelFile file;
  Random random;
  const auto weights = [&](size_t count) { return random.weight(1, static_cast<int64_t>(count), 0.4, true, 99, 99); };
  const std::vector<int32_t> point{1, 1, 0, 0, 0, 0, 1, 1};
  const uint32_t x = file.input({1, 4, 6, 6}), more = file.input({1, 8, 6, 6});
  const uint32_t first = file.packed({8, 4, 3, 3}, weights(288), 1, SI_BF16, kPairs);
  const uint32_t bias = file.constant({8}, weights(8));
  const uint32_t a = file.node(2, {x, first, bias}, {1, 8, 6, 6}, {1, 1, 1, 1, 1, 1, 1, 1}, SI_ACT_RELU);
  file.tensors[a].type = between;
  const uint32_t second = file.packed({8, 8, 1, 1}, weights(64), 1, SI_BF16, kPairs);
  const uint32_t b = file.node(2, {a, second, si::kNoTensor, more}, {1, 8, 6, 6}, point, SI_ACT_RELU);
  const uint32_t last = file.packed({5, 6}, weights(30), 1, SI_BF16, kPairs);
  const uint32_t c = file.node(1, {b, last}, {1, 8, 6, 5}, {}, SI_ACT_RELU);
  file.tensors[c].type = between;
  const uint32_t again = file.packed({3, 5}, weights(15), 1, SI_BF16, kPairs);
  file.outputs = {file.node(1, {c, again}, {1, 8, 6, 3}), b};
  return file;
}

enum : size_t { kFirst, kSecond, kLinear, kLast };

std::vector<float> run(const ModelFile& network, const std::vector<float>& x, const std::vector<float>& more,
                       int threads) {
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file);
  if (!SI_CHECK(model != nullptr)) return {};
  std::vector<float> y(144), b(288);
  SI_CHECK_EQ(Runner(model.get(), threads).run({x.data(), more.data()}, {y.data(), b.data()}), SI_OK);
  y.insert(y.end(), b.begin(), b.end());
  return y;
}

// Readers round float32 as writers of bfloat16 do: the same bits. Small integers are exact, and so is the residual.
void test_results() {
  Random random;
  const std::vector<float> x = random.tensor(144, true), more = random.tensor(288, true);
  const std::vector<float> y = run(pairs_network(), x, more, 1);
  for (int threads : {1, 3}) {
    SI_CHECK(y == run(pairs_network(), x, more, threads));
    SI_CHECK(y == run(pairs_network(si::kFloat32), x, more, threads));
  }
  const std::vector<float> zero(288, 0.0f), plain = run(pairs_network(), x, zero, 1);
  bool adds = false;
  for (size_t i = 144; i < y.size(); ++i) {
    SI_CHECK(y[i] >= 0.0f);
    if (plain[i] > 0.0f) SI_CHECK_EQ(y[i], std::max(plain[i] + more[i - 144], 0.0f));
    adds = adds || y[i] != plain[i];
  }
  SI_CHECK(adds);
  const AlignedBytes file = pairs_network().bytes();
  const OpenModel model = open(file);
  si_node_info node = sized<si_node_info>();
  SI_CHECK_EQ(si_model_node(model.get(), kFirst, &node), SI_OK);
  SI_CHECK_EQ(node.type, SI_BF16);
  si_tensor_info tensor = sized<si_tensor_info>();
  SI_CHECK_EQ(si_model_tensor(model.get(), node.output, &tensor), SI_OK);
  SI_CHECK(tensor.type == SI_BF16 && tensor.bytes == 2 * 288);
}

void test_hostile_files() {
  const auto change = [](const char* part, const std::function<void(ModelFile&)>& fn) {
    ModelFile file = pairs_network();
    fn(file);
    refused(file, part);
  };
  const auto output = [](ModelFile& file, size_t node) -> si::FileTensor& {
    return file.tensors[file.nodes[node].output];
  };
  change("not computed by a node", [](ModelFile& file) { file.tensors[0].type = si::kBFloat16; });
  change("not computed by a node", [](ModelFile& file) { file.tensors[file.operands[2]].type = si::kBFloat16; });
  change("output 0 of float32", [&](ModelFile& file) { output(file, kLast).type = si::kBFloat16; });
  change("beside a residual", [&](ModelFile& file) { output(file, kSecond).type = si::kBFloat16; });
  change("has a scale", [&](ModelFile& file) { output(file, kFirst).scale = 1.0f; });
  change("has a scale", [&](ModelFile& file) { output(file, kFirst).zero_point = 1; });
  change("type 4", [&](ModelFile& file) { file.as_bytes(file.nodes[kFirst].output, 1.0f, 0); });
  // Bytes of a value that is taken for float32, and the other way round.
  change("a residual of float32", [&](ModelFile& file) { file.operands[6] = file.nodes[kFirst].output; });
  for (const uint32_t op : {4u, 5u, 6u, 7u, 8u, 9u, 10u, 11u, 12u})
    change("float32", [&](ModelFile& file) {
      const uint32_t from = file.nodes[kFirst].output;
      const std::vector<uint32_t> operands = op == 4 ? std::vector<uint32_t>{from, from} : std::vector<uint32_t>{from};
      const std::vector<int32_t> params =
          op == 6 || op == 7 ? std::vector<int32_t>{1, 1, 1, 1} : std::vector<int32_t>{};
      const uint32_t size = op == 8 ? 1 : 6;
      file.node(op, operands, {1, 8, size, size}, params);
    });
  // Weights that compute in float32, or on bytes.
  for (const si_value_type type : {SI_F32, SI_BF16, SI_I8})
    change(type == SI_I8 ? "uint8" : "float32", [&](ModelFile& file) {
      Random random;
      file.operands[4] = file.packed({8, 8, 1, 1}, random.tensor(64, true), 1, type);
    });
}

}  // namespace

int main() {
  test_results();
  test_hostile_files();
  refused_where_flipped(pairs_network().bytes());
  return finish("bfloat16_test");
}
