// Hostile model files: cut at every byte, every bit flipped, every field set to what it must not be under a right
// checksum, and the shapes of known flaws of other formats' readers. Each is refused, and nothing else happens.
#include <cmath>
#include <functional>

#include "testing/model_file.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

void test_damage() {
  const AlignedBytes whole = small_network().bytes();
  SI_CHECK(open(whole) != nullptr);
  for (size_t size = 0; size < whole.size(); ++size) {
    si_status status = SI_OK;
    open(AlignedBytes(whole.data(), size), &status);
    SI_CHECK_EQ(status, SI_ERR_CORRUPT);
  }
  refused_where_flipped(whole);
  std::vector<uint8_t> longer(whole.data(), whole.data() + whole.size());
  longer.resize(longer.size() + 64);
  si_status status = SI_OK;
  open(AlignedBytes(longer.data(), longer.size()), &status);
  SI_CHECK_EQ(status, SI_ERR_CORRUPT);
  SI_CHECK_EQ(si_model_open(nullptr, 128, nullptr), SI_ERR_ARGUMENT);
  si_model* model = nullptr;
  SI_CHECK_EQ(si_model_open(nullptr, 128, &model), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_model_open(whole.data() + 8, 128, &model), SI_ERR_ARGUMENT);
}

template <class Field>
std::function<void(uint8_t*)> header(Field si::FileHeader::* field, Field value) {
  return [=](uint8_t* file) { reinterpret_cast<si::FileHeader*>(file)->*field = value; };
}

void test_header() {
  const ModelFile good = small_network();
  refused(good, "version 2", header<uint32_t>(&si::FileHeader::version, 2));
  refused(good, "version 0", header<uint32_t>(&si::FileHeader::version, 0));
  refused(good, "flags", header<uint32_t>(&si::FileHeader::flags, 1));
  refused(good, "reserved", [](uint8_t* file) { reinterpret_cast<si::FileHeader*>(file)->reserved[5] = 1; });
  refused(good, "does not begin", [](uint8_t* file) { file[0] = 'G'; });
  // Counts that promise gigabytes, and none.
  for (const uint32_t count : {uint32_t{0}, UINT32_MAX, uint32_t{1} << 30}) {
    refused(good, "tensors", header<uint32_t>(&si::FileHeader::tensors, count));
    refused(good, "nodes", header<uint32_t>(&si::FileHeader::nodes, count));
    refused(good, "operands", header<uint32_t>(&si::FileHeader::operands, count));
    refused(good, "outputs", header<uint32_t>(&si::FileHeader::outputs, count));
    refused(good, "names", header<uint32_t>(&si::FileHeader::names_bytes, count));
  }
  refused(good, "metadata", header<uint32_t>(&si::FileHeader::metadata_bytes, UINT32_MAX));
  // Within the limits, and beyond the file.
  refused(good, "after the file", header<uint32_t>(&si::FileHeader::tensors, si::kMostTensors));
  refused(good, "bytes", header<uint64_t>(&si::FileHeader::total_bytes, UINT64_MAX));
  refused(good, "bytes", header<uint64_t>(&si::FileHeader::total_bytes, 128));
}

void test_tensors() {
  const auto tensor = [](const char* part, const std::function<void(ModelFile&)>& change) {
    ModelFile file = small_network();
    change(file);
    refused(file, part);
  };
  tensor("type 7", [](ModelFile& file) { file.tensors[0].type = 7; });
  tensor("kind 4", [](ModelFile& file) { file.tensors[0].kind = 4; });
  tensor("has a scale or a zero point", [](ModelFile& file) { file.tensors[0].zero_point = 5; });
  tensor("has a scale or a zero point", [](ModelFile& file) { file.tensors[2].scale = 1.0f; });
  tensor("dimensions", [](ModelFile& file) { file.tensors[0].ndim = 9; });
  tensor("dimensions", [](ModelFile& file) { file.tensors[0].ndim = UINT32_MAX; });
  tensor("dimension 1", [](ModelFile& file) { file.tensors[0].dims[1] = 0; });
  tensor("dimension 1", [](ModelFile& file) { file.tensors[0].dims[1] = UINT32_MAX; });
  tensor("dimension 6", [](ModelFile& file) { file.tensors[0].dims[6] = 1; });
  // Products that wrap to something small.
  tensor("2^40 elements", [](ModelFile& file) {
    for (uint32_t& size : file.tensors[0].dims) size = 1u << 8;
    file.tensors[0].ndim = 8;
  });
  tensor("2^40 elements", [](ModelFile& file) {
    file.tensors[0].dims[0] = 1u << 20;
    for (int i = 1; i < 4; ++i) file.tensors[0].dims[i] = 1u << 30;
  });
  // A type that lies: a packed weight as plain, plain as packed, and one that no constant is.
  tensor("bytes of tensor 1", [](ModelFile& file) { file.tensors[1].type = si::kFloat32; });
  tensor("packed", [](ModelFile& file) { file.tensors[2].type = si::kPacked; });
  tensor("packed", [](ModelFile& file) { file.tensors[0].type = si::kPacked; });
  tensor("another shape", [](ModelFile& file) { file.tensors[1].dims[0] = 9; });
  tensor("another shape", [](ModelFile& file) { file.tensors[1].ndim = 3, file.tensors[1].dims[3] = 0; });
  // Bytes beyond the file, that wrap, and of what is no constant: what would make data overlap.
  tensor("larger than the file", [](ModelFile& file) { file.tensors[2].bytes = UINT64_MAX; });
  tensor("larger than the file", [](ModelFile& file) { file.tensors[2].bytes = UINT64_MAX - 63; });
  tensor("no constant", [](ModelFile& file) { file.tensors[0].bytes = 64; });
  tensor("", [](ModelFile& file) { file.tensors[2].bytes += 64; });
  tensor("zeros after", [](ModelFile& file) { file.data[1].push_back(1); });
  tensor("", [](ModelFile& file) { file.data[0][40] ^= 1; });
  tensor("name", [](ModelFile& file) { file.tensors[0].name_bytes = 256; });
  tensor("name", [](ModelFile& file) { file.tensors[0].name_bytes = 1; });
  tensor("name", [](ModelFile& file) { file.tensors[0].name_bytes = 3; });
  tensor("names end early", [](ModelFile& file) {
    file.node_names.back() = "";
    file.nodes.back().name_bytes = 200;
  });
  tensor("more names", [](ModelFile& file) { file.node_names.emplace_back("more"); });
  // Bytes that are no UTF-8: a stray one, one that is cut, overlong forms, a surrogate, and past the last code point.
  for (const char* name : {"\x80", "a\xFF", "\xC3", "\xE2\x82", "\xC3(", "\xC0\xAF", "\xE0\x80\x80", "\xF0\x80\x80\x80",
                           "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80"})
    tensor("not UTF-8", [name](ModelFile& file) {
      file.node_names[0] = name;
      file.nodes[0].name_bytes = static_cast<uint32_t>(std::strlen(name));
    });
  for (const char* name : {"", "\xC3\xA9", "\xE2\x82\xAC", "\xED\x9F\xBF", "\xF0\x90\x8D\x88", "\xF4\x8F\xBF\xBF"}) {
    ModelFile file = small_network();
    file.node_names[0] = name;
    file.nodes[0].name_bytes = static_cast<uint32_t>(std::strlen(name));
    SI_CHECK(open(file.bytes()) != nullptr);
  }
}

void test_nodes() {
  const auto node = [](const char* part, const std::function<void(ModelFile&)>& change) {
    ModelFile file = small_network();
    change(file);
    refused(file, part);
  };
  node("operator 0", [](ModelFile& file) { file.nodes[0].op = 0; });
  node("operator 4294967295", [](ModelFile& file) { file.nodes[0].op = UINT32_MAX; });
  node("activation", [](ModelFile& file) { file.nodes[0].activation = SI_ACT_HARDSIGMOID + 1; });
  node("activation", [](ModelFile& file) { file.nodes[4].activation = SI_ACT_RELU; });
  node("reserved", [](ModelFile& file) { file.nodes[0].reserved = 1; });
  node("operands, got 9", [](ModelFile& file) { file.nodes[0].operands = 9; });
  node("operands, got 0", [](ModelFile& file) { file.nodes[0].operands = 0; });
  node("end after", [](ModelFile& file) { file.operands.resize(2); });
  node("more operands", [](ModelFile& file) { file.operands.push_back(0); });
  node("operand 0", [](ModelFile& file) { file.operands[0] = 9999; });
  node("operand 0", [](ModelFile& file) { file.operands[0] = si::kNoTensor; });
  // A cycle, a tensor before it is computed, one computed twice, an input or constant written.
  node("not computed before", [](ModelFile& file) { file.operands[0] = file.nodes[0].output; });
  node("not computed before", [](ModelFile& file) { file.operands[0] = file.nodes[5].output; });
  node("nothing else gives", [](ModelFile& file) { file.nodes[1].output = file.nodes[0].output; });
  node("nothing else gives", [](ModelFile& file) { file.nodes[0].output = 0; });
  node("nothing else gives", [](ModelFile& file) { file.nodes[0].output = 2; });
  node("nothing else gives", [](ModelFile& file) { file.nodes[0].output = UINT32_MAX; });
  node("nothing computes", [](ModelFile& file) { file.tensor(si::kComputed, {4}); });
  node("output 0", [](ModelFile& file) { file.outputs[0] = 0; });
  node("output 0", [](ModelFile& file) { file.outputs[0] = UINT32_MAX; });
  node("already", [](ModelFile& file) { file.outputs[1] = file.outputs[0]; });
  // Shapes that do not follow from the operands'.
  node("dimension 3 of the output", [](ModelFile& file) { file.tensors[file.nodes[0].output].dims[3] = 10; });
  node("dimensions", [](ModelFile& file) {
    file.tensors[file.nodes[1].output].ndim = 3, file.tensors[file.nodes[1].output].dims[3] = 0;
  });
  node("elements", [](ModelFile& file) { file.tensors[file.nodes[8].output].dims[1] = 17; });
  node("channels", [](ModelFile& file) { file.tensors[0].dims[1] = 5; });
  node("bias", [](ModelFile& file) { file.operands[2] = 0; });
  node("packed weight", [](ModelFile& file) { file.operands[1] = 2; });
  node("float32", [](ModelFile& file) { file.operands[0] = 1; });
  // Parameters: strides of zero, paddings that wrap, windows outside of the image, axes, and what is not used.
  for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX}) {
    node("conv:", [=](ModelFile& file) { file.nodes[0].params[0] = value; });
    node("conv:", [=](ModelFile& file) { file.nodes[1].params[1] = value; });
    node("conv:", [=](ModelFile& file) { file.nodes[0].params[6] = value; });
    node("kernel", [=](ModelFile& file) { file.nodes[4].params[0] = value; });
    node("kernel", [=](ModelFile& file) { file.nodes[4].params[3] = value; });
  }
  for (const int32_t value : {-1, INT32_MIN, INT32_MAX}) {
    node("conv:", [=](ModelFile& file) { file.nodes[0].params[2] = value; });
    node("conv:", [=](ModelFile& file) { file.nodes[1].params[5] = value; });
    node("kernel", [=](ModelFile& file) { file.nodes[5].params[6] = value; });
    node("axis", [=](ModelFile& file) { file.nodes[6].params[0] = value; });
    node("axis", [=](ModelFile& file) { file.nodes.back().params[0] = value; });
  }
  node("padding mode", [](ModelFile& file) { file.nodes[0].params[8] = 9; });
  node("parameter 9", [](ModelFile& file) { file.nodes[0].params[9] = 1; });
  node("parameter 8", [](ModelFile& file) { file.nodes[5].params[8] = 2; });
  node("parameter 0", [](ModelFile& file) { file.nodes[3].params[0] = 1; });
}

// Of operators of one node, whose parameters are not what they may be.
void test_parameters() {
  using Dims = std::vector<uint32_t>;
  const auto one = [](uint32_t op, const std::vector<Dims>& operands, const Dims& dims,
                      const std::vector<int32_t>& params) {
    ModelFile file;
    std::vector<uint32_t> from;
    for (const Dims& each : operands) from.push_back(file.input(each));
    file.outputs = {file.node(op, from, dims, params)};
    return file;
  };
  constexpr int32_t kOne = 0x3F800000, kNan = 0x7FC00000, kHuge = 0x7F000000, kMinus = INT32_MIN | 0x3F800000;
  SI_CHECK(open(one(20, {{2, 1, 4}, {3, 1}}, {2, 3, 4}, {2}).bytes()) != nullptr);
  for (const int32_t kind : {-1, 7, INT32_MIN, INT32_MAX}) refused(one(20, {{4}, {4}}, {4}, {kind}), "operation");
  refused(one(20, {{4}, {3}}, {4}, {0}), "equal or 1");
  refused(one(20, {{2, 1}, {1, 3}}, {2, 2}, {0}), "dimension 1 of the output");
  refused(one(20, {{2, 1}, {3}}, {3}, {0}), "2 dimensions");
  refused(one(20, {{4}, {4}}, {4}, {0, 1}), "parameter 1");
  SI_CHECK(open(one(21, {{1, 2, 3, 4}}, {1, 2, 6, 8}, {2, 6, 8, kOne, kOne}).bytes()) != nullptr);
  for (const int32_t kind : {-1, 4, INT32_MAX})
    refused(one(21, {{1, 2, 3, 4}}, {1, 2, 6, 8}, {kind, 6, 8, kOne, kOne}), "kind");
  for (const int32_t ratio : {kNan, kHuge, kMinus})
    for (const int at : {3, 4}) {
      std::vector<int32_t> params{0, 6, 8, kOne, kOne};
      params[static_cast<size_t>(at)] = ratio;
      refused(one(21, {{1, 2, 3, 4}}, {1, 2, 6, 8}, params), "ratio");
    }
  refused(one(21, {{1, 2, 3, 4}}, {1, 2, 6, 8}, {0, 6, 9, kOne, kOne}), "dimension 3");
  refused(one(21, {{2, 3, 4}}, {2, 6, 8}, {0, 6, 8, kOne, kOne}), "4 dimensions");
  SI_CHECK(open(one(22, {{2, 3, 4}}, {2, 1, 4}, {1, 2, 1}).bytes()) != nullptr);
  for (const int32_t kind : {-1, 4, INT32_MIN}) refused(one(22, {{2, 3}}, {2}, {kind, 2, 0}), "kind");
  for (const int32_t over : {0, -1, 4, INT32_MAX, INT32_MIN}) refused(one(22, {{2, 3}}, {2}, {0, over, 0}), "bits");
  for (const int32_t keeps : {-1, 2}) refused(one(22, {{2, 3}}, {2}, {0, 2, keeps}), "parameter 2");
  refused(one(22, {{2, 3}}, {3}, {0, 2, 0}), "dimension 0 of the output");
  SI_CHECK(open(one(23, {{4}}, {4}, {4, kMinus, kOne}).bytes()) != nullptr);
  for (const int32_t kind : {-1, 17, INT32_MAX}) refused(one(23, {{4}}, {4}, {kind}), "function");
  refused(one(23, {{4}}, {4}, {4, kNan, kOne}), "NaN");
  refused(one(23, {{4}}, {5}, {0}), "output");
}

// What sealing computes is compared too: an arena that is told smaller or larger than it is.
void test_arena() {
  for (const int64_t more : {int64_t{-64}, int64_t{64}, int64_t{1} << 40}) {
    const AlignedBytes file = small_network().bytes();
    auto* const head = reinterpret_cast<si::FileHeader*>(file.data());
    head->arena_bytes += static_cast<uint64_t>(more);
    si::FileView view{};
    SI_CHECK_EQ(si::read_file(file.data(), file.size(), false, &view), SI_OK);
    head->checksum = si::file_checksum(view);
    si_status status = SI_OK;
    open(file, &status);
    SI_CHECK_EQ(status, SI_ERR_CORRUPT);
    SI_CHECK(says("arena"));
  }
}

// Golden inputs and outputs: bounds that are none, sizes of other tensors, what fills up, and sizes that wrap.
void test_golden() {
  ModelFile good = small_network();
  good.add_golden(1.0f);
  SI_CHECK(open(good.bytes()) != nullptr);
  const auto golden = [&](const char* part, const std::function<void(ModelFile&)>& change) {
    ModelFile file = good;
    change(file);
    refused(file, part);
  };
  for (const float bound : {-1.0f, HUGE_VALF, NAN})
    golden("bound of golden output 1", [=](ModelFile& file) { std::memcpy(&file.golden[4], &bound, sizeof bound); });
  golden("after the golden bounds", [](ModelFile& file) { file.golden[8] = 1; });
  golden("after golden 't0'", [](ModelFile& file) { file.golden[64 + 4 * 324] = 1; });
  golden("golden bytes of its inputs", [](ModelFile& file) { file.golden.resize(file.golden.size() - 64); });
  golden("golden bytes of its inputs", [](ModelFile& file) { file.golden.resize(file.golden.size() + 64); });
  golden("golden bytes of its inputs", [](ModelFile& file) { file.golden.resize(64); });
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{65}, UINT64_MAX, UINT64_MAX - 63, uint64_t{1} << 63})
    refused(good, "golden bytes", header<uint64_t>(&si::FileHeader::golden_bytes, bytes));
  refused(good, "expected", header<uint64_t>(&si::FileHeader::golden_bytes, 0));
  const AlignedBytes whole = good.bytes();
  AlignedBytes flipped(whole.data(), whole.size());
  for (size_t at = whole.size() - good.golden.size(); at < whole.size(); ++at) {
    si_status status = SI_OK;
    flipped.data()[at] ^= 1;
    open(flipped, &status);
    flipped.data()[at] ^= 1;
    SI_CHECK_EQ(status, SI_ERR_CORRUPT);
  }
}

// As many nodes as a file may have: opened in time that a test can wait for, however they live.
void test_limits() {
  ModelFile file;
  const uint32_t x = file.input({2, 8});
  std::vector<uint32_t> all{x};
  for (uint32_t i = 0; i < 4000; ++i) all.push_back(file.node(10, {all[i / 2]}, {2, 8}, {1}));
  file.outputs = {all.back()};
  SI_CHECK(open(file.bytes()) != nullptr);
}

}  // namespace

int main() {
  test_damage();
  test_header();
  test_tensors();
  test_nodes();
  test_parameters();
  test_arena();
  test_golden();
  test_limits();
  return finish("attacks_test");
}
