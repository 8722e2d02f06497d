// Panels of bfloat16 pairs: layout, rounding, validation, golden buffers.
#include "formats/panel/pairs.h"

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

si::PanelView view_of(const void* blob, size_t bytes) {
  return si::testing::open_view(si::panel_validate, blob, bytes);
}

struct Pairs {
  Pairs under(const si::BlobHeader&) const { return *this; }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    options.value_type = SI_BF16;
    options.g = 2;
    Blob blob;
    need(si::panel_pack(weight, shape, options, &blob));
    return blob;
  }
  void validate(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::PanelView view{};
    need(si::panel_validate(header, blob, bytes, &view));
  }
  std::vector<float> unpack(const si::BlobHeader&, const void* blob, size_t bytes) const {
    const si::PanelView view = view_of(blob, bytes);
    std::vector<float> weight(static_cast<size_t>(view.shape.M() * view.shape.K()));
    si::panel_unpack(view, weight.data());
    return weight;
  }
};

// Reads a weight by LAYOUT.md's formulas alone.
std::vector<float> read_layout(const Blob& blob, const si::WeightShape& shape) {
  const auto& header = *reinterpret_cast<const si::BlobHeader*>(blob.data.get());
  const int64_t M = shape.M(), K = shape.K(), rows_per_group = M / shape.groups;
  const int64_t panels = (rows_per_group + 3) / 4 * shape.groups;
  const auto after = [](size_t at, size_t bytes) { return (at + bytes + 64 + 63) / 64 * 64; };
  const size_t order_at = after(128, static_cast<size_t>(panels) * 40);
  const size_t index_at = header.params[4] == 0 ? order_at : after(order_at, static_cast<size_t>(M) * 4);
  const size_t value_at = after(index_at, header.counts[0] * 2);
  SI_CHECK_EQ(header.value_type, 2u);
  SI_CHECK_EQ(header.params[1], 2u);
  const uint8_t* bytes = blob.data.get();
  const auto* entry = reinterpret_cast<const si::PanelEntry*>(bytes + 128);
  const auto* order = header.params[4] == 0 ? nullptr : reinterpret_cast<const uint32_t*>(bytes + order_at);
  std::vector<float> dense(static_cast<size_t>(M * K));
  for (int64_t group = 0; group < shape.groups; ++group)
    for (int64_t row0 = 0; row0 < rows_per_group; row0 += 4, ++entry) {
      SI_CHECK_EQ(entry->rows, std::min<int64_t>(4, rows_per_group - row0));
      const auto* index = reinterpret_cast<const uint16_t*>(bytes + index_at) + entry->column_offset;
      const auto* pair = reinterpret_cast<const uint16_t*>(bytes + value_at) + entry->value_offset * size_t{2};
      for (int pattern = 1; pattern < 16; ++pattern) {
        const int count = entry->count[pattern - 1];
        const int p = (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3);
        for (int u = 0; u < count; ++u)
          for (int row = 0, q = 0; row < 4; ++row) {
            if ((pattern >> row & 1) == 0) continue;
            const int b = u / 16 * 16, t = std::min(16, count - b), at = (b * p + q++ * t + (u - b)) * 2;
            const auto position = static_cast<size_t>(group * rows_per_group + row0 + row);
            const size_t output = order == nullptr ? position : order[position];
            for (int j = 0; j < 2; ++j)
              if (pair[at + j] != 0)
                dense[output * static_cast<size_t>(K) + index[2 * u + j]] = si::bfloat16_to_float(pair[at + j]);
          }
        index += 2 * count;
        pair += 2 * count * p;
      }
    }
  return dense;
}

void check_weight(const std::vector<float>& weight, const si::WeightShape& shape) {
  si::testing::check_round_trip(Pairs{}, weight, shape);
  SI_CHECK(si::testing::same_weight(read_layout(si::testing::pack(Pairs{}, weight, shape), shape), weight));
}

void test_layout(Random& random) {
  for (const si::WeightShape& shape : si::testing::edge_shapes())
    for (int64_t percent : {5, 50, 100}) check_weight(si::testing::random_weight(shape, percent, random), shape);
  // Filters that were pruned whole stand last.
  const si::WeightShape shape = make_shape({40, 5, 7}, 1);
  std::vector<float> weight(static_cast<size_t>(40 * 35), 1.0f);
  for (size_t i = 0; i < weight.size(); ++i)
    if (i / 35 % 3 != 0) weight[i] = 0.0f;
  const Blob blob = si::testing::pack(Pairs{}, weight, shape);
  SI_CHECK(view_of(blob.data.get(), blob.bytes).order != nullptr);
  check_weight(weight, shape);
}

void test_rounding() {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  // Ties go to even; what is below 2^-126, and -0, is zero and not stored.
  const std::vector<float> weight{1.0f + 0x1p-8f,
                                  1.0f + 3 * 0x1p-8f,
                                  -1.0f - 0x1.8p-8f,
                                  0x1p-126f,
                                  -0x1p-126f,
                                  0x1.fffffcp-127f,
                                  0x1p-140f,
                                  -0.0f,
                                  kInf,
                                  -kInf};
  const std::vector<float> rounded{1.0f, 1.0f + 0x1p-6f, -1.0f - 0x1p-7f, 0x1p-126f, -0x1p-126f, 0.0f, 0.0f, 0.0f,
                                   kInf, -kInf};
  const si::WeightShape shape = make_shape({1, 10}, 1);
  const Blob blob = si::testing::pack(Pairs{}, weight, shape);
  SI_CHECK(si::testing::same_weight(si::testing::unpack(Pairs{}, blob.data.get(), blob.bytes), rounded));
  SI_CHECK_EQ(reinterpret_cast<const si::BlobHeader*>(blob.data.get())->nnz, 7u);
}

void test_refusals() {
  std::string message;
  const auto refused = [&](const char* text, int32_t g, si_value_type type, int32_t kblock, bool scaled, float first) {
    const std::vector<float> weight{first, 1, 2, 0, 0, 0}, scales(2, 1.0f);
    si_pack_options options{};
    options.value_type = type;
    options.g = g;
    options.kblock = kblock;
    options.scales = scaled ? scales.data() : nullptr;
    const auto pack = [&] {
      Blob blob;
      need(si::panel_pack(weight.data(), make_shape({2, 3}, 1), options, &blob));
    };
    SI_CHECK_EQ(status_of(pack, &message), SI_ERR_ARGUMENT);
    SI_CHECK(message.find(text) != std::string::npos);
  };
  refused("no K blocks", 2, SI_BF16, 16, false, 1.0f);
  refused("scales for int8", 2, SI_BF16, 0, true, 1.0f);
  refused("range of bfloat16", 2, SI_BF16, 0, false, 3.4e38f);
  for (int32_t g : {1, 3, 4}) refused("g of 2 for pairs of bfloat16", g, SI_BF16, 0, false, 1.0f);
  refused("g of 2 for pairs of bfloat16", 2, SI_F32, 0, false, 1.0f);
}

// 4 x 6: pattern 1 at k = 0, 2, 5 (two units, the last of which repeats its index), pattern 6 at k = 1.
Blob small_blob() {
  std::vector<float> weight(24);
  weight[0] = 1, weight[2] = 2, weight[5] = 3, weight[6 + 1] = 4, weight[12 + 1] = -5;
  return si::testing::pack(Pairs{}, weight, make_shape({4, 6}, 1));
}

void test_forgeries() {
  const Blob blob = small_blob();
  const si::PanelView view = view_of(blob.data.get(), blob.bytes);
  const auto at = [&](const void* member) { return static_cast<const uint8_t*>(member) - blob.data.get(); };
  const auto index_at = at(view.index), value_at = at(view.value);
  const auto index = [&](uint8_t* b) { return reinterpret_cast<uint16_t*>(b + index_at); };
  const auto value = [&](uint8_t* b) { return reinterpret_cast<uint16_t*>(b + value_at); };
  const auto entry = [](uint8_t* b) { return reinterpret_cast<si::PanelEntry*>(b + 128); };
  SI_CHECK(std::vector<uint16_t>(view.index, view.index + 6) == std::vector<uint16_t>{0, 2, 5, 5, 1, 1});
  const auto refuse = [&](const char* fragment, auto change) {
    expect_forgery_refused(Pairs{}, blob, fragment, change);
  };
  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[2] = 6; });
  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[5] = 65535; });
  refuse("do not increase", [&](auto&, uint8_t* b) { index(b)[2] = 1; });
  refuse("in two patterns", [&](auto&, uint8_t* b) { index(b)[1] = 1; });
  // Zeros of either sign and values below 2^-126 are not stored; a repeated column has a zero.
  for (uint16_t bad : {0x0000, 0x8000, 0x0001, 0x807f})
    refuse("stored value is zero", [&](auto&, uint8_t* b) { value(b)[0] = bad; });
  for (uint16_t bad : {0x3f80, 0x8000, 0x0001})
    refuse("stored value is zero", [&](auto&, uint8_t* b) { value(b)[3] = bad; });
  refuse("number of non-zero", [&](si::BlobHeader& h, uint8_t*) { h.nnz = 4; });
  refuse("K blocks", [&](si::BlobHeader& h, uint8_t*) { h.params[3] = 16; });
  for (uint32_t g : {0u, 3u, 4u}) refuse("unknown g", [&](si::BlobHeader& h, uint8_t*) { h.params[1] = g; });
  refuse("unknown g", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_F32; });
  refuse("unknown g", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_I8; });
  refuse("counts", [&](auto&, uint8_t* b) { entry(b)[0].count[14] = 9; });
  refuse("totals", [&](auto&, uint8_t* b) { entry(b)[0].count[5] = 0; });
  refuse("past the end", [&](auto&, uint8_t* b) { index(b)[6] = 1; });
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const si::WeightShape linear = make_shape({6, 90}, 1), conv = make_shape({10, 2, 3, 3}, 2);
  golden.check("linear_6x90_bf16_pairs", Pairs{}, si::testing::random_weight(linear, 55, random), linear);
  golden.check("conv_10x2x3x3_groups2_bf16_pairs", Pairs{}, si::testing::random_weight(conv, 40, random), conv);
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("panel", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("pairs_test --write-golden");

  Random random(2);
  si::testing::check_round_trips(Pairs{}, random);
  test_layout(random);
  test_rounding();
  test_refusals();
  test_forgeries();
  si::testing::check_attacks(Pairs{}, small_blob());
  return si::testing::finish("pairs_test");
}
