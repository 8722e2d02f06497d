// A transformer's operators in model files: what they compute together, and which files and ids are refused.
#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/network/attention.h"
#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr uint32_t kIds = 0, kMask = 1;  // tensors of the network below

int32_t bits_of(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Ids of 2 x 5 tokens and their mask: embedding, three projections as one, masked attention of 2 heads of 4 features,
// residual and norm; the tokens first, and of the first sequence every second one.
ModelFile small_transformer(uint32_t seed = 1) {
  ModelFile file;
  const auto values = [&](size_t count, float kept) {
    std::vector<float> out(count);
    for (float& v : out) {
      seed = seed * 1664525u + 1013904223u;
      const float next = static_cast<float>(seed >> 8) / 16777216.0f;
      v = next < kept ? 2.0f * next / kept - 1.0f : 0.0f;
    }
    return out;
  };
  const uint32_t ids = file.tensor(si::kInput, {2, 5}, si::kInt64), mask = file.tensor(si::kInput, {2, 5}, si::kInt64);
  const uint32_t table = file.constant({11, 8}, values(88, 1.0f));
  const uint32_t x = file.node(16, {ids, table}, {2, 5, 8});
  const uint32_t w = file.packed({24, 8}, values(192, 0.6f));
  const uint32_t qkv = file.node(1, {x, w}, {2, 5, 24});
  const uint32_t flat = file.node(9, {mask}, {2, 1, 1, 5});
  file.tensors[flat].type = si::kInt64;
  const uint32_t none = file.constant({1, 1, 1, 1}, {0.0f}), out = file.constant({1, 1, 1, 1}, {-HUGE_VALF});
  const uint32_t added = file.node(18, {flat, none, out}, {2, 1, 1, 5}, {1});
  const uint32_t y = file.node(15, {qkv, qkv, qkv, added}, {2, 5, 8}, {2, 4, bits_of(0.5f), 0, 0, 8, 16});
  const uint32_t scale = file.constant({8}, values(8, 1.0f)), shift = file.constant({8}, values(8, 1.0f));
  const uint32_t normal = file.node(14, {y, scale, shift, x}, {2, 5, 8}, {bits_of(1e-5f)});
  const uint32_t turned = file.node(17, {normal}, {5, 2, 8}, {1, 0, 2});
  file.outputs = {turned, file.node(19, {file.node(19, {turned}, {5, 1, 8}, {1, 0, 1})}, {2, 1, 8}, {0, 1, 2})};
  return file;
}

std::vector<float> run(const ModelFile& network, const std::vector<int64_t>& ids, const std::vector<int64_t>& mask,
                       int threads = 1, si_status want = SI_OK) {
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file);
  std::vector<float> y(80, NAN), some(16, NAN);
  if (!SI_CHECK(model != nullptr)) return y;
  SI_CHECK_EQ(Runner(model.get(), threads).run({ids.data(), mask.data()}, {y.data(), some.data()}), want);
  if (want == SI_OK)
    for (size_t i = 0; i < 16; ++i) SI_CHECK_EQ(some[i], y[(1 + 2 * (i / 8)) * 16 + i % 8]);
  return y;
}

const std::vector<int64_t> kSomeIds{0, 10, 3, 3, 7, 5, 5, 1, 9, 2};

void test_results() {
  const ModelFile network = small_transformer();
  const std::vector<int64_t> all(10, 1), some{1, 1, 1, 1, 1, 1, 1, 1, 0, 0};
  const std::vector<float> y = run(network, kSomeIds, all);
  SI_CHECK(std::all_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }));
  SI_CHECK(y == run(network, kSomeIds, all, 3));
  // What is masked makes no difference to the tokens that are left: neither its place in the batch nor its id.
  std::vector<int64_t> others = kSomeIds;
  others[8] = 4;
  const std::vector<float> masked = run(network, kSomeIds, some), again = run(network, others, some);
  const auto token = [](const std::vector<float>& v, int t, int b) {
    return std::vector<float>(v.begin() + (t * 2 + b) * 8, v.begin() + (t * 2 + b) * 8 + 8);
  };
  for (int t = 0; t < 5; ++t) {
    SI_CHECK(token(masked, t, 0) == token(y, t, 0));
    if (t < 3) SI_CHECK(token(masked, t, 1) == token(again, t, 1) && token(masked, t, 1) != token(y, t, 1));
  }
}

// Tokens before batches: the same as with the two turned around by permutes.
void test_tokens_first() {
  Random random;
  const std::vector<float> x = random.tensor(3 * 2 * 24, false);
  std::vector<std::vector<float>> results;
  for (const bool turned : {false, true}) {
    ModelFile file;
    const uint32_t in = file.input({3, 2, 24});
    const std::vector<int32_t> params{2, 4, bits_of(0.5f), 1, 0, 8, 16, turned ? 0 : 1};
    if (turned) {
      const uint32_t q = file.node(17, {in}, {2, 3, 24}, {1, 0, 2});
      file.outputs = {file.node(17, {file.node(15, {q, q, q}, {2, 3, 8}, params)}, {3, 2, 8}, {1, 0, 2})};
    } else {
      file.outputs = {file.node(15, {in, in, in}, {3, 2, 8}, params)};
    }
    const AlignedBytes bytes = file.bytes();
    const OpenModel model = open(bytes);
    if (!SI_CHECK(model != nullptr)) return;
    std::vector<float> y(48);
    SI_CHECK_EQ(Runner(model.get(), 2).run({x.data()}, {y.data()}), SI_OK);
    results.push_back(y);
  }
  SI_CHECK(results[0] == results[1]);
}

// Attention that may multiply bfloat16 is off by their rounding, or not at all.
void test_rounded_attention() {
  Random random;
  const std::vector<float> x = random.tensor(3 * 2 * 24, false);
  std::vector<std::vector<float>> results;
  for (const int rounds : {0, 1}) {
    ModelFile file;
    const uint32_t in = file.input({3, 2, 24});
    file.outputs = {file.node(15, {in, in, in}, {3, 2, 8}, {2, 4, bits_of(0.5f), 1, 0, 8, 16, 1, rounds})};
    const AlignedBytes bytes = file.bytes();
    const OpenModel model = open(bytes);
    if (!SI_CHECK(model != nullptr)) return;
    std::vector<float> y(48);
    SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {y.data()}), SI_OK);
    results.push_back(y);
  }
  float largest = 0.0f;
  for (const float v : x) largest = std::max(largest, std::abs(v));
  // Scores are off by two roundings of products of four, and values, as their shares, by one each.
  const double bound = (4 * 0.5 * largest * largest * 4 + 2) * largest / 256;
  for (size_t i = 0; i < 48; ++i) SI_CHECK_NEAR(results[1][i], double{results[0][i]}, bound);
  SI_CHECK_EQ(si::attention_kernels(true) == si::attention_kernels(false), results[0] == results[1]);
}

// Ids that no row has, and masks that are neither 0 nor 1, are told when they come: nothing is read or computed
// wrongly.
void test_ids() {
  const ModelFile network = small_transformer();
  const std::vector<int64_t> ones(10, 1);
  for (const int64_t bad : {int64_t{-1}, int64_t{11}, INT64_MAX, INT64_MIN}) {
    std::vector<int64_t> ids = kSomeIds, mask = ones;
    ids[9] = bad;
    run(network, ids, ones, 2, SI_ERR_ARGUMENT);
    SI_CHECK(says("from 0 to 10") && says("element 9"));
    mask[0] = bad;
    run(network, kSomeIds, mask, 2, SI_ERR_ARGUMENT);
    SI_CHECK(says("0 or 1"));
  }
  // Where the mask promises nothing, all but zero is one.
  ModelFile loose = small_transformer();
  loose.nodes[3].params[0] = 0;
  std::vector<int64_t> mask = ones;
  mask[2] = -7;
  SI_CHECK(run(loose, kSomeIds, mask) == run(loose, kSomeIds, ones));
}

void test_permute() {
  Random random;
  const uint32_t dims[] = {3, 5, 20, 7};
  const std::vector<float> x = random.tensor(2100, true);
  for (const std::vector<int32_t>& axes :
       {std::vector<int32_t>{3, 2, 1, 0}, {0, 2, 1, 3}, {0, 1, 3, 2}, {1, 0, 2, 3}, {0, 1, 2, 3}, {2, 3, 0, 1}}) {
    ModelFile file;
    const uint32_t in = file.input({3, 5, 20, 7});
    std::vector<uint32_t> shape;
    for (const int32_t axis : axes) shape.push_back(dims[axis]);
    file.outputs = {file.node(17, {in}, shape, axes)};
    const AlignedBytes bytes = file.bytes();
    const OpenModel model = open(bytes);
    if (!SI_CHECK(model != nullptr)) return;
    Output y(2100, 1);
    SI_CHECK_EQ(Runner(model.get(), 1).run({x.data()}, {y.data()}), SI_OK);
    y.check_canaries("permute");
    size_t at = 0, own[4];
    for (own[0] = 0; own[0] < shape[0]; ++own[0])
      for (own[1] = 0; own[1] < shape[1]; ++own[1])
        for (own[2] = 0; own[2] < shape[2]; ++own[2])
          for (own[3] = 0; own[3] < shape[3]; ++own[3]) {
            size_t place[4];
            for (size_t i = 0; i < 4; ++i) place[axes[i]] = own[i];
            SI_CHECK_EQ(y.data()[at++], x[((place[0] * 5 + place[1]) * 20 + place[2]) * 7 + place[3]]);
          }
  }
}

void test_where() {
  for (const si::TensorType type : {si::kBool, si::kInt64}) {
    ModelFile file;
    const uint32_t condition = file.tensor(si::kInput, {2, 1, 3}, type);
    const uint32_t a = file.constant({4, 1}, {1, 2, 3, 4}), b = file.input({3});
    file.outputs = {file.node(18, {condition, a, b}, {2, 4, 3})};
    const AlignedBytes bytes = file.bytes();
    const OpenModel model = open(bytes);
    if (!SI_CHECK(model != nullptr)) return;
    const std::vector<uint8_t> flags{0, 1, 0, 2, 0, 255};
    const std::vector<int64_t> numbers(flags.begin(), flags.end());
    const void* const given = type == si::kBool ? static_cast<const void*>(flags.data()) : numbers.data();
    const std::vector<float> other{10, 20, 30};
    std::vector<float> y(24);
    SI_CHECK_EQ(Runner(model.get(), 1).run({given, other.data()}, {y.data()}), SI_OK);
    for (size_t i = 0; i < 2; ++i)
      for (size_t j = 0; j < 4; ++j)
        for (size_t k = 0; k < 3; ++k)
          SI_CHECK_EQ(y[(i * 4 + j) * 3 + k], flags[i * 3 + k] != 0 ? static_cast<float>(j + 1) : other[k]);
  }
}

void test_refused() {
  const auto bad = [](const char* part, const std::function<void(ModelFile&)>& change) {
    ModelFile file = small_transformer();
    change(file);
    refused(file, part);
  };
  enum { kEmbedding, kLinear, kReshape, kWhere, kAttention, kNorm, kPermute, kSlice };
  const auto type = [](ModelFile& file, uint32_t tensor, si::TensorType to) { file.tensors[tensor].type = to; };
  // Types: ids and masks come in, and are nothing else.
  bad("ids of int64", [&](ModelFile& file) { type(file, kIds, si::kFloat32); });
  bad("ids of int64", [&](ModelFile& file) { type(file, kIds, si::kBool); });
  bad("its operand's type", [&](ModelFile& file) { type(file, kMask, si::kBool); });
  bad("of ids or of a mask is constant", [&](ModelFile& file) { type(file, 2, si::kInt64); });
  bad("an output of float32", [&](ModelFile& file) { type(file, file.nodes[kEmbedding].output, si::kInt64); });
  bad("an output of float32", [&](ModelFile& file) { type(file, file.nodes[kWhere].output, si::kInt64); });
  bad("of float32", [&](ModelFile& file) { type(file, file.nodes[kAttention].output, si::kInt64); });
  bad("a scale or a zero point", [&](ModelFile& file) { file.tensors[kIds].zero_point = 1; });
  bad("condition of int64 or bool", [](ModelFile& file) { file.operands[5] = 2; });
  // Attention: heads that do not lie within their tokens, sizes that do not fit, scales that are none.
  for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX, 3}) {
    bad("attention", [=](ModelFile& file) {
      file.node_names[kAttention] = "attention";
      file.nodes[kAttention].name_bytes = 9;
      file.nodes[kAttention].params[0] = value;
    });
    if (value != 3) bad("features", [=](ModelFile& file) { file.nodes[kAttention].params[1] = value; });
    for (int which : {4, 5, 6})
      if (value != 0 && value != 3)
        bad("heads within", [=](ModelFile& file) { file.nodes[kAttention].params[which] = value; });
  }
  for (int which : {4, 5, 6}) bad("heads within", [=](ModelFile& file) { file.nodes[kAttention].params[which] = 17; });
  for (const float value : {HUGE_VALF, NAN})
    bad("finite scale", [=](ModelFile& file) { file.nodes[kAttention].params[2] = bits_of(value); });
  for (const int which : {3, 7, 8}) {
    bad("0 or 1", [=](ModelFile& file) { file.nodes[kAttention].params[which] = 2; });
    bad("0 or 1", [=](ModelFile& file) { file.nodes[kAttention].params[which] = -1; });
  }
  bad("a mask of 2 keys", [](ModelFile& file) { file.nodes[kAttention].params[7] = 1; });
  bad("parameter 9", [](ModelFile& file) { file.nodes[kAttention].params[9] = 1; });
  bad("no activation", [](ModelFile& file) { file.nodes[kAttention].activation = SI_ACT_RELU; });
  bad("a mask of 5 keys", [](ModelFile& file) { file.operands[11] = 2; });
  // Norms.
  for (const float value : {-1e-5f, HUGE_VALF, NAN})
    bad("eps", [=](ModelFile& file) { file.nodes[kNorm].params[0] = bits_of(value); });
  bad("parameter 1", [](ModelFile& file) { file.nodes[kNorm].params[1] = 2; });
  bad("parameter 2", [](ModelFile& file) { file.nodes[kNorm].params[2] = 1; });
  bad("constant elements of operand 1", [](ModelFile& file) { file.operands[13] = 2; });
  bad("dimension 2 of the output", [](ModelFile& file) { file.operands[15] = 5; });
  // Permutes: axes that are there once each.
  for (const int32_t value : {-1, 3, INT32_MIN, INT32_MAX, 0}) {
    bad("axis", [=](ModelFile& file) { file.nodes[kPermute].params[0] = value; });
  }
  bad("parameter 3", [](ModelFile& file) { file.nodes[kPermute].params[3] = 1; });
  bad("dimension 0 of the output", [](ModelFile& file) {
    file.tensors[file.nodes[kPermute].output].dims[0] = 2;
    file.tensors[file.nodes[kPermute].output].dims[1] = 5;
  });
  // Slices: what lies within x.
  for (const int32_t value : {-1, 3, INT32_MIN, INT32_MAX})
    bad("axis", [=](ModelFile& file) { file.nodes[kSlice].params[0] = value; });
  for (const int32_t value : {-1, 2, INT32_MIN, INT32_MAX})
    bad("within", [=](ModelFile& file) { file.nodes[kSlice].params[1] = value; });
  for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX, 4})
    bad("within", [=](ModelFile& file) { file.nodes[kSlice + 1].params[2] = value; });
  bad("dimension 2 of the output", [](ModelFile& file) { file.tensors[file.nodes[kSlice].output].dims[2] = 9; });
  bad("parameter 3", [](ModelFile& file) { file.nodes[kSlice].params[3] = 1; });
  // Where: what is chosen fits, and gives the output its size.
  bad("broadcast", [](ModelFile& file) { file.tensors[file.nodes[kWhere].output].dims[3] = 4; });
  bad("dimension 1 of the output", [](ModelFile& file) { file.tensors[file.nodes[kWhere].output].dims[1] = 2; });
  bad("0 or 1", [](ModelFile& file) { file.nodes[kWhere].params[0] = 2; });
  bad("parameter 1", [](ModelFile& file) { file.nodes[kWhere].params[1] = 1; });
  // Embeddings.
  bad("table of 2 dimensions",
      [](ModelFile& file) { file.tensors[2].ndim = 1, file.tensors[2].dims[0] = 88, file.tensors[2].dims[1] = 0; });
  bad("dimension 2 of the output", [](ModelFile& file) { file.tensors[2].dims[0] = 8, file.tensors[2].dims[1] = 11; });
  bad("parameter 0", [](ModelFile& file) { file.nodes[kEmbedding].params[0] = 1; });
  const AlignedBytes whole = small_transformer().bytes();
  refused_where_flipped(whole);
}

// The file of an earlier build: still read, and what it gives.
void test_golden(int argc, char** argv) {
  const AlignedBytes old = golden_file(argc, argv, "small_transformer_v1.sinf", small_transformer().bytes());
  if (old.size() == 0) return;
  const OpenModel model = open(old);
  if (!SI_CHECK(model != nullptr)) return;
  const std::vector<int64_t> mask(10, 1);
  std::vector<float> y(80), some(16);
  SI_CHECK_EQ(Runner(model.get(), 1).run({kSomeIds.data(), mask.data()}, {y.data(), some.data()}), SI_OK);
  SI_CHECK(y == run(small_transformer(), kSomeIds, mask));
}

}  // namespace

int main(int argc, char** argv) {
  test_golden(argc, argv);
  test_results();
  test_tokens_first();
  test_rounded_attention();
  test_ids();
  test_permute();
  test_where();
  test_refused();
  return finish("transformer_test");
}
