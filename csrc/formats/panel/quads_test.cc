// Panels of int8 values: layout, quantisation, validation, golden buffers.
#include "formats/panel/quads.h"

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

struct Quads {
  int32_t g;
  std::vector<float> scales;  // empty: the packer's own

  // With the scales of the buffer, which its values alone do not tell.
  Quads under(const si::BlobHeader& header) const {
    const si::PanelView view = view_of(&header, header.total_bytes);
    Quads out{view.g, std::vector<float>(static_cast<size_t>(view.shape.M()))};
    for (int64_t position = 0; position < view.shape.M(); ++position)
      out.scales[static_cast<size_t>(view.output_row(position))] = view.scale[position];
    return out;
  }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    options.value_type = SI_I8;
    options.g = g;
    options.scales = scales.empty() ? nullptr : scales.data();
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

// What int8 makes of a weight, computed in another way than the packer does: the integer nearest to the float32 ratio,
// by trying all.
std::vector<float> nearest(const std::vector<float>& weight, int64_t K, const std::vector<float>& scales) {
  std::vector<float> out(weight.size());
  for (size_t i = 0; i < weight.size(); ++i) {
    const float ratio = weight[i] / scales[i / static_cast<size_t>(K)];
    double best = std::numeric_limits<double>::infinity();
    for (int q = -128; q <= 127; ++q) {
      const double distance = std::abs(static_cast<double>(ratio) - q);
      if (distance < best || (distance == best && q % 2 == 0)) best = distance, out[i] = static_cast<float>(q);
    }
    out[i] *= scales[i / static_cast<size_t>(K)];
  }
  return out;
}

std::vector<float> own_scales(const std::vector<float>& weight, int64_t M, int64_t K) {
  std::vector<float> scales(static_cast<size_t>(M), 1.0f);
  for (int64_t m = 0; m < M; ++m) {
    float most = 0.0f;
    for (int64_t k = 0; k < K; ++k) most = std::max(most, std::abs(weight[static_cast<size_t>(m * K + k)]));
    if (most > 0.0f) scales[static_cast<size_t>(m)] = most / 127.0f;
  }
  return scales;
}

// Reads a weight by LAYOUT.md's formulas alone.
std::vector<float> read_layout(const Blob& blob, const si::WeightShape& shape) {
  const auto& header = *reinterpret_cast<const si::BlobHeader*>(blob.data.get());
  const int64_t M = shape.M(), K = shape.K(), rows_per_group = M / shape.groups, g = header.params[1];
  const int64_t panels = (rows_per_group + 3) / 4 * shape.groups;
  const auto after = [](size_t at, size_t bytes) { return (at + bytes + 64 + 63) / 64 * 64; };
  const size_t order_at = after(128, static_cast<size_t>(panels) * 40);
  const size_t scale_at = header.params[4] == 0 ? order_at : after(order_at, static_cast<size_t>(M) * 4);
  const size_t sum_at = after(scale_at, static_cast<size_t>(M) * 4),
               index_at = after(sum_at, static_cast<size_t>(M) * 4);
  const size_t value_at = after(index_at, header.counts[0] * 2);
  const uint8_t* bytes = blob.data.get();
  const auto* entry = reinterpret_cast<const si::PanelEntry*>(bytes + 128);
  const auto* order = header.params[4] == 0 ? nullptr : reinterpret_cast<const uint32_t*>(bytes + order_at);
  const auto* scale = reinterpret_cast<const float*>(bytes + scale_at);
  const auto* sum = reinterpret_cast<const int32_t*>(bytes + sum_at);
  std::vector<float> dense(static_cast<size_t>(M * K));
  std::vector<int32_t> sums(static_cast<size_t>(M));
  for (int64_t group = 0; group < shape.groups; ++group)
    for (int64_t row0 = 0; row0 < rows_per_group; row0 += 4, ++entry) {
      SI_CHECK_EQ(entry->rows, std::min<int64_t>(4, rows_per_group - row0));
      const auto* index = reinterpret_cast<const uint16_t*>(bytes + index_at) + entry->column_offset;
      const auto* quad = reinterpret_cast<const int8_t*>(bytes + value_at) + entry->value_offset * size_t{4};
      for (int pattern = 1; pattern < 16; ++pattern) {
        const int count = entry->count[pattern - 1];
        const int p = (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3);
        for (int u = 0; u < count; ++u)
          for (int row = 0, q = 0; row < 4; ++row) {
            if ((pattern >> row & 1) == 0) continue;
            const int b = u / 16 * 16, t = std::min(16, count - b), at = (b * p + q++ * t + (u - b)) * 4;
            const auto position = static_cast<size_t>(group * rows_per_group + row0 + row);
            const size_t output = order == nullptr ? position : order[position];
            for (int j = 0; j < 4; ++j) {
              const int64_t k = g == 1 ? index[4 * u + j] : index[u] * int64_t{4} + j;
              if (quad[at + j] == 0) continue;
              dense[output * static_cast<size_t>(K) + static_cast<size_t>(k)] =
                  static_cast<float>(quad[at + j]) * scale[position];
              sums[position] += quad[at + j];
            }
          }
        index += g == 1 ? 4 * count : count;
        quad += 4 * count * p;
      }
    }
  SI_CHECK(std::equal(sums.begin(), sums.end(), sum));
  return dense;
}

void check_weight(const Quads& format, const std::vector<float>& weight, const si::WeightShape& shape) {
  const Blob blob = si::testing::pack(format, weight, shape);
  const std::vector<float> scales = format.scales.empty() ? own_scales(weight, shape.M(), shape.K()) : format.scales;
  const std::vector<float> expected = nearest(weight, shape.K(), scales);
  const Blob copy = si::testing::copy_of(blob);
  SI_CHECK(si::testing::same_weight(si::testing::unpack(format, copy.data.get(), copy.bytes), expected));
  SI_CHECK(si::testing::same_weight(read_layout(blob, shape), expected));
  uint64_t nnz = 0;
  for (float w : expected) nnz += w != 0.0f;
  SI_CHECK_EQ(reinterpret_cast<const si::BlobHeader*>(blob.data.get())->nnz, nnz);
}

void test_round_trips(Random& random) {
  for (const si::WeightShape& shape : si::testing::edge_shapes())
    for (int64_t percent : {0, 5, 50, 90, 100})
      for (int32_t g : {0, 1, 4}) {
        const std::vector<float> weight = si::testing::random_weight(shape, percent, random);
        check_weight(Quads{g, {}}, weight, shape);
        // Too small for some of the values, and too large for others.
        check_weight(Quads{g, std::vector<float>(static_cast<size_t>(shape.M()), 1.0f / 64.0f)}, weight, shape);
        check_weight(Quads{g, std::vector<float>(static_cast<size_t>(shape.M()), 3.0f)}, weight, shape);
      }
}

void test_order() {
  const si::WeightShape shape = make_shape({40, 5, 7}, 1);
  std::vector<float> weight(static_cast<size_t>(40 * 35), 1.0f);
  for (size_t i = 0; i < weight.size(); ++i)
    if (i / 35 % 3 != 0) weight[i] = 0.0f;
  const Blob blob = si::testing::pack(Quads{1, {}}, weight, shape);
  SI_CHECK(view_of(blob.data.get(), blob.bytes).order != nullptr);
  check_weight(Quads{1, {}}, weight, shape);
  check_weight(Quads{4, {}}, weight, shape);
}

// Blocks of 1x4 are stored as such, other weights as quads of any columns.
void test_choice(Random& random) {
  const si::WeightShape shape = make_shape({32, 128}, 1);
  std::vector<float> blocks(32 * 128);
  for (size_t i = 0; i < blocks.size(); i += 4)
    if (random.below(3) == 0) std::fill_n(blocks.begin() + static_cast<std::ptrdiff_t>(i), 4, 1.0f);
  const auto chosen = [&](const std::vector<float>& weight) {
    const Blob blob = si::testing::pack(Quads{0, {}}, weight, shape);
    return view_of(blob.data.get(), blob.bytes).g;
  };
  SI_CHECK_EQ(chosen(blocks), 4);
  SI_CHECK_EQ(chosen(std::vector<float>(32 * 128, 1.0f)), 4);
  SI_CHECK_EQ(chosen(si::testing::random_weight(shape, 30, random)), 1);
}

void test_refusals() {
  const si::WeightShape shape = make_shape({2, 3}, 1);
  std::string message;
  const auto pack = [&](const Quads& format, float first) {
    const std::vector<float> weight{first, 1, 2, 0, 0, 0};
    return status_of([&] { format.pack(weight.data(), shape); }, &message);
  };
  const auto says = [&](const char* text) { return message.find(text) != std::string::npos; };
  for (float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    SI_CHECK_EQ(pack(Quads{1, {}}, bad), SI_ERR_ARGUMENT);
    SI_CHECK(says("finite weights") && says("row 0, column 0"));
  }
  for (float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity(), 1e-20f, 1e20f}) {
    SI_CHECK_EQ(pack(Quads{1, {1.0f, bad}}, 1.0f), SI_ERR_ARGUMENT);
    SI_CHECK(says("a scale from 2^-60 to 2^48") && says("for row 1"));
  }
  SI_CHECK_EQ(pack(Quads{1, {}}, 3e38f), SI_ERR_ARGUMENT);
  SI_CHECK(says("for row 0; try float32"));
  SI_CHECK_EQ(pack(Quads{2, {}}, 1.0f), SI_ERR_ARGUMENT);
  SI_CHECK(says("g of 1, 4 or 0, got 2"));
  // Values far below the least scale become zeros.
  SI_CHECK_EQ(pack(Quads{1, {}}, 1e-30f), SI_OK);

  si_pack_options options{};
  options.value_type = SI_I8;
  options.kblock = 16;
  Blob blob;
  const std::vector<float> weight(6, 1.0f);
  SI_CHECK_EQ(si::panel_pack(weight.data(), shape, options, &blob), SI_ERR_ARGUMENT);
  options.kblock = 0;
  options.value_type = SI_F32;
  options.g = 1;
  SI_CHECK_EQ(si::panel_pack(weight.data(), shape, options, &blob), SI_ERR_ARGUMENT);
}

// The most columns of the largest values and bytes: the sum is below 2^31, and one column more is refused.
void test_most_columns() {
  std::vector<float> weight(65536, -128.0f);
  const Quads format{4, {1.0f}};
  const Blob blob = format.pack(weight.data(), make_shape({1, 65535}, 1));
  SI_CHECK_EQ(view_of(blob.data.get(), blob.bytes).row_sum[0], -128 * 65535);
  SI_CHECK_EQ(status_of([&] { format.pack(weight.data(), make_shape({1, 65536}, 1)); }), SI_ERR_ARGUMENT);
}

// 4 x 6: pattern 1 at k = 0, 2, 5 (a unit whose last index repeats), pattern 6 at k = 1.
Blob small_blob(int32_t g) {
  std::vector<float> weight(24);
  weight[0] = 127, weight[2] = 2, weight[5] = 3, weight[6 + 1] = 127, weight[12 + 1] = -127;
  return si::testing::pack(Quads{g, {}}, weight, make_shape({4, 6}, 1));
}

void test_forgeries() {
  const Blob blob = small_blob(1);
  const si::PanelView view = view_of(blob.data.get(), blob.bytes);
  const auto at = [&](const void* member) { return static_cast<const uint8_t*>(member) - blob.data.get(); };
  const auto index_at = at(view.index), value_at = at(view.value), scale_at = at(view.scale), sum_at = at(view.row_sum);
  const auto index = [&](uint8_t* b) { return reinterpret_cast<uint16_t*>(b + index_at); };
  const auto value = [&](uint8_t* b) { return reinterpret_cast<int8_t*>(b + value_at); };
  const auto entry = [](uint8_t* b) { return reinterpret_cast<si::PanelEntry*>(b + 128); };
  SI_CHECK(std::vector<uint16_t>(view.index, view.index + 8) == std::vector<uint16_t>{0, 2, 5, 5, 1, 1, 1, 1});
  const auto refuse = [&](const char* fragment, auto change) {
    expect_forgery_refused(Quads{1, {}}, blob, fragment, change);
  };
  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[2] = 6; });
  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[7] = 65535; });
  refuse("do not increase", [&](auto&, uint8_t* b) { index(b)[2] = 1; });
  refuse("follows one that is repeated", [&](auto&, uint8_t* b) { index(b)[1] = 0, value(b)[1] = 0; });
  refuse("in two patterns", [&](auto&, uint8_t* b) { index(b)[1] = 1; });
  refuse("stored value is zero", [&](auto&, uint8_t* b) { value(b)[0] = 0; });
  refuse("stored value is zero", [&](auto&, uint8_t* b) { value(b)[3] = 1; });
  refuse("sum of row 0", [&](auto&, uint8_t* b) { value(b)[0] = 126; });
  refuse("sum of row 2", [&](auto&, uint8_t* b) { reinterpret_cast<int32_t*>(b + sum_at)[2] = 0; });
  for (float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()})
    refuse("scale of row 3", [&](auto&, uint8_t* b) { reinterpret_cast<float*>(b + scale_at)[3] = bad; });
  refuse("number of non-zero", [&](si::BlobHeader& h, uint8_t*) { h.nnz = 4; });
  refuse("K blocks", [&](si::BlobHeader& h, uint8_t*) { h.params[3] = 16; });
  for (uint32_t g : {0u, 2u, 8u}) refuse("unknown g", [&](si::BlobHeader& h, uint8_t*) { h.params[1] = g; });
  refuse("counts", [&](auto&, uint8_t* b) { entry(b)[0].count[14] = 9; });
  refuse("totals", [&](auto&, uint8_t* b) { entry(b)[0].count[5] = 0; });
  refuse("past the end", [&](auto&, uint8_t* b) { index(b)[8] = 1; });

  // At g = 4 the last block of K = 6 has two columns.
  const Blob blocks = small_blob(4);
  const si::PanelView four = view_of(blocks.data.get(), blocks.bytes);
  const auto quad_at = static_cast<const uint8_t*>(four.value) - blocks.data.get();
  expect_forgery_refused(Quads{4, {}}, blocks, "past the last column", [&](auto&, uint8_t* b) { b[quad_at + 3] = 1; });
  expect_forgery_refused(Quads{4, {}}, blocks, "stored block is zero",
                         [&](auto&, uint8_t* b) { b[quad_at] = b[quad_at + 1] = 0; });
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const auto integers = [&](const si::WeightShape& shape, int64_t percent) {
    std::vector<float> weight = si::testing::random_weight(shape, percent, random);
    for (float& w : weight) w *= 16.0f;
    return weight;
  };
  const si::WeightShape linear = make_shape({6, 90}, 1), conv = make_shape({10, 2, 3, 3}, 2);
  golden.check("linear_6x90_int8", Quads{1, std::vector<float>(6, 1.0f)}, integers(linear, 55), linear);
  golden.check("linear_6x90_int8_g4", Quads{4, std::vector<float>(6, 1.0f)}, integers(linear, 55), linear);
  golden.check("conv_10x2x3x3_groups2_int8", Quads{1, std::vector<float>(10, 1.0f)}, integers(conv, 40), conv);
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("panel", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("quads_test --write-golden");

  Random random(2);
  test_round_trips(random);
  test_order();
  test_choice(random);
  test_refusals();
  test_most_columns();
  test_forgeries();
  for (int32_t g : {1, 4}) si::testing::check_attacks(Quads{g, {}}, small_blob(g));
  return si::testing::finish("quads_test");
}
