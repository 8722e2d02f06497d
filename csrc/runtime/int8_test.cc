// Models of bytes: what they compute with any number of threads, and which files of them are refused. Their results are
// those of tests/int8_graph.py, of which Python compares every bit.
#include <cmath>
#include <limits>

#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

// Of every operator that takes bytes, 1 x 4 x 9 x 9 to 1 x 12. Nodes are numbered as they stand.
ModelFile byte_network() {
  ModelFile file;
  Random random;
  const auto weights = [&](size_t count) { return random.weight(1, static_cast<int64_t>(count), 0.4, false, 99, 99); };
  const auto act = [&](uint32_t id, float scale, uint32_t zero) { return file.as_bytes(id, scale, zero); };
  const std::vector<uint32_t> wide{1, 8, 9, 9};
  const std::vector<int32_t> point{1, 1, 0, 0, 0, 0, 1, 1};
  const uint32_t x = file.input({1, 4, 9, 9});
  const uint32_t q = act(file.node(12, {x}, {1, 4, 9, 9}), 0.01f, 128);
  const uint32_t first = file.packed({8, 4, 3, 3}, weights(288), 1, SI_I8), bias = file.constant({8}, weights(8));
  const uint32_t a = act(file.node(2, {q, first, bias}, wide, {1, 1, 1, 1, 1, 1, 1, 1}, SI_ACT_RELU), 0.02f, 0);
  std::vector<int8_t> taps(72);
  for (int8_t& v : taps) v = static_cast<int8_t>(random.engine());
  const uint32_t deep = file.int8({8, 1, 3, 3}, taps), scales = file.constant({8}, std::vector<float>(8, 0.01f));
  const uint32_t b = act(file.node(3, {a, deep, bias, scales}, wide, {1, 1, 1, 1, 1, 1}, SI_ACT_RELU6), 0.024f, 0);
  const uint32_t second = file.packed({8, 8, 1, 1}, weights(64), 1, SI_I8);
  const uint32_t c = act(file.node(2, {b, second, si::kNoTensor, a}, wide, point, SI_ACT_SILU), 0.03f, 9);
  const uint32_t d = act(file.node(4, {c, b}, wide, {}, SI_ACT_RELU), 0.04f, 0);
  const uint32_t e = act(file.node(6, {d}, {1, 8, 5, 5}, {3, 3, 2, 2, 1, 1, 1, 1}), 0.04f, 0);
  const uint32_t g = act(file.node(8, {e}, {1, 8, 1, 1}), 0.03f, 3);
  const uint32_t h = act(file.node(9, {g}, {1, 8}), 0.03f, 3);
  const uint32_t last = file.packed({12, 8}, weights(96), 1, SI_I8);
  const uint32_t i = file.node(1, {h, last}, {1, 12}, {}, SI_ACT_TANH);
  file.outputs = {i, file.node(13, {e}, {1, 8, 5, 5})};
  return file;
}

enum : size_t { kQuantize, kConv, kDepthwise, kResidual, kAdd, kPool, kMean, kReshape, kLinear, kDequantize };

void test_threads() {
  const AlignedBytes bytes = byte_network().bytes();
  const OpenModel model = open(bytes);
  if (!SI_CHECK(model != nullptr)) return;
  Random random;
  const std::vector<float> x = random.tensor(4 * 81, false);
  std::vector<std::vector<float>> all;
  for (int threads : {1, 2, 5}) {
    std::vector<float> y(12), second(200);
    SI_CHECK_EQ(Runner(model.get(), threads).run({x.data()}, {y.data(), second.data()}), SI_OK);
    y.insert(y.end(), second.begin(), second.end());
    all.push_back(y);
    SI_CHECK(all[0] == y);
  }
  bool lives = false;
  for (const float v : all[0]) lives = lives || v != all[0][0];
  SI_CHECK(lives);
  si_node_info info = sized<si_node_info>();
  SI_CHECK_EQ(si_model_node(model.get(), kReshape, &info), SI_OK);
  SI_CHECK(info.runs == 0 && info.type == SI_U8);
}

// Bytes of a batch are those of its samples by themselves, whatever the batch.
void test_batches() {
  const AlignedBytes one_file = byte_network().bytes(), file = at_batch(byte_network(), 2, 9).bytes();
  const OpenModel one = open(one_file), model = open(file);
  if (!SI_CHECK(one != nullptr && model != nullptr)) return;
  Random random;
  for (const int64_t batch : {1, 2, 3, 9}) {
    si_model* made = nullptr;
    if (!SI_CHECK_EQ(si_model_at_batch(model.get(), batch, &made), SI_OK)) return;
    const OpenModel varied(made);
    const auto rows = static_cast<size_t>(batch);
    const std::vector<float> x = random.tensor(rows * 324, false);
    std::vector<float> y(12 * rows), second(200 * rows), own(12 * rows), own_second(200 * rows);
    SI_CHECK_EQ(Runner(varied.get(), 2).run({x.data()}, {y.data(), second.data()}), SI_OK);
    for (size_t row = 0; row < rows; ++row)
      SI_CHECK_EQ(Runner(one.get(), 1).run({&x[row * 324]}, {&own[row * 12], &own_second[row * 200]}), SI_OK);
    SI_CHECK(y == own && second == own_second);
  }
}

void change(const char* part, const std::function<void(ModelFile&)>& fn) {
  ModelFile file = byte_network();
  fn(file);
  refused(file, part);
}

// Operand `which` of a node.
uint32_t& operand(ModelFile& file, size_t node, size_t which) {
  size_t at = which;
  for (size_t i = 0; i < node; ++i) at += file.nodes[i].operands;
  return file.operands[at];
}

si::FileTensor& output(ModelFile& file, size_t node) { return file.tensors[file.nodes[node].output]; }

void test_tensors() {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float scale : {0.0f, -0.0f, -1.0f, infinity, -infinity, nan, 0x1p-61f, 0x1p49f, 1e-45f})
    change("expected a scale", [=](ModelFile& file) { output(file, kConv).scale = scale; });
  for (const uint32_t zero : {256u, 0x80000000u, UINT32_MAX})
    change("expected a zero point", [=](ModelFile& file) { output(file, kConv).zero_point = zero; });
  change("has a scale or a zero point", [](ModelFile& file) { file.tensors[0].scale = 0.5f; });
  change("has a scale or a zero point", [](ModelFile& file) { file.tensors[0].scale = -0.0f; });
  change("has a scale or a zero point", [](ModelFile& file) { output(file, kLinear).zero_point = 1; });
  change("not computed by a node", [](ModelFile& file) { file.as_bytes(0, 0.5f, 0); });
  change("not computed by a node", [](ModelFile& file) { file.as_bytes(operand(file, kConv, 2), 0.5f, 0); });
  change("is no constant", [](ModelFile& file) { file.tensors[0].type = si::kInt8; });
  change("is no constant",
         [](ModelFile& file) { output(file, kConv) = {si::kInt8, si::kComputed, 4, {1, 8, 9, 9}, 2, 0.0f, 0, 0}; });
  change("expected output 0 of float32", [](ModelFile& file) { file.outputs[0] = file.nodes[kAdd].output; });
  // Bytes that are told as four times as many, and floats as a quarter.
  change("bytes of tensor", [](ModelFile& file) { file.tensors[operand(file, kDepthwise, 1)].type = si::kFloat32; });
  change("bytes of tensor", [](ModelFile& file) { file.tensors[operand(file, kDepthwise, 2)].type = si::kInt8; });
}

void test_types() {
  const auto floats = [](ModelFile& file, size_t node) {
    si::FileTensor& y = output(file, node);
    y.type = si::kFloat32;
    y.scale = 0.0f;
    y.zero_point = 0;
  };
  // Each operator that takes bytes, of bytes and floats mixed.
  change("an output of uint8", [&](ModelFile& file) { floats(file, kQuantize); });
  change("an x of uint8", [](ModelFile& file) { operand(file, kConv, 0) = 0; });
  change("an output of uint8", [&](ModelFile& file) { floats(file, kDepthwise); });
  change("an output of uint8", [&](ModelFile& file) { floats(file, kAdd); });
  change("an output of uint8", [&](ModelFile& file) { floats(file, kPool); });
  change("an output of uint8", [&](ModelFile& file) { floats(file, kMean); });
  change("an output of uint8", [&](ModelFile& file) { floats(file, kReshape); });
  change("an output of float32", [](ModelFile& file) { file.as_bytes(file.nodes[kDequantize].output, 0.5f, 0); });
  change("a residual of uint8", [](ModelFile& file) { operand(file, kResidual, 3) = file.input({1, 8, 9, 9}); });
  change("an operand of uint8", [](ModelFile& file) { operand(file, kAdd, 1) = file.input({1, 8, 9, 9}); });
  change("an x of float32", [](ModelFile& file) {
    Random random;
    operand(file, kConv, 1) = file.packed({8, 4, 3, 3}, random.tensor(288, false));
  });
  change("a weight of int8", [](ModelFile& file) {
    Random random;
    operand(file, kDepthwise, 1) = file.constant({8, 1, 3, 3}, random.tensor(72, false));
  });
  // What has no kernel for bytes.
  for (const uint32_t op : {5u, 10u, 11u})
    change("of float32", [=](ModelFile& file) { file.nodes[kDequantize].op = op; });
  // Bytes that stand for something else than those they are made from.
  change("its operand's scale", [](ModelFile& file) { output(file, kPool).scale = 0.041f; });
  change("its operand's scale", [](ModelFile& file) { output(file, kReshape).zero_point = 4; });
  // Activations that bytes cannot be clamped by.
  for (const size_t node : {kDepthwise, kAdd})
    change("relu6 of bytes", [=](ModelFile& file) { file.nodes[node].activation = SI_ACT_SILU; });
  for (const size_t node : {kQuantize, kDequantize, kMean, kPool})
    change("no activation", [=](ModelFile& file) { file.nodes[node].activation = SI_ACT_RELU; });
}

void test_nodes() {
  for (const size_t node : {kQuantize, kDequantize}) {
    change("parameter 0", [=](ModelFile& file) { file.nodes[node].params[0] = 1; });
    change("dimension 1 of the output", [=](ModelFile& file) { output(file, node).dims[1] += 1; });
    change("dimensions", [=](ModelFile& file) { output(file, node).ndim = 3, output(file, node).dims[3] = 0; });
  }
  change("dimension 3 of the output", [](ModelFile& file) { output(file, kDepthwise).dims[3] = 10; });
  change("scales of the weight", [](ModelFile& file) { operand(file, kDepthwise, 3) = si::kNoTensor; });
  change("constant scales", [](ModelFile& file) { operand(file, kDepthwise, 3) = 0; });
  change("a constant bias of 8",
         [](ModelFile& file) { operand(file, kDepthwise, 3) = file.constant({9}, std::vector<float>(9, 1.0f)); });
  for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), 0x1p60f})
    change("scales of the weight from", [=](ModelFile& file) {
      std::vector<float> scales(8, 1.0f);
      scales[7] = scale;
      operand(file, kDepthwise, 3) = file.constant({8}, scales);
    });
  // Of floats, scales have no meaning.
  ModelFile file;
  const uint32_t x = file.input({1, 8, 9, 9}), scales = file.constant({8}, std::vector<float>(8, 1.0f));
  const uint32_t weight = file.constant({8, 1, 3, 3}, std::vector<float>(72, 1.0f));
  file.outputs = {file.node(3, {x, weight, si::kNoTensor, scales}, {1, 8, 9, 9}, {1, 1, 1, 1, 1, 1})};
  refused(file, "no scales");
}

constexpr uint32_t kLookup = 24;

// One node of bytes between a quantisation and its opposite, x of 1 x 2 x 4 x 6 to 1 x 2 x h x w.
ModelFile one_node(uint32_t op, uint32_t h, uint32_t w, const std::vector<int32_t>& params, float scale = 0.5f,
                   bool table = false) {
  ModelFile file;
  const uint32_t q = file.as_bytes(file.node(12, {file.input({1, 2, 4, 6})}, {1, 2, 4, 6}), 0.5f, 3);
  std::vector<uint32_t> operands{q};
  std::vector<int8_t> bytes(256);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<int8_t>(static_cast<uint8_t>(255 - i));
  if (table) operands.push_back(file.int8({256}, bytes));
  const uint32_t y = file.as_bytes(file.node(op, operands, {1, 2, h, w}, params), scale, 3);
  file.outputs = {file.node(13, {y}, {1, 2, h, w})};
  return file;
}

std::vector<float> result_of(const ModelFile& file, size_t count) {
  const AlignedBytes bytes = file.bytes();
  const OpenModel model = open(bytes);
  std::vector<float> x(48), y(count, -1.0f);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 0.5f * static_cast<float>(i);
  if (SI_CHECK(model != nullptr)) SI_CHECK_EQ(Runner(model.get(), 2).run({x.data()}, {y.data()}), SI_OK);
  return y;
}

// What moves bytes, looks them up or takes means of them, and its hostile values.
void test_between() {
  const std::vector<int32_t> slice{3, 1, 2}, nearest{0, 8, 6, 0x3f000000, 0x3f800000};
  const std::vector<int32_t> mean{2, 3, 2, 3, 0, 0, 0, 0, 0};
  const std::vector<float> cut = result_of(one_node(19, 4, 3, slice), 24);
  for (size_t i = 0; i < 24; ++i) SI_CHECK_EQ(cut[i], 0.5f * static_cast<float>(i / 3 * 6 + 1 + 2 * (i % 3)));
  const std::vector<float> wide = result_of(one_node(21, 8, 6, nearest), 96);
  for (size_t i = 0; i < 96; ++i) SI_CHECK_EQ(wide[i], 0.5f * static_cast<float>(i / 12 * 6 + i % 6));
  const std::vector<float> means = result_of(one_node(7, 2, 2, mean, 0.25f), 8);
  for (size_t i = 0; i < 8; ++i)
    SI_CHECK_EQ(means[i], 0.5f * static_cast<float>(i / 4 * 24 + i / 2 % 2 * 12 + i % 2 * 3 + 4));
  const std::vector<float> looked = result_of(one_node(kLookup, 4, 6, {}, 0.5f, true), 48);
  for (size_t i = 0; i < 48; ++i) SI_CHECK_EQ(looked[i], 0.5f * static_cast<float>(255 - 3 - 3 - static_cast<int>(i)));

  refused(one_node(19, 4, 3, slice, 0.25f), "its operand's scale");
  refused(one_node(21, 8, 6, nearest, 0.25f), "its operand's scale");
  refused(one_node(21, 8, 6, {2, 8, 6, 0x3f000000, 0x3f800000}), "nearest pixels of bytes");
  refused(one_node(7, 2, 2, {2, 3, 2, 3, 0, 0, 0, 0, 2}), "parameter 8");
  refused(one_node(kLookup, 4, 6, {1}, 0.5f, true), "parameter 0");
  refused(one_node(kLookup, 4, 5, {}, 0.5f, true), "dimension 3 of the output");
  refused(one_node(kLookup, 4, 6, {}), "operands, got 1");
  const auto table = [](const char* part, const std::function<void(ModelFile&)>& fn) {
    ModelFile file = one_node(kLookup, 4, 6, {}, 0.5f, true);
    fn(file);
    refused(file, part);
  };
  table("a constant table", [](ModelFile& file) { operand(file, 1, 1) = file.int8({255}, std::vector<int8_t>(255)); });
  table("a constant table",
        [](ModelFile& file) { operand(file, 1, 1) = file.int8({2, 128}, std::vector<int8_t>(256)); });
  table("a constant table", [](ModelFile& file) { operand(file, 1, 1) = operand(file, 1, 0); });
  table("an x of uint8", [](ModelFile& file) { operand(file, 1, 0) = 0; });
  table("no activation", [](ModelFile& file) { file.nodes[1].activation = SI_ACT_RELU; });
  // Bytes of two scales side by side.
  ModelFile file;
  const uint32_t x = file.input({1, 4});
  const uint32_t a = file.as_bytes(file.node(12, {x}, {1, 4}), 0.5f, 3),
                 b = file.as_bytes(file.node(12, {x}, {1, 4}), 0.25f, 3);
  const uint32_t both = file.as_bytes(file.node(11, {a, b}, {1, 8}, {1}), 0.5f, 3);
  file.outputs = {file.node(13, {both}, {1, 8})};
  refused(file, "its operand's scale");
}

}  // namespace

int main() {
  test_threads();
  test_batches();
  test_tensors();
  test_types();
  test_nodes();
  test_between();
  refused_where_flipped(byte_network().bytes());
  return finish("int8_test");
}
