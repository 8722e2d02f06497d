#include "formats/panel/panel.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/cpu.h"
#include "core/error.h"

namespace si {

namespace {

enum PanelParam { kParamRows, kParamGroup, kParamIndexBits, kParamKBlock, kParamOrder };

struct Layout {
  SectionPlan plan;
  size_t entry, order, index, value;
};

int64_t panels_per_group(const WeightShape& shape) { return (shape.M() / shape.groups + kPanelRows - 1) / kPanelRows; }

int64_t kblocks(const WeightShape& shape, int32_t kblock) {
  return kblock == 0 ? 1 : (shape.K() + kblock - 1) / kblock;
}

Layout layout_of(const WeightShape& shape, int32_t kblock, si_value_type type, bool ordered, uint64_t columns,
                 uint64_t values) {
  const auto panels = static_cast<uint64_t>(panels_per_group(shape) * shape.groups);
  Layout layout{};
  layout.entry = layout.plan.add(panels * static_cast<uint64_t>(kblocks(shape, kblock)), sizeof(PanelEntry));
  if (ordered) layout.order = layout.plan.add(static_cast<uint64_t>(shape.M()), sizeof(uint32_t));
  layout.index = layout.plan.add(columns, sizeof(uint16_t));
  layout.value = layout.plan.add(values, type == SI_BF16 ? sizeof(BFloat16) : sizeof(float));
  return layout;
}

PanelView view_of(const WeightShape& shape, int32_t kblock, si_value_type type, bool ordered, uint64_t columns,
                  uint64_t values, const Layout& layout, const uint8_t* blob) {
  PanelView view{};
  view.shape = shape;
  view.panels_per_group = panels_per_group(shape);
  view.panels = view.panels_per_group * shape.groups;
  view.kblock = kblock;
  view.kblocks = kblocks(shape, kblock);
  view.entry = reinterpret_cast<const PanelEntry*>(blob + layout.entry);
  view.order = ordered ? reinterpret_cast<const uint32_t*>(blob + layout.order) : nullptr;
  view.index = reinterpret_cast<const uint16_t*>(blob + layout.index);
  view.value_type = type;
  view.value = blob + layout.value;
  view.columns = columns;
  view.values = values;
  return view;
}

int64_t first_position(const WeightShape& shape, int64_t panel) {
  const int64_t per_group = panels_per_group(shape);
  return panel / per_group * (shape.M() / shape.groups) + panel % per_group * kPanelRows;
}

int rows_in_panel(const WeightShape& shape, int64_t panel_in_group) {
  const int64_t left = shape.M() / shape.groups - panel_in_group * kPanelRows;
  return static_cast<int>(left < kPanelRows ? left : kPanelRows);
}

// The patterns of columns [first, last): bit r set when row r of the panel, whose output rows are given, is non-zero
// there.
void patterns_of(const float* weight, int64_t K, int64_t first, int64_t last, const uint32_t* output_row, int rows,
                 uint8_t* pattern) {
  std::memset(pattern, 0, static_cast<size_t>(last - first));
  for (int row = 0; row < rows; ++row) {
    const float* from = weight + output_row[row] * K + first;
    for (int64_t k = 0; k < last - first; ++k) pattern[k] |= static_cast<uint8_t>((from[k] != 0.0f) << row);
  }
}

struct Counts {
  uint64_t columns, values;
};

// What the panels hold with the rows in this order.
Counts count(const float* weight, const WeightShape& shape, const std::vector<uint32_t>& order) {
  const int64_t K = shape.K(), per_group = panels_per_group(shape);
  std::vector<uint8_t> pattern(static_cast<size_t>(K));
  Counts counts{};
  for (int64_t panel = 0; panel < per_group * shape.groups; ++panel) {
    patterns_of(weight, K, 0, K, order.data() + first_position(shape, panel), rows_in_panel(shape, panel % per_group),
                pattern.data());
    for (const uint8_t p : pattern) {
      counts.columns += p != 0;
      counts.values += static_cast<uint64_t>(pattern_rows(p));
    }
  }
  return counts;
}

// In every group the rows with a non-zero, then those without.
std::vector<uint32_t> zero_rows_last(const float* weight, const WeightShape& shape) {
  const int64_t M = shape.M(), K = shape.K(), group_rows = M / shape.groups;
  std::vector<uint32_t> order;
  order.reserve(static_cast<size_t>(M));
  for (int64_t first = 0; first < M; first += group_rows) {
    std::vector<uint32_t> zero;
    for (int64_t row = first; row < first + group_rows; ++row) {
      const float* values = weight + row * K;
      const bool empty = std::all_of(values, values + K, [](float value) { return value == 0.0f; });
      (empty ? zero : order).push_back(static_cast<uint32_t>(row));
    }
    order.insert(order.end(), zero.begin(), zero.end());
  }
  return order;
}

// The rows as they are, or, where that spares an eighth of the columns, zero rows last. Storing rows of a linear layer
// out of order costs about as much as 16 columns each.
std::vector<uint32_t> order_of(const float* weight, const WeightShape& shape, Counts* counts) {
  std::vector<uint32_t> natural(static_cast<size_t>(shape.M()));
  std::iota(natural.begin(), natural.end(), 0u);
  *counts = count(weight, shape, natural);
  std::vector<uint32_t> order = zero_rows_last(weight, shape);
  if (order == natural) return natural;
  const Counts packed = count(weight, shape, order);
  const uint64_t spared = counts->columns - std::min(packed.columns, counts->columns);
  const auto cost = shape.ndim == 2 ? 16 * static_cast<uint64_t>(shape.M()) : 0;
  if (spared <= cost || spared * 8 < counts->columns) return natural;
  *counts = packed;
  return order;
}

uint64_t zeros(si_value_type type, const void* values, uint64_t count) {
  if (type == SI_F32) {
    const auto* first = static_cast<const float*>(values);
    return static_cast<uint64_t>(std::count(first, first + count, 0.0f));
  }
  const auto* first = static_cast<const BFloat16*>(values);
  return static_cast<uint64_t>(
      std::count_if(first, first + count, [](BFloat16 value) { return (value.bits & 0x7fff) == 0; }));
}

// The channels whose taps are a block, by what was fastest on the instruction set that runs here. A tile of AVX-512 is
// wide and reads three copies of an image (kernels/conv/image.h): half as many channels where each column has so many
// values that loads of x are what takes the time, and an image is likely to be large. Narrow tiles leave room for more.
int64_t block_channels(int64_t channels, double density) {
  constexpr int64_t kManyChannels = 256;
  constexpr double kDense = 0.15;
  if (isa_state(Isa::kAvx512).supported) return density >= kDense && channels < kManyChannels ? 16 : 32;
  return channels < kManyChannels ? 64 : 128;
}

// Columns of a block where each has a line of x to itself: a linear layer called with many tokens, a kernel of one tap.
// The fewer values, the shorter the loops of a block, until it gains nothing: 0. Nor does it where tiles are narrow:
// more of K is near already.
int64_t block_columns(double density) {
  if (!isa_state(Isa::kAvx512).supported) return 0;
  if (density >= 0.25) return 128;
  if (density >= 0.15) return 192;
  return density >= 0.075 ? 256 : 0;
}

int32_t auto_kblock(const WeightShape& shape, uint64_t values, bool many_tokens) {
  const int64_t channels = shape.dims[1], taps = shape.K() / channels;
  const double density = static_cast<double>(values) / static_cast<double>(shape.M() * shape.K());
  // One token, or few, would read patterns in short pieces, and gain nothing.
  if (shape.ndim == 2 && !many_tokens) return 0;
  const int64_t block = taps > 1 ? taps * block_channels(channels, density) : block_columns(density);
  return block > 0 && shape.K() > block && block <= kPanelMaxKBlock ? static_cast<int32_t>(block) : 0;
}

}  // namespace

uint8_t* panel_pack(const float* weight, const WeightShape& shape, int32_t kblock, si_value_type type, size_t* bytes) {
  const int64_t K = shape.K();
  if (K > kPanelMaxK)
    fail(SI_ERR_ARGUMENT, "expected at most 65535 input columns for the panel format, got " + std::to_string(K) +
                              "; try the csr format");
  const bool automatic = kblock == SI_KBLOCK_AUTO || kblock == SI_KBLOCK_MANY_TOKENS;
  if (!automatic && (kblock < 0 || kblock % kPanelGroup != 0 || kblock > kPanelMaxKBlock))
    fail(SI_ERR_ARGUMENT, "expected kblock to be 0 or a multiple of 16 up to 65536, got " + std::to_string(kblock) +
                              "; try 0, which makes one block");

  const int64_t per_group = panels_per_group(shape);
  const int64_t panels = per_group * shape.groups;
  // Row patterns are found anew for every count and for filling: cheaper than keeping one byte a column a panel.
  Counts counts{};
  const std::vector<uint32_t> order = order_of(weight, shape, &counts);
  const bool ordered = !std::is_sorted(order.begin(), order.end());
  const uint64_t columns = counts.columns, values = counts.values;
  if (columns > UINT32_MAX || values > UINT32_MAX)
    fail(SI_ERR_ARGUMENT, "expected fewer than 2^32 non-zeros for the panel format, got " + std::to_string(values));

  if (automatic) kblock = auto_kblock(shape, values, kblock == SI_KBLOCK_MANY_TOKENS);
  const Layout layout = layout_of(shape, kblock, type, ordered, columns, values);
  BlobHeader header = make_header(SI_FORMAT_PANEL, shape);
  header.value_type = static_cast<uint32_t>(type);
  header.params[kParamRows] = kPanelRows;
  header.params[kParamGroup] = 1;
  header.params[kParamIndexBits] = 16;
  header.params[kParamKBlock] = static_cast<uint32_t>(kblock);
  header.params[kParamOrder] = ordered ? 1 : 0;
  header.counts[0] = columns;
  header.counts[1] = values;
  BlobPtr blob = new_blob(header, layout.plan.total());
  auto* entry = reinterpret_cast<PanelEntry*>(blob.get() + layout.entry);
  auto* index = reinterpret_cast<uint16_t*>(blob.get() + layout.index);
  auto* wide = reinterpret_cast<float*>(blob.get() + layout.value);
  auto* narrow = reinterpret_cast<BFloat16*>(blob.get() + layout.value);

  if (ordered) std::memcpy(blob.get() + layout.order, order.data(), order.size() * sizeof(uint32_t));

  uint32_t column_offset = 0, value_offset = 0;
  const int64_t blocks = kblocks(shape, kblock);
  std::vector<uint8_t> pattern(static_cast<size_t>(K));
  std::vector<uint16_t> of_pattern[kPatterns + 1];
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first_k = block * kblock, last_k = blocks == 1 ? K : std::min<int64_t>(first_k + kblock, K);
    for (int64_t panel = 0; panel < panels; ++panel) {
      PanelEntry& e = entry[block * panels + panel];
      e.column_offset = column_offset;
      e.value_offset = value_offset;
      e.rows = static_cast<uint16_t>(rows_in_panel(shape, panel % per_group));
      const uint32_t* output_row = order.data() + first_position(shape, panel);
      patterns_of(weight, K, first_k, last_k, output_row, e.rows, pattern.data());
      for (auto& list : of_pattern) list.clear();
      for (int64_t k = first_k; k < last_k; ++k)
        of_pattern[pattern[static_cast<size_t>(k - first_k)]].push_back(static_cast<uint16_t>(k));
      for (int p = 1; p <= kPatterns; ++p) {
        const std::vector<uint16_t>& list = of_pattern[p];
        const auto count = static_cast<uint32_t>(list.size());
        e.count[p - 1] = static_cast<uint16_t>(count);
        if (count == 0) continue;
        check_unchanged(count <= columns - column_offset &&
                        count * static_cast<uint64_t>(pattern_rows(p)) <= values - value_offset);
        std::memcpy(index + column_offset, list.data(), count * sizeof(uint16_t));
        column_offset += count;
        for (uint32_t first = 0; first < count; first += kPanelGroup) {
          const uint32_t last = first + kPanelGroup < count ? first + kPanelGroup : count;
          for (int row = 0; row < kPanelRows; ++row) {
            if (!(p >> row & 1)) continue;
            const float* from = weight + output_row[row] * K;
            for (uint32_t i = first; i < last; ++i, ++value_offset) {
              if (type == SI_BF16)
                narrow[value_offset] = {float_to_bfloat16(from[list[i]])};
              else
                wide[value_offset] = from[list[i]];
            }
          }
        }
      }
    }
  }
  check_unchanged(column_offset == columns && value_offset == values);
  // Rounding may have made a zero of a value.
  reinterpret_cast<BlobHeader*>(blob.get())->nnz = values - zeros(type, blob.get() + layout.value, values);
  seal_blob(blob.get());
  *bytes = layout.plan.total();
  return blob.release();
}

namespace {

// Every position holds a row of its own group, and every row has one position.
void check_order(const PanelView& view) {
  const int64_t M = view.shape.M(), group_rows = M / view.shape.groups;
  std::vector<bool> seen(static_cast<size_t>(M));
  for (int64_t position = 0; position < M; ++position) {
    const uint32_t row = view.order[position];
    if (row >= M || row / group_rows != position / group_rows || seen[row])
      corrupt("panel: the row order is no permutation of its group's rows");
    seen[row] = true;
  }
}

}  // namespace

PanelView panel_validate(const BlobHeader& header, const void* blob, size_t bytes) {
  const WeightShape shape = shape_of(header);
  const int64_t K = shape.K();
  const auto type = static_cast<si_value_type>(header.value_type);
  if (type != SI_F32 && type != SI_BF16) corrupt("panel: unknown value type " + std::to_string(header.value_type));
  if (header.params[kParamRows] != kPanelRows) corrupt("panel: unknown R " + std::to_string(header.params[kParamRows]));
  if (header.params[kParamGroup] != 1) corrupt("panel: unknown g " + std::to_string(header.params[kParamGroup]));
  if (header.params[kParamIndexBits] != 16)
    corrupt("panel: unknown index width " + std::to_string(header.params[kParamIndexBits]));
  if (header.params[kParamOrder] > 1) corrupt("panel: bad row order " + std::to_string(header.params[kParamOrder]));
  const bool ordered = header.params[kParamOrder] == 1;
  for (int i = kParamOrder + 1; i < 8; ++i)
    if (header.params[i] != 0) corrupt("panel: a reserved parameter is not zero");
  if (K > kPanelMaxK) corrupt("panel: more than 65535 columns");
  const uint32_t kblock = header.params[kParamKBlock];
  if (kblock % kPanelGroup != 0 || kblock > kPanelMaxKBlock) corrupt("panel: bad K block " + std::to_string(kblock));
  const uint64_t columns = header.counts[0], values = header.counts[1];
  if (columns > UINT32_MAX || values > UINT32_MAX || header.nnz > values) corrupt("panel: counts out of range");
  const Layout layout = layout_of(shape, static_cast<int32_t>(kblock), type, ordered, columns, values);
  if (layout.plan.total() != bytes) corrupt("panel: its size does not match its counts");
  layout.plan.check_slack(blob);

  const PanelView view = view_of(shape, static_cast<int32_t>(kblock), type, ordered, columns, values, layout,
                                 static_cast<const uint8_t*>(blob));
  if (ordered) check_order(view);
  uint64_t column = 0, value = 0;
  std::vector<uint8_t> seen(static_cast<size_t>(K));
  for (int64_t block = 0; block < view.kblocks; ++block) {
    const int64_t first_k = block * kblock, last_k = view.kblocks == 1 ? K : std::min<int64_t>(first_k + kblock, K);
    for (int64_t panel = 0; panel < view.panels; ++panel) {
      const PanelEntry& e = view.entry_of(block, panel);
      const auto refuse = [&](const char* what) {
        corrupt("K block " + std::to_string(block) + ", panel " + std::to_string(panel) + ": " + what);
      };
      if (e.rows != rows_in_panel(shape, panel % view.panels_per_group)) refuse("wrong number of rows");
      if (e.column_offset != column || e.value_offset != value) refuse("wrong offset");
      uint64_t panel_columns = 0, panel_values = 0;
      for (int p = 1; p <= kPatterns; ++p) {
        if (e.count[p - 1] != 0 && p >> e.rows != 0) refuse("a pattern names a row that is not there");
        panel_columns += e.count[p - 1];
        panel_values += static_cast<uint64_t>(e.count[p - 1]) * static_cast<uint64_t>(pattern_rows(p));
      }
      if (panel_columns > columns - column || panel_values > values - value) refuse("counts out of range");
      std::fill(seen.begin() + first_k, seen.begin() + last_k, uint8_t{0});
      const uint16_t* index = view.index + column;
      for (int p = 1; p <= kPatterns; ++p) {
        const int count = e.count[p - 1];
        for (int i = 0; i < count; ++i) {
          if (index[i] < first_k || index[i] >= last_k) refuse("a column index is out of range");
          if (i > 0 && index[i] <= index[i - 1]) refuse("column indices do not increase");
          if (seen[index[i]]++ != 0) refuse("a column stands in two patterns");
        }
        index += count;
      }
      column += panel_columns;
      value += panel_values;
    }
  }
  if (column != columns || value != values) corrupt("panel: totals do not match");
  if (zeros(type, view.value, values) != values - header.nnz)
    corrupt("panel: the number of non-zero values does not match");
  return view;
}

void panel_unpack(const PanelView& view, float* weight) {
  const int64_t K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(view.shape.M() * K) * sizeof(float));
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    const int64_t row0 = view.row_of(panel);
    panel_visit(view, panel,
                [&](int64_t k, int row, float value) { weight[view.output_row(row0 + row) * K + k] = value; });
  }
}

void panel_sections(const PanelView& view, const void* blob, uint64_t (&offsets)[4]) {
  const void* starts[3] = {view.entry, view.index, view.value};
  for (int i = 0; i < 3; ++i)
    offsets[i] = static_cast<uint64_t>(static_cast<const uint8_t*>(starts[i]) - static_cast<const uint8_t*>(blob));
}

}  // namespace si
