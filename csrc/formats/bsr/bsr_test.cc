#include "formats/bsr/bsr.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "formats/format_test.h"

namespace {

using si::testing::Blob;
using si::testing::expect_forgery_refused;
using si::testing::make_shape;
using si::testing::need;
using si::testing::Random;
using si::testing::status_of;

struct Bsr {
  int32_t block;
  si_value_type type;

  Bsr under(const si::BlobHeader& header) const {
    return {static_cast<int32_t>(header.params[0]), static_cast<si_value_type>(header.value_type)};
  }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    options.block = block;
    options.value_type = type;
    Blob blob;
    need(si::bsr_pack(weight, shape, options, &blob));
    return blob;
  }
  void validate(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::BsrView view{};
    need(si::bsr_validate(header, blob, bytes, &view));
  }
  std::vector<float> unpack(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::BsrView view{};
    need(si::bsr_validate(header, blob, bytes, &view));
    std::vector<float> weight(static_cast<size_t>(view.shape.M() * view.shape.K()));
    si::bsr_unpack(view, weight.data());
    return weight;
  }
};

constexpr Bsr kSixteen{16, SI_F32};

si::BsrView view_of(const Blob& blob) { return si::testing::open_view(si::bsr_validate, blob.data.get(), blob.bytes); }

// 17 x 40 in blocks of 16: block row 0 holds block columns 0 and 2, block row 1 block column 1; edges are ragged.
Blob small_blob(si_value_type type = SI_F32) {
  std::vector<float> weight(17 * 40);
  weight[0 * 40 + 1] = 1;
  weight[15 * 40 + 39] = 2;
  weight[16 * 40 + 16] = 3;
  return si::testing::pack(Bsr{16, type}, weight, make_shape({17, 40}, 1));
}

void test_round_trips(Random& random) {
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16})
    for (int32_t block : {16, 32, 64, 128}) si::testing::check_round_trips(Bsr{block, type}, random);
}

void test_content() {
  const Blob blob = small_blob();
  const si::BsrView view = view_of(blob);
  SI_CHECK(std::vector<uint32_t>(view.row, view.row + 3) == std::vector<uint32_t>{0, 2, 3});
  SI_CHECK(std::vector<uint32_t>(view.column, view.column + 3) == std::vector<uint32_t>{0, 2, 1});
  const auto* values = static_cast<const float*>(view.values);
  SI_CHECK_EQ(values[1], 1.0f);
  SI_CHECK_EQ(values[256 + 15 * 16 + 7], 2.0f);
  SI_CHECK_EQ(values[512], 3.0f);
  SI_CHECK_EQ(view.blocks, 3);
  si_weight_info info{};
  std::fill(info.sections, info.sections + 4, 9u);
  si::bsr_describe(view, blob.data.get(), &info);
  const uint64_t* offsets = info.sections;
  SI_CHECK_EQ(offsets[0], 128u);
  SI_CHECK_EQ(offsets[1], 256u);
  SI_CHECK_EQ(offsets[2], 384u);
  SI_CHECK_EQ(offsets[3], 0u);
  SI_CHECK_EQ(blob.bytes, 384u + 3 * 1024 + 64);
}

// A block of a convolution is a run of channels of one tap, of one group.
void test_convolution() {
  const si::WeightShape shape = make_shape({4, 20, 2, 3}, 2);
  std::vector<float> weight(4 * 120);
  weight[3 * 120 + (17 * 2 + 1) * 3 + 2] = 5;  // row 1 of group 1, channel 17, the last tap
  const Blob blob = si::testing::pack(kSixteen, weight, shape);
  const si::BsrView view = view_of(blob);
  SI_CHECK_EQ(view.grid.row_blocks, 2);
  SI_CHECK_EQ(view.grid.column_blocks(), 12);
  SI_CHECK_EQ(view.blocks, 1);
  SI_CHECK_EQ(view.row[1], 0u);
  SI_CHECK_EQ(view.column[0], 11u);  // tap 5, channels 16 to 19
  SI_CHECK_EQ(static_cast<const float*>(view.values)[1 * 16 + 1], 5.0f);
}

void test_special_values() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16})
    si::testing::check_round_trip(Bsr{16, type}, {-0.0f, inf, nan, -inf, 0.0f, -0.0f}, make_shape({2, 3}, 1));
  const Blob blob = si::testing::pack(kSixteen, std::vector<float>(64, -0.0f), make_shape({2, 32}, 1));
  SI_CHECK_EQ(view_of(blob).blocks, 0);
}

// Rounding happens before a block is looked at.
void test_rounding() {
  const si::WeightShape shape = make_shape({1, 17}, 1);
  std::vector<float> weight(17, 1e-10f);
  weight[16] = 1.0004f;
  const Blob blob = si::testing::pack(Bsr{16, SI_F16}, weight, shape);
  SI_CHECK_EQ(view_of(blob).blocks, 1);
  SI_CHECK_EQ(view_of(blob).column[0], 1u);
  std::string message;
  weight[3] = 65520;
  SI_CHECK_EQ(status_of([&] { si::testing::pack(Bsr{16, SI_F16}, weight, shape); }, &message), SI_ERR_ARGUMENT);
  SI_CHECK(message.find("range of float16, got 65520.000000 in row 0, column 3") != std::string::npos);
}

void test_refused_options() {
  std::string message;
  for (int32_t block : {0, -16, 1, 8, 17, 48, 256})
    SI_CHECK_EQ(status_of([&] { si::testing::pack(Bsr{block, SI_F32}, {1}, make_shape({1, 1}, 1)); }, &message),
                SI_ERR_ARGUMENT);
  SI_CHECK_EQ(message, "expected blocks of 16, 32, 64 or 128 for the bsr format, got 256; try block = 64");
}

void test_forgeries() {
  const Blob blob = small_blob();
  const auto row = [](uint8_t* bytes) { return reinterpret_cast<uint32_t*>(bytes + 128); };
  const auto column = [](uint8_t* bytes) { return reinterpret_cast<uint32_t*>(bytes + 256); };
  const auto value = [](uint8_t* bytes) { return reinterpret_cast<float*>(bytes + 384); };
  const auto refuse = [&](const char* fragment, auto change) {
    expect_forgery_refused(kSixteen, blob, fragment, change);
  };

  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[0] = 1; });
  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[2] = 2; });
  refuse("row starts decrease", [&](auto&, uint8_t* b) { row(b)[1] = 4; });
  refuse("row starts decrease", [&](auto&, uint8_t* b) { row(b)[1] = 0xffffffff; });
  refuse("do not increase", [&](auto&, uint8_t* b) { row(b)[1] = 3; });
  refuse("out of range", [&](auto&, uint8_t* b) { column(b)[1] = 3; });
  refuse("out of range", [&](auto&, uint8_t* b) { column(b)[2] = 0xffffffff; });
  refuse("do not increase", [&](auto&, uint8_t* b) { column(b)[1] = 0; });
  refuse("padding", [&](auto&, uint8_t* b) { value(b)[256 + 8] = 1; });   // past column 39
  refuse("padding", [&](auto&, uint8_t* b) { value(b)[512 + 16] = 1; });  // past row 16
  refuse("-0", [&](auto&, uint8_t* b) { value(b)[0] = -0.0f; });
  refuse("-0", [&](auto&, uint8_t* b) { value(b)[512 + 16] = -0.0f; });
  refuse("block is zero", [&](auto&, uint8_t* b) { value(b)[1] = 0; });
  refuse("number of non-zero", [&](auto&, uint8_t* b) { value(b)[0] = 1; });
  refuse("number of non-zero", [&](si::BlobHeader& h, uint8_t*) { h.nnz = UINT64_MAX; });
  refuse("past the end", [&](auto&, uint8_t* b) { row(b)[3] = 1; });
  refuse("past the end", [&](auto&, uint8_t* b) { column(b)[3] = 1; });
  refuse("past the end", [&](auto&, uint8_t* b) { value(b)[768] = 1; });
  for (uint64_t blocks : {uint64_t{0}, uint64_t{2}, uint64_t{4}, uint64_t{0x7fffffff}})
    refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = blocks; });
  for (uint64_t blocks : {uint64_t{0x80000000}, UINT64_MAX})
    refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = blocks; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[1] = 1; });
  for (uint32_t edge : {0u, 1u, 15u, 17u, 256u, 0x80000000u, 0xffffffffu})
    refuse("block size", [&](si::BlobHeader& h, uint8_t*) { h.params[0] = edge; });
  for (uint32_t edge : {32u, 64u, 128u})
    refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.params[0] = edge; });
  refuse("parameter", [&](si::BlobHeader& h, uint8_t*) { h.params[1] = 1; });
  refuse("value type", [&](si::BlobHeader& h, uint8_t*) { h.value_type = 3; });
  refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_F16; });
  refuse("padding", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 39; });
  refuse("out of range", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 32; });
  refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 0x7fffffff, h.shape[1] = 2; });
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const si::WeightShape linear = make_shape({20, 37}, 1);
  const std::vector<float> weight = si::testing::random_weight(linear, 1, random);
  golden.check("linear_20x37_block16", kSixteen, weight, linear);
  golden.check("linear_20x37_block16_float16", Bsr{16, SI_F16}, weight, linear);
  golden.check("linear_20x37_block32_bfloat16", Bsr{32, SI_BF16}, weight, linear);
  const si::WeightShape conv = make_shape({6, 3, 2, 2}, 2);
  golden.check("conv_6x3x2x2_groups2_block16", kSixteen, si::testing::random_weight(conv, 10, random), conv);
  golden.check("zero_3x4_block64", Bsr{64, SI_F32}, std::vector<float>(12), make_shape({3, 4}, 1));
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("bsr", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("bsr_test --write-golden");

  Random random(2);
  test_round_trips(random);
  test_content();
  test_convolution();
  test_special_values();
  test_rounding();
  test_refused_options();
  test_forgeries();
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16}) {
    const Blob blob = si::testing::pack(Bsr{16, type}, {0, 1, 2, 0}, make_shape({2, 2}, 1));
    si::testing::check_attacks(Bsr{16, type}, blob);
  }
  return si::testing::finish("bsr_test");
}
