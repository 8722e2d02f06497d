// Models whose batch may vary: each batch computes what a file of that batch does, in as much memory; and the files and
// batches that are refused.

#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

OpenModel at(const si_model* model, int64_t batch, si_status* status = nullptr) {
  si_model* out = nullptr;
  const si_status got = si_model_at_batch(model, batch, &out);
  if (status != nullptr) *status = got;
  return OpenModel(got == SI_OK ? out : nullptr);
}

std::vector<float> run(const si_model* model, const std::vector<float>& x, size_t rows, int threads) {
  std::vector<float> y(12 * rows), logits(12 * rows);
  SI_CHECK_EQ(Runner(model, threads).run({x.data()}, {y.data(), logits.data()}), SI_OK);
  y.insert(y.end(), logits.begin(), logits.end());
  return y;
}

// As a file of that batch would, from whatever batch the file has.
void test_results() {
  Random random;
  for (const uint32_t own : {1u, 2u, 5u}) {
    const AlignedBytes file = at_batch(small_network(), own, 7).bytes();
    const OpenModel model = open(file);
    if (!SI_CHECK(model != nullptr)) return;
    SI_CHECK(describe(model.get()).batch == own && describe(model.get()).most_batch == 7);
    for (uint32_t batch = 1; batch <= 7; ++batch) {
      const AlignedBytes fixed_file = at_batch(small_network(), batch, 0).bytes();
      const OpenModel fixed = open(fixed_file), varied = at(model.get(), batch);
      if (!SI_CHECK(fixed != nullptr && varied != nullptr)) return;
      const si_model_info expected = describe(fixed.get()), info = describe(varied.get());
      SI_CHECK_EQ(info.arena_bytes, expected.arena_bytes);
      SI_CHECK_EQ(info.context_bytes, expected.context_bytes);
      SI_CHECK_EQ(info.batch, int64_t{batch});
      SI_CHECK_EQ(expected.batch, int64_t{0});
      const std::vector<float> x = random.tensor(batch * 324, false);
      for (int threads : {1, 3}) SI_CHECK(run(varied.get(), x, batch, threads) == run(fixed.get(), x, batch, threads));
    }
    // A batch of a handle that is at another one already.
    const OpenModel three = at(model.get(), 3), four = at(three.get(), 4);
    if (!SI_CHECK(four != nullptr)) return;
    const std::vector<float> x = random.tensor(4 * 324, false);
    SI_CHECK(run(four.get(), x, 4, 1) == run(at(model.get(), 4).get(), x, 4, 1));
  }
}

// What tells which tensors vary, and how their shapes follow.
void test_description() {
  ModelFile network;
  const uint32_t x = network.tensor(si::kBatchedInput, {2, 6}), fixed = network.input({3, 4});
  const uint32_t folded = network.node(9, {x}, {6, 2}), soft = network.node(10, {fixed}, {3, 4}, {1});
  network.outputs = {folded, soft};
  network.batch = 2;
  network.most_batch = 100;
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file), other = at(model.get(), 5);
  if (!SI_CHECK(other != nullptr)) return;
  const int64_t expected[][3] = {{5, 6, 1}, {3, 4, 0}, {15, 2, 3}, {3, 4, 0}};
  for (size_t i = 0; i < 4; ++i) {
    si_tensor_info tensor = sized<si_tensor_info>();
    SI_CHECK_EQ(si_model_tensor(other.get(), i, &tensor), SI_OK);
    SI_CHECK_EQ(tensor.shape[0], expected[i][0]);
    SI_CHECK_EQ(tensor.shape[1], expected[i][1]);
    SI_CHECK_EQ(tensor.per_batch, expected[i][2]);
    SI_CHECK_EQ(tensor.bytes, static_cast<uint64_t>(4 * tensor.shape[0] * tensor.shape[1]));
    SI_CHECK_EQ(tensor.kind, i < 2 ? SI_TENSOR_INPUT : SI_TENSOR_COMPUTED);
  }
  // Row by row, as torch would fold them.
  Random random;
  const std::vector<float> in = random.tensor(30, false), more = random.tensor(12, false);
  std::vector<float> y(30), z(12);
  SI_CHECK_EQ(Runner(other.get(), 1).run({in.data(), more.data()}, {y.data(), z.data()}), SI_OK);
  SI_CHECK(y == in);
}

void test_refused_batches() {
  const AlignedBytes file = at_batch(small_network(), 2, 6).bytes(), fixed_file = small_network().bytes();
  const OpenModel model = open(file), fixed = open(fixed_file);
  for (const int64_t batch : {int64_t{0}, int64_t{-1}, int64_t{7}, int64_t{1} << 40, INT64_MIN, INT64_MAX}) {
    si_status status = SI_OK;
    at(model.get(), batch, &status);
    SI_CHECK_EQ(status, SI_ERR_ARGUMENT);
    SI_CHECK(says("from 1 to 6"));
  }
  si_status status = SI_OK;
  at(fixed.get(), 1, &status);
  SI_CHECK(status == SI_ERR_ARGUMENT && says("fixed batch"));
  at(nullptr, 1, &status);
  SI_CHECK_EQ(status, SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_at_batch(model.get(), 1, nullptr), SI_ERR_ARGUMENT);
  // More elements than any tensor has.
  ModelFile large = at_batch(small_network(), 1, INT32_MAX);
  const AlignedBytes large_file = large.bytes();
  const OpenModel whole = open(large_file);
  at(whole.get(), INT32_MAX, &status);
  // A machine of 32 bits meets the end of its addresses before.
  if (sizeof(size_t) == 8)
    SI_CHECK(status == SI_ERR_ARGUMENT && says("2^40"));
  else
    SI_CHECK(status == SI_ERR_UNSUPPORTED && says("32-bit addresses"));
}

// Golden inputs are those of the file's own batch.
void test_golden_inputs() {
  ModelFile network = at_batch(small_network(), 2, 6);
  network.add_golden(1e9f);
  const AlignedBytes file = network.bytes();
  const OpenModel model = open(file), other = at(model.get(), 3), same = at(model.get(), 2);
  if (!SI_CHECK(other != nullptr && same != nullptr)) return;
  SI_CHECK(describe(other.get()).golden_bytes == 0 && describe(same.get()).golden_bytes != 0);
  SI_CHECK_EQ(Runner(other.get(), 1).selftest(), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("batch"));
  SI_CHECK_EQ(Runner(same.get(), 1).selftest(), SI_OK);
}

void test_hostile_files() {
  const auto change = [](const char* part, const std::function<void(ModelFile&)>& fn) {
    ModelFile file = at_batch(small_network(), 2, 6);
    fn(file);
    refused(file, part);
  };
  change("expected a batch", [](ModelFile& file) { file.most_batch = 1; });
  change("expected a batch", [](ModelFile& file) { file.most_batch = 1u << 31; });
  change("expected a batch", [](ModelFile& file) { file.batch = file.most_batch = UINT32_MAX; });
  change("expected a batch", [](ModelFile& file) { file.most_batch = 0; });
  change("expected a batch", [](ModelFile& file) { file.batch = 0; });
  change("header tells none", [](ModelFile& file) { file.batch = file.most_batch = 0; });
  change("no input varies", [](ModelFile& file) { file.tensors[0].kind = si::kInput; });
  change("kind 4", [](ModelFile& file) { file.tensors[0].kind = 4; });
  change("batch of 3", [](ModelFile& file) { file.batch = 3; });
  change("uint8", [](ModelFile& file) { file.as_bytes(0, 1.0f, 0); });
  // A batch that is moved, or gone.
  for (const std::vector<uint32_t>& dims : {std::vector<uint32_t>{3, 4}, std::vector<uint32_t>{1, 12}}) {
    ModelFile file;
    file.outputs = {file.node(9, {file.tensor(si::kBatchedInput, {2, 6})}, dims)};
    file.batch = 2;
    file.most_batch = 4;
    refused(file, "multiple of the batch");
  }
  // One that meets what does not vary: well formed at the file's own batch, and refused at every other.
  for (const uint32_t op : {4u, 11u}) {
    ModelFile file;
    const uint32_t x = file.tensor(si::kBatchedInput, {2, 6}), y = file.input({2, 6});
    file.outputs = {file.node(op, {x, y}, {op == 4 ? 2u : 4u, 6})};
    file.batch = 2;
    file.most_batch = 4;
    const AlignedBytes bytes = file.bytes();
    const OpenModel model = open(bytes);
    if (!SI_CHECK(model != nullptr)) return;
    SI_CHECK(at(model.get(), 2) != nullptr);
    for (const int64_t batch : {1, 3, 4}) {
      si_status status = SI_OK;
      at(model.get(), batch, &status);
      SI_CHECK(status == SI_ERR_CORRUPT && says("dimension 0"));
    }
  }
}

// The file of an earlier build: still read at any batch.
void test_old_file(int argc, char** argv) {
  const AlignedBytes now = at_batch(small_network(), 2, 6).bytes();
  const AlignedBytes old = golden_file(argc, argv, "batched_network_v1.sinf", now);
  if (old.size() == 0) return;
  const OpenModel old_model = open(old), model = open(now);
  if (!SI_CHECK(old_model != nullptr && model != nullptr)) return;
  Random random;
  const std::vector<float> x = random.tensor(3 * 324, false);
  SI_CHECK(run(at(old_model.get(), 3).get(), x, 3, 1) == run(at(model.get(), 3).get(), x, 3, 1));
}

}  // namespace

int main(int argc, char** argv) {
  test_old_file(argc, argv);
  test_results();
  test_description();
  test_refused_batches();
  test_golden_inputs();
  test_hostile_files();
  return finish("batch_test");
}
