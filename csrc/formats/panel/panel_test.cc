#include "formats/panel/panel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/target.h"
#include "formats/format_test.h"

namespace {

using si::testing::Blob;
using si::testing::expect_forgery_refused;
using si::testing::make_shape;
using si::testing::need;
using si::testing::Random;
using si::testing::status_of;

struct Panel {
  int32_t kblock;
  si_value_type type = SI_F32;
  const si_target* target = nullptr;

  Panel under(const si::BlobHeader& header) const {
    return {static_cast<int32_t>(header.params[3]), static_cast<si_value_type>(header.value_type)};
  }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    options.kblock = kblock;
    options.value_type = type;
    options.target = target;
    Blob blob;
    need(si::panel_pack(weight, shape, options, &blob));
    return blob;
  }
  void validate(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::PanelView view{};
    need(si::panel_validate(header, blob, bytes, &view));
  }
  std::vector<float> unpack(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::PanelView view{};
    need(si::panel_validate(header, blob, bytes, &view));
    std::vector<float> weight(static_cast<size_t>(view.shape.M() * view.shape.K()));
    si::panel_unpack(view, weight.data());
    return weight;
  }
};

si::PanelView view_of(const Blob& blob) {
  return si::testing::open_view(si::panel_validate, blob.data.get(), blob.bytes);
}

// Reads a weight by LAYOUT.md's formulas alone: the packer and panel_visit could share a mistake.
void check_layout(const Panel& format, const std::vector<float>& weight, const si::WeightShape& shape) {
  const Blob blob = si::testing::pack(format, weight, shape);
  const si::PanelView view = view_of(blob);
  const int64_t K = shape.K(), rows_per_group = shape.M() / shape.groups;
  const int64_t panels = (rows_per_group + 3) / 4 * shape.groups;
  const int64_t blocks = format.kblock == 0 ? 1 : (K + format.kblock - 1) / format.kblock;
  // The order stands after the entries, 64 zero bytes and the rest to a multiple of 64.
  const auto& header = *reinterpret_cast<const si::BlobHeader*>(blob.data.get());
  const size_t entry_end = 128 + static_cast<size_t>(blocks * panels) * 40;
  const auto* order = header.params[4] == 0
                          ? nullptr
                          : reinterpret_cast<const uint32_t*>(blob.data.get() + (entry_end + 127) / 64 * 64);
  const auto* entry = reinterpret_cast<const si::PanelEntry*>(blob.data.get() + 128);
  std::vector<float> dense(weight.size());
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t panel = 0;
    for (int64_t group = 0; group < shape.groups; ++group)
      for (int64_t row0 = 0; row0 < rows_per_group; row0 += 4, ++panel, ++entry) {
        SI_CHECK_EQ(entry->rows, rows_per_group - row0 < 4 ? rows_per_group - row0 : 4);
        SI_CHECK_EQ(view.row_of(panel), group * rows_per_group + row0);
        const uint16_t* index = view.index + entry->column_offset;
        const float* value = view.value_as<float>() + entry->value_offset;
        for (int pattern = 1; pattern < 16; ++pattern) {
          const int count = entry->count[pattern - 1];
          const int p = (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3);
          for (int c = 0; c < count; ++c) {
            if (blocks > 1) SI_CHECK_EQ(index[c] / format.kblock, block);
            for (int row = 0, q = 0; row < 4; ++row) {
              if ((pattern >> row & 1) == 0) continue;
              const int b = c / 16 * 16, t = count - b < 16 ? count - b : 16;
              const auto position = static_cast<size_t>(group * rows_per_group + row0 + row);
              const size_t output = order == nullptr ? position : order[position];
              dense[output * static_cast<size_t>(K) + index[c]] = value[b * p + q++ * t + (c - b)];
            }
          }
          index += count;
          value += count * p;
        }
      }
    SI_CHECK_EQ(view.panels, panel);
  }
  SI_CHECK_EQ(view.kblocks, blocks);
  SI_CHECK(si::testing::same_weight(dense, weight));
}

void test_layout(Random& random) {
  for (int32_t kblock : {0, 16, 32, 128, 65536}) {
    const Panel format{kblock};
    si::testing::check_round_trips(format, random);
    for (const si::WeightShape& shape : si::testing::edge_shapes())
      check_layout(format, si::testing::random_weight(shape, 60, random), shape);
  }
}

void test_special_values() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const float tiny = std::numeric_limits<float>::denorm_min();
  si::testing::check_round_trip(Panel{0}, {-0.0f, inf, nan, -inf, 0.0f, -tiny, tiny, -0.0f}, make_shape({2, 4}, 1));
}

// Left to the packer: blocks for convolutions of several taps and more channels than a block has, which on AVX-512
// are 32, or 16 of a weight of few channels and many non-zeros, elsewhere 64, or 128 of many channels.
void check_choice(const si_target* target, bool wide) {
  const auto chosen = [&](const si::WeightShape& shape, float value, int32_t kblock = SI_KBLOCK_AUTO) {
    std::vector<float> filled(static_cast<size_t>(shape.M() * shape.K()), value);
    return view_of(Panel{kblock, SI_F32, target}.pack(filled.data(), shape)).kblock;
  };
  SI_CHECK_EQ(chosen(make_shape({4, 128, 3, 3}, 1), 0.0f), wide ? 288 : 576);
  SI_CHECK_EQ(chosen(make_shape({4, 128, 3, 3}, 1), 1.0f), wide ? 144 : 576);
  SI_CHECK_EQ(chosen(make_shape({4, 256, 3, 3}, 1), 1.0f), wide ? 288 : 1152);
  SI_CHECK_EQ(chosen(make_shape({4, 65, 5}, 1), 0.0f), wide ? 160 : 320);
  SI_CHECK_EQ(chosen(make_shape({4, wide ? 32 : 64, 3, 3}, 1), 0.0f), 0);
  // Kernels of one tap, and linear layers where the caller means to compute many tokens.
  SI_CHECK_EQ(chosen(make_shape({4, 512, 1, 1}, 1), 1.0f), wide ? 128 : 0);
  SI_CHECK_EQ(chosen(make_shape({4, 512, 1, 1}, 1), 0.0f), 0);
  SI_CHECK_EQ(chosen(make_shape({4, 128, 1}, 1), 1.0f), 0);
  SI_CHECK_EQ(chosen(make_shape({4, 4096}, 1), 1.0f), 0);
  SI_CHECK_EQ(chosen(make_shape({4, 4096}, 1), 1.0f, SI_KBLOCK_MANY_TOKENS), wide ? 128 : 0);
  SI_CHECK_EQ(chosen(make_shape({4, 4096}, 1), 0.0f, SI_KBLOCK_MANY_TOKENS), 0);
  SI_CHECK_EQ(chosen(make_shape({4, 128}, 1), 1.0f, SI_KBLOCK_MANY_TOKENS), 0);
}

// The choice follows from the target, whatever machine packs; the host's is that of a target like it.
void test_choice() {
  for (size_t i = 1; i < si::target_count(); ++i) {
    const si_target& target = si::target_at(i);
    check_choice(&target, std::string(target.name).find("avx512") != std::string::npos);
  }
  const si_target& host = si::host_target();
  const bool wide = si::target_runs(host, si::Isa::avx512);
  check_choice(nullptr, wide);
  check_choice(&host, wide);
  si_target described{};
  check_choice(&described, false);
  described.features = si::isa_features(si::Isa::avx512);
  check_choice(&described, true);
  described.features &= ~SI_CPU_AVX512VL;
  check_choice(&described, false);
}

void test_limits() {
  std::vector<float> weight(65535, 1.0f);
  weight[7] = 0;
  const si::WeightShape widest = make_shape({1, 65535}, 1);
  si::testing::check_round_trip(Panel{0}, weight, widest);
  si::testing::check_round_trip(Panel{16}, weight, widest);
  weight.push_back(1.0f);
  std::string message;
  const auto pack = [&](const si::WeightShape& shape, int32_t kblock) {
    return status_of([&] { Panel{kblock}.pack(weight.data(), shape); }, &message);
  };
  SI_CHECK_EQ(pack(make_shape({1, 65536}, 1), 0), SI_ERR_ARGUMENT);
  SI_CHECK(message.find("expected at most 65535 input columns") != std::string::npos);
  for (int32_t kblock : {-16, -3, 1, 8, 17, 65552, 0x7ffffff0}) {
    SI_CHECK_EQ(pack(make_shape({4, 16}, 1), kblock), SI_ERR_ARGUMENT);
    SI_CHECK(message.find("expected kblock") != std::string::npos);
  }
}

// 5 x 20 with K blocks of 16: entries of panels 0 and 1 in block 0, then of both in block 1. Panel 0 has rows 0-3:
// pattern 1 at k = 2, 17 and pattern 6 at k = 3. Panel 1 has row 4: pattern 1 at k = 0, 19.
Blob small_blob() {
  std::vector<float> weight(100);
  weight[2] = 1, weight[17] = 2, weight[20 + 3] = 3, weight[40 + 3] = 4, weight[80] = 5, weight[80 + 19] = 6;
  return si::testing::pack(Panel{16}, weight, make_shape({5, 20}, 1));
}

void test_content() {
  const Blob blob = small_blob();
  const si::PanelView view = view_of(blob);
  si_weight_info info{};
  std::fill(info.sections, info.sections + 4, 9u);
  si::panel_describe(view, blob.data.get(), &info);
  const uint64_t* offsets = info.sections;
  SI_CHECK_EQ(offsets[0], 128u);  // 2 x 2 entries of 40 bytes and 64 zero ones, rounded up
  SI_CHECK_EQ(offsets[1], 384u);
  SI_CHECK_EQ(offsets[2], 512u);
  SI_CHECK_EQ(blob.bytes, 640u);
  SI_CHECK(std::vector<uint16_t>(view.index, view.index + 5) == std::vector<uint16_t>{2, 3, 0, 17, 19});
  SI_CHECK(std::vector<float>(view.value_as<float>(), view.value_as<float>() + 6) ==
           std::vector<float>{1, 3, 4, 5, 2, 6});
}

void test_forgeries() {
  const Blob blob = small_blob();
  const auto entry = [](uint8_t* bytes) { return reinterpret_cast<si::PanelEntry*>(bytes + 128); };
  const auto index = [](uint8_t* bytes) { return reinterpret_cast<uint16_t*>(bytes + 384); };
  const auto value = [](uint8_t* bytes) { return reinterpret_cast<float*>(bytes + 512); };
  const auto refuse = [&](const char* fragment, auto change) {
    expect_forgery_refused(Panel{16}, blob, fragment, change);
  };

  refuse("wrong offset", [&](auto&, uint8_t* b) { entry(b)[0].column_offset = 1; });
  refuse("wrong offset", [&](auto&, uint8_t* b) { entry(b)[1].column_offset = 0xffffffff; });
  refuse("wrong offset", [&](auto&, uint8_t* b) { entry(b)[3].value_offset = 0xffffffff; });
  for (int rows : {0, 1, 3, 5, 65535})
    for (int at : {0, 2})
      refuse("number of rows", [&](auto&, uint8_t* b) { entry(b)[at].rows = static_cast<uint16_t>(rows); });
  refuse("number of rows", [&](auto&, uint8_t* b) { entry(b)[1].rows = 4; });
  refuse("counts", [&](auto&, uint8_t* b) { entry(b)[0].count[0] = 65535; });
  refuse("counts", [&](auto&, uint8_t* b) { entry(b)[3].count[0] = 2; });
  refuse("totals", [&](auto&, uint8_t* b) { entry(b)[3].count[0] = 0; });
  refuse("row that is not there", [&](auto&, uint8_t* b) { entry(b)[1].count[0] = 0, entry(b)[1].count[1] = 1; });
  // Pattern 1's column joins those of pattern 6: other counts, other offsets after them.
  refuse("wrong offset", [&](auto&, uint8_t* b) { entry(b)[0].count[0] = 0; });

  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[1] = 20; });
  refuse("out of range", [&](auto&, uint8_t* b) { index(b)[4] = 65535; });
  // A column of another K block.
  refuse("K block 0, panel 0: a column index is out of range", [&](auto&, uint8_t* b) { index(b)[0] = 16; });
  refuse("K block 1, panel 1: a column index is out of range", [&](auto&, uint8_t* b) { index(b)[4] = 15; });
  refuse("in two patterns", [&](auto&, uint8_t* b) { index(b)[1] = 2; });
  refuse("do not increase", [&](auto&, uint8_t* b) {
    // Block 0 of panel 0 with two columns of pattern 1, and as many values as before.
    entry(b)[0].count[0] = 2, entry(b)[0].count[5] = 0, entry(b)[0].count[0] = 2;
    entry(b)[1].value_offset = entry(b)[2].value_offset = entry(b)[3].value_offset = 2;
    index(b)[1] = 2;
  });

  refuse("non-zero values", [&](auto&, uint8_t* b) { value(b)[0] = 0.0f; });
  refuse("non-zero values", [&](auto&, uint8_t* b) { value(b)[5] = -0.0f; });
  refuse("past the end", [&](auto&, uint8_t* b) { index(b)[5] = 65535; });
  refuse("past the end", [&](auto&, uint8_t* b) { value(b)[31] = 1.0f; });

  refuse("non-zero values", [&](si::BlobHeader& h, uint8_t*) { h.nnz = 5; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.nnz = 7; });
  for (uint64_t count : {uint64_t{1} << 32, UINT64_MAX, uint64_t{1} << 62}) {
    refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = count; });
    refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[1] = count; });
  }
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = UINT32_MAX; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t* b) { h.counts[0] = 4, index(b)[4] = 0; });
  refuse("totals", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = 6; });
  refuse("totals", [&](si::BlobHeader& h, uint8_t*) { h.counts[1] = 7; });

  for (uint32_t kblock : {8u, 0x80000000u, 0xfffffff0u, 65552u})
    refuse("K block", [&](si::BlobHeader& h, uint8_t*) { h.params[3] = kblock; });
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.params[3] = 0; });
  for (int param : {0, 1, 2, 4, 7}) refuse("panel: ", [&](si::BlobHeader& h, uint8_t*) { h.params[param] = 3; });
  refuse("value type", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_F16; });
  refuse("65535", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 65536; });
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 0x7fffffff, h.shape[1] = 2; });
  refuse("size", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 33; });
  refuse("panel 1", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 6; });
}

// Rows without a non-zero go to the end of their group where that spares an eighth of the columns.
void test_order() {
  const si::WeightShape shape = make_shape({40, 6, 3}, 2);
  std::vector<float> weight(static_cast<size_t>(shape.M() * shape.K()));
  for (int64_t row = 0; row < 40; row += 3)
    for (int64_t k = row % 2; k < 18; ++k) weight[static_cast<size_t>(row * shape.K() + k)] = 1.0f;
  check_layout(Panel{16}, weight, shape);
  check_layout(Panel{0}, weight, shape);
  const Blob blob = si::testing::pack(Panel{0}, weight, shape);
  const si::PanelView view = view_of(blob);
  SI_CHECK(view.order != nullptr);
  if (view.order == nullptr) return;
  std::vector<uint32_t> expected;
  for (uint32_t first : {0u, 20u})
    for (bool kept : {true, false})
      for (uint32_t row = first; row < first + 20; ++row)
        if ((row % 3 == 0) == kept) expected.push_back(row);
  SI_CHECK(std::vector<uint32_t>(view.order, view.order + 40) == expected);
  si::testing::check_damage(Panel{0}, blob);

  const auto at = static_cast<size_t>(reinterpret_cast<const uint8_t*>(view.order) - blob.data.get());
  const auto refuse = [&](const char* fragment, size_t position, uint32_t row) {
    expect_forgery_refused(Panel{0}, blob, fragment,
                           [&](auto&, uint8_t* bytes) { reinterpret_cast<uint32_t*>(bytes + at)[position] = row; });
  };
  refuse("no permutation", 0, 40);
  refuse("no permutation", 0, 0xffffffff);
  refuse("no permutation", 0, 3);
  refuse("no permutation", 0, 21);
  refuse("past the end", 40, 1);
  for (uint32_t flag : {0u, 2u, 0xffffffffu})
    expect_forgery_refused(Panel{0}, blob, "panel: ", [&](si::BlobHeader& h, uint8_t*) { h.params[4] = flag; });

  // One panel of ten spared is not worth it.
  std::vector<float> nearly(weight.size(), 1.0f);
  for (int64_t row = 0; row < 4; ++row) std::fill_n(nearly.begin() + (5 * row) * shape.K(), shape.K(), 0.0f);
  SI_CHECK(view_of(si::testing::pack(Panel{0}, nearly, shape)).order == nullptr);
}

// Values as bfloat16: what comes back is rounded, a value that rounds to zero stays stored and does not count.
void test_bfloat16(Random& random) {
  const si::WeightShape shape = make_shape({13, 70}, 1);
  std::vector<float> weight = si::testing::random_weight(shape, 40, random);
  weight[3] = std::numeric_limits<float>::denorm_min();
  weight[4] = std::nanf(""), weight[5] = -std::numeric_limits<float>::infinity();
  std::vector<float> rounded = weight;
  uint64_t nnz = 0;
  for (float& v : rounded) {
    v = si::bfloat16_to_float(si::float_to_bfloat16(v));
    nnz += v != 0.0f;
  }
  const Panel format{16, SI_BF16};
  const Blob blob = si::testing::pack(format, weight, shape), wide = si::testing::pack(Panel{16}, weight, shape);
  SI_CHECK(si::testing::same_weight(si::testing::unpack(format, blob.data.get(), blob.bytes), rounded));
  SI_CHECK_EQ(reinterpret_cast<const si::BlobHeader*>(blob.data.get())->nnz, nnz);
  SI_CHECK_EQ(view_of(blob).values, nnz + 1);
  SI_CHECK(blob.bytes + 2 * nnz <= wide.bytes + 64);
  weight[3] = 1.0f;
  si::testing::check_attacks(format, si::testing::pack(format, weight, shape));
}

// A stored explicit zero is allowed, and does not count.
void test_explicit_zero() {
  const Blob blob = si::testing::copy_of(small_blob());
  reinterpret_cast<float*>(blob.data.get() + 512)[1] = 0.0f;
  reinterpret_cast<si::BlobHeader*>(blob.data.get())->nnz = 5;
  si::seal_blob(blob.data.get());
  const std::vector<float> weight = si::testing::unpack(Panel{16}, blob.data.get(), blob.bytes);
  SI_CHECK_EQ(weight[20 + 3], 0.0f);
  SI_CHECK_EQ(weight[40 + 3], 4.0f);
}

// What an ARM host packs when K blocks are left to it, and what any other machine packs for it. The files were written
// on aarch64, under qemu, without a target.
void test_target_golden(si::testing::Golden& golden) {
#if defined(__aarch64__)
  const si_target* const target = nullptr;
#else
  if (golden.writing()) return;
  const si_target* const target = si::target_named("aarch64-neon");
#endif
  Random random(3);
  const si::WeightShape conv = make_shape({4, 72, 3, 3}, 1), linear = make_shape({5, 300}, 1);
  const std::vector<float> dense = si::testing::random_weight(linear, 30, random);
  golden.check("conv_4x72x3x3_aarch64", Panel{SI_KBLOCK_AUTO, SI_F32, target},
               si::testing::random_weight(conv, 10, random), conv);
  golden.check("linear_5x300_many_tokens_aarch64", Panel{SI_KBLOCK_MANY_TOKENS, SI_F32, target}, dense, linear);
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const si::WeightShape linear = make_shape({6, 90}, 1);
  const std::vector<float> weight = si::testing::random_weight(linear, 55, random);
  golden.check("linear_6x90", Panel{0}, weight, linear);
  golden.check("linear_6x90_bfloat16", Panel{0, SI_BF16}, weight, linear);
  golden.check("linear_6x90_kblock32", Panel{32}, weight, linear);
  const si::WeightShape conv = make_shape({10, 2, 3, 3}, 2);
  golden.check("conv_10x2x3x3_groups2_kblock16", Panel{16}, si::testing::random_weight(conv, 40, random), conv);
  const si::WeightShape zero = make_shape({3, 4}, 1);
  const si::WeightShape pruned_shape = make_shape({24, 2, 10}, 1);
  std::vector<float> pruned = si::testing::random_weight(pruned_shape, 50, random);
  for (int64_t row = 0; row < 24; ++row)
    if (row % 4 != 1) std::fill_n(pruned.begin() + row * 20, 20, 0.0f);
  golden.check("conv_24x2x10_order", Panel{0}, pruned, pruned_shape);
  golden.check("zero_3x4", Panel{0}, std::vector<float>(12), zero);
  test_target_golden(golden);
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("panel", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("panel_test --write-golden");

  Random random(2);
  test_layout(random);
  test_special_values();
  test_limits();
  test_choice();
  test_content();
  test_forgeries();
  test_order();
  test_explicit_zero();
  test_bfloat16(random);
  si::testing::check_attacks(Panel{16}, small_blob());
  const si::WeightShape conv = make_shape({6, 2, 3, 3}, 2);
  const Panel format{0};
  si::testing::check_attacks(format, si::testing::pack(format, si::testing::random_weight(conv, 40, random), conv));
  return si::testing::finish("panel_test");
}
