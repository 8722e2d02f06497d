#include "formats/nm/nm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <utility>

#include "formats/format_test.h"

namespace {

using si::testing::Blob;
using si::testing::expect_forgery_refused;
using si::testing::make_shape;
using si::testing::need;
using si::testing::Random;
using si::testing::status_of;

struct Nm {
  int32_t n, m;
  si_value_type type;
  bool old = false;  // a convolution packed as before its channels were grouped at each kernel position

  Nm under(const si::BlobHeader& header) const {
    return {static_cast<int32_t>(header.params[0]), static_cast<int32_t>(header.params[1]),
            static_cast<si_value_type>(header.value_type), header.params[2] == 0};
  }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    options.nm_n = n;
    options.nm_m = m;
    options.value_type = type;
    // The old form of a convolution is that of its reshape to [M, K], under the convolution's header.
    Blob blob;
    need(si::nm_pack(weight, old ? make_shape({shape.M(), shape.K()}, 1) : shape, options, &blob));
    if (!old) return blob;
    const si::BlobHeader conv = si::make_header(SI_FORMAT_NM, shape);
    auto& header = *blob.at<si::BlobHeader>(0);
    header.ndim = conv.ndim;
    header.groups = conv.groups;
    std::copy(std::begin(conv.shape), std::end(conv.shape), header.shape);
    si::seal_blob(blob.data.get());
    return blob;
  }
  void validate(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::NmView view{};
    need(si::nm_validate(header, blob, bytes, &view));
  }
  std::vector<float> unpack(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::NmView view{};
    need(si::nm_validate(header, blob, bytes, &view));
    std::vector<float> weight(static_cast<size_t>(view.shape.M() * view.shape.K()));
    si::nm_unpack(view, weight.data());
    return weight;
  }
};

si::NmView view_of(const Blob& blob) { return si::testing::open_view(si::nm_validate, blob.data.get(), blob.bytes); }

// A random weight of the pattern: each group keeps up to n weights, chosen by `percent`.
std::vector<float> pattern_weight(const Nm& format, const si::WeightShape& shape, int64_t percent, Random& random) {
  std::vector<float> weight = si::testing::random_weight(shape, percent, random);
  const int64_t K = shape.K(), taps = format.old ? 1 : K / shape.dims[1], channels = K / taps;
  for (int64_t row = 0; row < shape.M(); ++row)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t c = 0, kept = 0; c < channels; ++c) {
        if (c % format.m == 0) kept = 0;
        float& w = weight[static_cast<size_t>(row * K + c * taps + tap)];
        if (w != 0.0f && ++kept > format.n) w = 0.0f;
      }
  return weight;
}

void test_round_trips(Random& random) {
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16})
    for (const auto& [n, m] :
         std::vector<std::pair<int, int>>{{2, 4}, {1, 4}, {4, 8}, {1, 2}, {2, 2}, {5, 7}, {3, 32}, {32, 32}})
      for (const si::WeightShape& shape : si::testing::edge_shapes())
        for (int64_t percent : {0, 40, 100})
          for (bool old : {false, true}) {
            const Nm format{n, m, type, old};
            si::testing::check_round_trip(format, pattern_weight(format, shape, percent, random), shape);
          }
}

// 2 x 6 in 2:4: row 0 is (a pair, a filler below), row 1 (a filler above, empty).
Blob small_blob(si_value_type type = SI_F32) {
  return si::testing::pack(Nm{2, 4, type}, {0, 1, 0, 2, 0, 3, 4, 0, 0, 0, 0, 0}, make_shape({2, 6}, 1));
}

void test_content() {
  const Blob blob = small_blob();
  const si::NmView view = view_of(blob);
  SI_CHECK_EQ(view.groups_per_row, 2);
  SI_CHECK_EQ(view.last_planes, 2);
  const auto* values = static_cast<const float*>(view.values);
  SI_CHECK(std::vector<float>(values, values + 8) == std::vector<float>{1, 0, 4, 0, 2, 3, 0, 0});
  SI_CHECK(std::vector<uint8_t>(view.positions, view.positions + 8) == std::vector<uint8_t>{1, 0, 0, 0, 3, 1, 1, 1});
  si_weight_info info{};
  std::fill(info.sections, info.sections + 4, 9u);
  si::nm_describe(view, blob.data.get(), &info);
  const uint64_t* offsets = info.sections;
  SI_CHECK_EQ(offsets[0], 128u);  // 32 bytes and 64 zero ones, rounded up
  SI_CHECK_EQ(offsets[1], 256u);
  SI_CHECK_EQ(offsets[2], 0u);
  SI_CHECK_EQ(offsets[3], 0u);
  SI_CHECK_EQ(blob.bytes, 384u);
}

// 1 x 5 channels x 2 taps in 2:4: tap 0 keeps channels 1 and 3, tap 1 channels 0 and 4.
void test_content_of_convolutions() {
  const std::vector<float> weight = {0, 5, 1, 0, 0, 0, 2, 0, 0, 6};
  const Blob blob = si::testing::pack(Nm{2, 4, SI_F32}, weight, make_shape({1, 5, 2}, 1));
  const si::NmView view = view_of(blob);
  SI_CHECK_EQ(view.columns.taps, 2);
  SI_CHECK_EQ(view.columns.channels, 5);
  SI_CHECK_EQ(view.groups_per_tap, 2);
  SI_CHECK_EQ(view.groups_per_row, 4);
  SI_CHECK_EQ(view.last_planes, 1);
  const auto* values = static_cast<const float*>(view.values);
  SI_CHECK(std::vector<float>(values, values + 8) == std::vector<float>{1, 0, 5, 6, 2, 0, 0, 0});
  SI_CHECK(std::vector<uint8_t>(view.positions, view.positions + 8) == std::vector<uint8_t>{1, 0, 0, 0, 3, 1, 1, 1});
  std::vector<int64_t> columns;
  si::nm_visit(view, 0, [&](int64_t k, float) { columns.push_back(k); });
  SI_CHECK(columns == std::vector<int64_t>{2, 6, 8, 1, 3, 9});
  SI_CHECK_EQ(reinterpret_cast<const si::BlobHeader*>(blob.data.get())->params[2], 1u);
}

// One tap has no order to name: linear weights and 1x1 convolutions keep the bytes that they had.
void test_one_tap_is_packed_as_ever(Random& random) {
  for (const si::WeightShape& shape :
       {make_shape({5, 38}, 1), make_shape({10, 4, 1, 1}, 2), make_shape({6, 9, 1}, 1)}) {
    const Nm now{2, 4, SI_F32}, before{2, 4, SI_F32, true};
    const std::vector<float> weight = pattern_weight(now, shape, 60, random);
    const Blob blob = si::testing::pack(now, weight, shape), old = si::testing::pack(before, weight, shape);
    SI_CHECK(blob.bytes == old.bytes && std::memcmp(blob.data.get(), old.data.get(), blob.bytes) == 0);
  }
}

// A position past K stands only in a plane that the last group does not have.
void test_ragged(Random& random) {
  for (int64_t K = 1; K <= 20; ++K)
    for (int32_t n = 1; n <= 6; ++n) {
      const Nm format{n, 6, SI_F32};
      const si::WeightShape shape = make_shape({3, K}, 1);
      const std::vector<float> weight = pattern_weight(format, shape, 40, random);
      const Blob blob = si::testing::pack(format, weight, shape);
      const si::NmView view = view_of(blob);
      const int64_t left = K - (view.groups_per_row - 1) * 6;
      SI_CHECK_EQ(view.last_planes, std::min<int64_t>(n, left));
      for (int64_t row = 0; row < 3; ++row) {
        int64_t entries = 0, previous = -1;
        si::nm_visit(view, row, [&](int64_t k, float value) {
          SI_CHECK(k > previous && k < K);
          SI_CHECK_EQ(value, weight[static_cast<size_t>(row * K + k)]);
          previous = k;
          ++entries;
        });
        SI_CHECK_EQ(entries, (view.groups_per_row - 1) * n + view.last_planes);
      }
    }
}

void test_special_values() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16})
    si::testing::check_round_trip(Nm{2, 4, type}, {-0.0f, inf, nan, -0.0f, 0.0f, -inf, -nan, 0.0f},
                                  make_shape({2, 4}, 1));
}

// Rounding happens before the pattern is looked at.
void test_rounding() {
  const si::WeightShape shape = make_shape({1, 4}, 1);
  const std::vector<float> tiny = {1e-10f, -1e-10f, 1.0004f, 2};
  const Blob half = si::testing::pack(Nm{2, 4, SI_F16}, tiny, shape);
  const std::vector<float> got = si::testing::unpack(Nm{2, 4, SI_F16}, half.data.get(), half.bytes);
  SI_CHECK(si::testing::same_weight(got, {0, 0, 1, 2}));
  SI_CHECK_EQ(reinterpret_cast<const si::BlobHeader*>(half.data.get())->nnz, 2u);
  SI_CHECK_EQ(status_of([&] { si::testing::pack(Nm{2, 4, SI_BF16}, tiny, shape); }), SI_ERR_ARGUMENT);

  std::string message;
  SI_CHECK_EQ(status_of([&] { si::testing::pack(Nm{2, 4, SI_F16}, {0, 0, 65520, 0}, shape); }, &message),
              SI_ERR_ARGUMENT);
  SI_CHECK(message.find("range of float16, got 65520.000000 in row 0, column 2") != std::string::npos);
  si::testing::check_round_trip(Nm{2, 4, SI_F16}, {0, 0, 65504, 0}, shape);
  const float largest = std::numeric_limits<float>::max();
  SI_CHECK_EQ(status_of([&] { si::testing::pack(Nm{2, 4, SI_BF16}, {0, 0, largest, 0}, shape); }), SI_ERR_ARGUMENT);
  si::testing::check_round_trip(Nm{2, 4, SI_F32}, {0, 0, largest, 0}, shape);
}

void test_refused_weights() {
  std::string message;
  const auto pack = [&](int32_t n, int32_t m, const std::vector<float>& weight, const si::WeightShape& shape) {
    return status_of([&] { si::testing::pack(Nm{n, m, SI_F32}, weight, shape); }, &message);
  };
  std::vector<float> weight(3 * 14);
  for (size_t i : {8u, 9u, 11u, 18u, 19u, 20u, 21u}) weight[i] = 1;
  const si::WeightShape shape = make_shape({3, 14}, 1);
  SI_CHECK_EQ(pack(2, 4, weight, shape), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(
      message,
      "expected at most 2 non-zeros in every 4 consecutive columns, got 2 groups with more; the first is row 0, "
      "columns 8-11 with 3; try the panel format");
  SI_CHECK_EQ(pack(3, 4, weight, shape), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(message,
              "expected at most 3 non-zeros in every 4 consecutive columns, got 1 group with more; the first is row 1, "
              "columns 4-7 with 4; try the panel format");
  SI_CHECK_EQ(pack(4, 4, weight, shape), SI_OK);
  // The columns of a ragged last group end with the row.
  SI_CHECK_EQ(pack(1, 4, {0, 0, 0, 0, 1, 1}, make_shape({1, 6}, 1)), SI_ERR_ARGUMENT);
  SI_CHECK(message.find("at most 1 non-zero in") != std::string::npos);
  SI_CHECK(message.find("columns 4-5 with 2") != std::string::npos);
  // Of a convolution the groups run along the input channels of one kernel position.
  std::vector<float> taps(2 * 5 * 3 * 3);
  for (size_t channel : {0u, 1u, 3u}) taps[45 + channel * 9 + 5] = 1;
  SI_CHECK_EQ(pack(2, 4, taps, make_shape({2, 5, 3, 3}, 1)), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(message,
              "expected at most 2 non-zeros in every 4 consecutive input channels, got 1 group with more; the first is "
              "row 1, kernel position (1, 2), input channels 0-3 with 3; try the panel format");
  SI_CHECK_EQ(pack(1, 4, {1, 1, 1, 1, 1, 1, 1, 1}, make_shape({1, 1, 8}, 1)), SI_OK);
  for (const auto& [n, m] :
       std::vector<std::pair<int, int>>{{0, 4}, {-1, 4}, {5, 4}, {1, 1}, {1, 33}, {1, 0}, {2, -4}}) {
    SI_CHECK_EQ(pack(n, m, weight, shape), SI_ERR_ARGUMENT);
    SI_CHECK(message.find("expected 1 <= n <= m") != std::string::npos);
  }
}

void test_forgeries() {
  const Blob blob = small_blob(), half = small_blob(SI_F16);
  const Nm format{2, 4, SI_F32};
  const auto value = [](uint8_t* bytes) { return reinterpret_cast<float*>(bytes + 128); };
  const auto position = [](uint8_t* bytes) { return bytes + 256; };
  const auto refuse = [&](const char* fragment, auto change) {
    expect_forgery_refused(format, blob, fragment, change);
  };

  for (int p : {4, 5, 31, 32, 64, 255})
    for (int at = 0; at < 8; ++at)
      refuse("out of range", [&](auto&, uint8_t* b) { position(b)[at] = static_cast<uint8_t>(p); });
  refuse("do not increase", [&](auto&, uint8_t* b) { position(b)[0] = 3; });
  refuse("do not increase", [&](auto&, uint8_t* b) { position(b)[4] = 1; });
  refuse("do not increase", [&](auto&, uint8_t* b) { position(b)[4] = 0; });
  refuse("past the last column", [&](auto&, uint8_t* b) { position(b)[5] = 2; });
  refuse("filler", [&](auto&, uint8_t* b) { position(b)[6] = 2; });
  refuse("filler", [&](auto&, uint8_t* b) { position(b)[7] = 3; });  // past K, with value 0
  refuse("-0", [&](auto&, uint8_t* b) { value(b)[7] = -0.0f; });
  refuse("number of non-zero", [&](auto&, uint8_t* b) { value(b)[7] = 1.0f; });
  refuse("past the end", [&](auto&, uint8_t* b) { value(b)[8] = 1.0f; });
  refuse("past the end", [&](auto&, uint8_t* b) { position(b)[8] = 1; });
  refuse("number of non-zero", [&](si::BlobHeader& h, uint8_t*) { h.nnz = UINT64_MAX; });
  refuse("count", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = 2; });
  refuse("count", [&](si::BlobHeader& h, uint8_t*) { h.counts[1] = 2; });
  for (uint32_t n : {0u, 5u, 0x80000000u, 0xffffffffu})
    refuse("pattern", [&](si::BlobHeader& h, uint8_t*) { h.params[0] = n; });
  for (uint32_t m : {0u, 1u, 33u, 0x80000000u, 0xffffffffu})
    refuse("pattern", [&](si::BlobHeader& h, uint8_t*) { h.params[1] = m; });
  refuse("order", [&](si::BlobHeader& h, uint8_t*) { h.params[2] = 1; });
  refuse("order", [&](si::BlobHeader& h, uint8_t*) { h.params[2] = 0xffffffff; });
  refuse("parameter", [&](si::BlobHeader& h, uint8_t*) { h.params[3] = 1; });
  refuse("value type", [&](si::BlobHeader& h, uint8_t*) { h.value_type = 3; });
  refuse("value type", [&](si::BlobHeader& h, uint8_t*) { h.value_type = 0xffffffff; });
  refuse("past the end", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_F16; });
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 0x7fffffff, h.shape[1] = 2; });
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 0x7fffffff, h.shape[0] = 2; });
  refuse("past the last column", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 5; });
  expect_forgery_refused(Nm{2, 4, SI_F16}, half, "-0",
                         [](auto&, uint8_t* b) { reinterpret_cast<uint16_t*>(b + 128)[7] = 0x8000; });
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const si::WeightShape linear = make_shape({5, 38}, 1);
  const std::vector<float> weight = pattern_weight({2, 4, SI_F32}, linear, 50, random);
  golden.check("linear_5x38_2of4", Nm{2, 4, SI_F32}, weight, linear);
  golden.check("linear_5x38_2of4_float16", Nm{2, 4, SI_F16}, weight, linear);
  golden.check("linear_5x38_2of4_bfloat16", Nm{2, 4, SI_BF16}, weight, linear);
  const si::WeightShape conv = make_shape({6, 3, 3, 3}, 2);  // K = 27: the last group has 3 columns, fewer than n
  const Nm old{4, 8, SI_F32, true};
  golden.check("conv_6x3x3x3_groups2_4of8", old, pattern_weight(old, conv, 40, random), conv);
  const si::WeightShape taps = make_shape({4, 6, 3, 2}, 2);  // each kernel position has groups of 4 and 2 channels
  const Nm format{1, 4, SI_F32};
  golden.check("conv_4x6x3x2_groups2_1of4_channels_last", format, pattern_weight(format, taps, 60, random), taps);
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("nm", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("nm_test --write-golden");

  Random random(2);
  test_round_trips(random);
  test_content();
  test_content_of_convolutions();
  test_one_tap_is_packed_as_ever(random);
  test_ragged(random);
  test_special_values();
  test_rounding();
  test_refused_weights();
  test_forgeries();
  for (si_value_type type : {SI_F32, SI_F16, SI_BF16}) si::testing::check_attacks(Nm{2, 4, type}, small_blob(type));
  // The last group has one column and three planes.
  const Nm format{3, 5, SI_F32};
  const si::WeightShape shape = make_shape({2, 6}, 1);
  si::testing::check_attacks(format, si::testing::pack(format, pattern_weight(format, shape, 60, random), shape));
  const si::WeightShape conv = make_shape({2, 5, 1, 2}, 1);
  for (bool old : {false, true}) {
    const Nm of_conv{2, 4, SI_F32, old};
    si::testing::check_attacks(of_conv, si::testing::pack(of_conv, pattern_weight(of_conv, conv, 60, random), conv));
  }
  return si::testing::finish("nm_test");
}
