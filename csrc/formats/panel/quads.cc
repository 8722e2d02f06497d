#include "formats/panel/quads.h"

#include <algorithm>
#include <cmath>

#include "formats/panel/order.h"

namespace si {

namespace {

struct QuadsLayout {
  SectionPlan plan;
  uint64_t entry, order, scale, row_sum, index, value;
};

QuadsLayout layout_of(const WeightShape& shape, bool ordered, uint64_t indices, uint64_t quads) {
  const auto M = static_cast<uint64_t>(shape.M());
  QuadsLayout layout{};
  layout.entry = layout.plan.add(static_cast<uint64_t>(panels_per_group(shape) * shape.groups), sizeof(PanelEntry));
  if (ordered) layout.order = layout.plan.add(M, sizeof(uint32_t));
  layout.scale = layout.plan.add(M, sizeof(float));
  layout.row_sum = layout.plan.add(M, sizeof(int32_t));
  layout.index = layout.plan.add(indices, sizeof(uint16_t));
  layout.value = layout.plan.add(quads, sizeof(Quad));
  return layout;
}

// Columns that indices name, one by one or in groups of g.
int64_t slots(const WeightShape& shape, int32_t g) { return (shape.K() + g - 1) / g; }

// Indices of a unit.
constexpr int unit_indices(int32_t g) { return g == 1 ? 4 : 1; }

// A weight as int8, row by row, with the scale of each output row.
struct Quantized {
  Buffer<float> scale;
  Buffer<int8_t> value;
};

si_status quantize(const float* weight, const WeightShape& shape, const float* given, Quantized* out) {
  const int64_t M = shape.M(), K = shape.K();
  SI_TRY(out->scale.allocate(M));
  SI_TRY(out->value.allocate(M * K));
  for (int64_t m = 0; m < M; ++m) {
    const float* from = weight + m * K;
    float most = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
      SI_REQUIRE(std::isfinite(from[k]), SI_ERR_ARGUMENT, "expected finite weights for int8 values, got ", from[k],
                 " in row ", m, ", column ", k, "; try float32");
      most = std::max(most, std::fabs(from[k]));
    }
    float scale = 1.0f;
    if (given != nullptr)
      scale = given[m];
    else if (most > 0.0f)
      scale = std::max(most / 127.0f, kLeastScale);
    SI_REQUIRE(sound_scale(scale), SI_ERR_ARGUMENT, "expected a scale from 2^-60 to 2^48 for each row, got ", scale,
               " for row ", m, given != nullptr ? "; try max|w| / 127 of the row" : "; try float32");
    out->scale[m] = scale;
    int8_t* to = out->value.data() + m * K;
    for (int64_t k = 0; k < K; ++k)
      to[k] = static_cast<int8_t>(std::clamp(std::nearbyint(from[k] / scale), -128.0f, 127.0f));
  }
  return SI_OK;
}

// What a panel stores: its slots pattern by pattern, in order.
class PanelSlots {
 public:
  [[nodiscard]] si_status allocate(const WeightShape& shape) {
    SI_TRY(pattern_.allocate(shape.K()));
    return list_.allocate(shape.K());
  }
  void find(const int8_t* value, const WeightShape& shape, int32_t g, const uint32_t* output_row, int rows) {
    const int64_t K = shape.K(), count = slots(shape, g);
    patterns_of(value, K, 0, K, output_row, rows, pattern_.data());
    if (g == 4)
      for (int64_t i = 0; i < count; ++i) {
        uint8_t any = 0;
        for (int64_t k = 4 * i; k < std::min(K, 4 * i + 4); ++k) any |= pattern_[k];
        pattern_[i] = any;
      }
    std::fill(begin_, begin_ + kPatterns + 2, 0);
    for (int64_t i = 0; i < count; ++i) ++begin_[pattern_[i] + 1];
    for (int p = 1; p <= kPatterns + 1; ++p) begin_[p] += begin_[p - 1];
    int64_t next[kPatterns + 1];
    std::copy(begin_, begin_ + kPatterns + 1, next);
    for (int64_t i = 0; i < count; ++i) list_[next[pattern_[i]]++] = static_cast<uint16_t>(i);
  }
  int64_t count(int pattern) const { return begin_[pattern + 1] - begin_[pattern]; }
  const uint16_t* list(int pattern) const { return list_.data() + begin_[pattern]; }
  int64_t units(int pattern, int32_t g) const { return (count(pattern) + unit_indices(g) - 1) / unit_indices(g); }

 private:
  Buffer<uint8_t> pattern_;
  Buffer<uint16_t> list_;
  int64_t begin_[kPatterns + 2];
};

struct QuadCounts {
  uint64_t indices, quads;
};

si_status count_quads(const int8_t* value, const WeightShape& shape, int32_t g, const Buffer<uint32_t>& order,
                      QuadCounts* out) {
  PanelSlots held;
  SI_TRY(held.allocate(shape));
  *out = {};
  for (int64_t panel = 0; panel < panels_per_group(shape) * shape.groups; ++panel) {
    held.find(value, shape, g, order.data() + first_position(shape, panel), rows_in_panel(shape, panel));
    for (int p = 1; p <= kPatterns; ++p) {
      const auto units = static_cast<uint64_t>(held.units(p, g));
      out->indices += units * static_cast<uint64_t>(unit_indices(g));
      out->quads += units * static_cast<uint64_t>(pattern_rows(p));
    }
  }
  return SI_OK;
}

// The values of a row that a unit multiplies; what its indices repeat, and columns past K, have none.
Quad quad_of(const int8_t* row, int64_t K, int32_t g, const uint16_t* list, int64_t count, int64_t unit) {
  Quad quad{};
  for (int64_t j = 0; j < 4; ++j) {
    if (g == 1 && unit * 4 + j >= count) break;
    const int64_t k = g == 1 ? list[unit * 4 + j] : list[unit] * int64_t{4} + j;
    if (k < K) quad.value[j] = row[k];
  }
  return quad;
}

}  // namespace

si_status quads_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  const int64_t M = shape.M(), K = shape.K();
  SI_REQUIRE(options.kblock <= 0 && options.kblock >= SI_KBLOCK_MANY_TOKENS, SI_ERR_ARGUMENT,
             "expected no K blocks with int8 values, got kblock ", options.kblock, "; try 0");
  SI_REQUIRE(options.g == 0 || options.g == 1 || options.g == 4, SI_ERR_ARGUMENT, "expected g of 1, 4 or 0, got ",
             options.g, "; try 0, which chooses");
  Quantized quantized;
  SI_TRY(quantize(weight, shape, options.scales, &quantized));
  const int8_t* value = quantized.value.data();
  const Tuning tuning = tuning_of(options.target != nullptr ? *options.target : host_target());
  Buffer<uint32_t> order;
  bool ordered = false;
  PanelCounts columns{};
  SI_TRY(order_of(value, shape, tuning.row_order, &order, &ordered, &columns));

  int32_t g = options.g == 4 ? 4 : 1;
  QuadCounts counts{};
  SI_TRY(count_quads(value, shape, g, order, &counts));
  if (options.g == 0) {
    QuadCounts blocks{};
    SI_TRY(count_quads(value, shape, 4, order, &blocks));
    // Columns that lie together need no interleaving.
    if (blocks.quads <= counts.quads) g = 4, counts = blocks;
  }
  SI_REQUIRE(counts.indices <= UINT32_MAX && counts.quads <= UINT32_MAX, SI_ERR_ARGUMENT,
             "expected fewer than 2^32 indices for the panel format, got ", counts.indices);

  const QuadsLayout layout = layout_of(shape, ordered, counts.indices, counts.quads);
  BlobHeader header = make_header(SI_FORMAT_PANEL, shape);
  header.value_type = SI_I8;
  header.params[kParamRows] = kPanelRows;
  header.params[kParamGroup] = static_cast<uint32_t>(g);
  header.params[kParamIndexBits] = 16;
  header.params[kParamOrder] = ordered ? 1 : 0;
  header.counts[0] = counts.indices;
  header.counts[1] = counts.quads;
  for (const int8_t each : quantized.value) header.nnz += each != 0;
  SI_TRY(new_blob(header, layout.plan, out));
  if (ordered) std::copy(order.begin(), order.end(), out->at<uint32_t>(layout.order));
  auto* scale = out->at<float>(layout.scale);
  auto* row_sum = out->at<int32_t>(layout.row_sum);
  for (int64_t position = 0; position < M; ++position) {
    const int64_t row = order[position];
    scale[position] = quantized.scale[row];
    for (int64_t k = 0; k < K; ++k) row_sum[position] += value[row * K + k];
  }

  auto* entry = out->at<PanelEntry>(layout.entry);
  auto* index = out->at<uint16_t>(layout.index);
  auto* quad = out->at<Quad>(layout.value);
  uint32_t index_offset = 0, quad_offset = 0;
  PanelSlots held;
  SI_TRY(held.allocate(shape));
  for (int64_t panel = 0; panel < panels_per_group(shape) * shape.groups; ++panel) {
    PanelEntry& e = entry[panel];
    e.column_offset = index_offset;
    e.value_offset = quad_offset;
    e.rows = static_cast<uint16_t>(rows_in_panel(shape, panel));
    const uint32_t* output_row = order.data() + first_position(shape, panel);
    held.find(value, shape, g, output_row, e.rows);
    for (int p = 1; p <= kPatterns; ++p) {
      const int64_t count = held.count(p), units = held.units(p, g);
      const uint16_t* list = held.list(p);
      e.count[p - 1] = static_cast<uint16_t>(units);
      for (int64_t i = 0; i < units * unit_indices(g); ++i) index[index_offset++] = list[std::min(i, count - 1)];
      for (int64_t first = 0; first < units; first += kPanelGroup)
        for (int row = 0; row < kPanelRows; ++row) {
          if (!(p >> row & 1)) continue;
          for (int64_t unit = first; unit < std::min<int64_t>(first + kPanelGroup, units); ++unit)
            quad[quad_offset++] = quad_of(value + output_row[row] * K, K, g, list, count, unit);
        }
    }
  }
  seal_blob(out->data.get());
  return SI_OK;
}

namespace {

// The indices and values of one pattern of a panel, read while they are checked.
struct PatternCheck {
  const PanelView& view;
  const uint16_t* index;
  const Quad* quad;
  int count, pattern;

  const Quad& at(int unit, int rank) const {
    const int first = unit / kPanelGroup * kPanelGroup, group = std::min(kPanelGroup, count - first);
    return quad[first * pattern_rows(pattern) + rank * group + unit - first];
  }

  // "" where all is well. `seen` has a place for each slot of the panel.
  const char* fault(uint8_t* seen) const {
    const int per_unit = unit_indices(view.g), indices = count * per_unit;
    const int64_t limit = slots(view.shape, view.g);
    bool repeats = false;
    for (int i = 0; i < indices; ++i) {
      if (index[i] >= limit) return "a column index is out of range";
      const bool last_unit = i / per_unit == count - 1;
      const bool repeat = i % per_unit != 0 && last_unit && index[i] == index[i - 1];
      if (repeats && !repeat) return "a column follows one that is repeated";
      if (!repeat && i > 0 && index[i] <= index[i - 1]) return "column indices do not increase";
      if (!repeat && seen[index[i]]++ != 0) return "a column stands in two patterns";
      repeats = repeat;
      if (const char* found = value_fault(i / per_unit, i % per_unit, repeat); *found != '\0') return found;
    }
    return "";
  }

  const char* value_fault(int unit, int column, bool repeat) const {
    for (int rank = 0; rank < pattern_rows(pattern); ++rank) {
      const Quad& q = at(unit, rank);
      if (view.g == 1) {
        if (repeat != (q.value[column] == 0)) return "a stored value is zero, or one of a repeated column is not";
        continue;
      }
      bool any = false;
      for (int j = 0; j < 4; ++j) {
        any = any || q.value[j] != 0;
        if (q.value[j] != 0 && index[unit] * 4 + j >= view.shape.K()) return "a value stands past the last column";
      }
      if (!any) return "a stored block is zero";
    }
    return "";
  }
};

// The scales are sound and the sums of the rows are those of their values.
si_status check_rows(const PanelView& view, uint64_t nnz) {
  uint64_t found = 0;
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    int32_t sum[kPanelRows] = {};
    quads_visit(view, panel, [&](int64_t, int row, int8_t value) {
      sum[row] += value;
      ++found;
    });
    for (int row = 0; row < view.entry[panel].rows; ++row) {
      const int64_t position = view.row_of(panel) + row;
      if (view.row_sum[position] != sum[row]) return corrupt("panel: the sum of row ", position, " does not match");
      if (!sound_scale(view.scale[position])) return corrupt("panel: the scale of row ", position, " is out of range");
    }
  }
  if (found != nnz) return corrupt("panel: the number of non-zero values does not match");
  return SI_OK;
}

}  // namespace

si_status quads_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  PanelView view{};
  view.shape = shape_of(header);
  if (header.params[kParamRows] != kPanelRows) return corrupt("panel: unknown R ", header.params[kParamRows]);
  const uint32_t g = header.params[kParamGroup];
  if (g != 1 && g != 4) return corrupt("panel: unknown g ", g);
  if (header.params[kParamIndexBits] != 16)
    return corrupt("panel: unknown index width ", header.params[kParamIndexBits]);
  if (header.params[kParamKBlock] != 0) return corrupt("panel: int8 values in K blocks");
  if (header.params[kParamOrder] > 1) return corrupt("panel: bad row order ", header.params[kParamOrder]);
  const bool ordered = header.params[kParamOrder] == 1;
  for (int i = kParamOrder + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("panel: a reserved parameter is not zero");
  if (view.shape.K() > kPanelMaxK) return corrupt("panel: more than 65535 columns");
  view.columns = header.counts[0];
  view.values = header.counts[1];
  if (view.columns > UINT32_MAX || view.values > UINT32_MAX) return corrupt("panel: counts out of range");
  const QuadsLayout layout = layout_of(view.shape, ordered, view.columns, view.values);
  if (layout.plan.total() != bytes) return corrupt("panel: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));

  const auto* first = static_cast<const uint8_t*>(blob);
  view.panels_per_group = panels_per_group(view.shape);
  view.panels = view.panels_per_group * view.shape.groups;
  view.kblocks = 1;
  view.entry = reinterpret_cast<const PanelEntry*>(first + layout.entry);
  view.order = ordered ? reinterpret_cast<const uint32_t*>(first + layout.order) : nullptr;
  view.index = reinterpret_cast<const uint16_t*>(first + layout.index);
  view.value_type = SI_I8;
  view.value = first + layout.value;
  view.g = static_cast<int32_t>(g);
  view.scale = reinterpret_cast<const float*>(first + layout.scale);
  view.row_sum = reinterpret_cast<const int32_t*>(first + layout.row_sum);
  if (ordered) SI_TRY(check_order(view));

  uint64_t index = 0, quad = 0;
  Buffer<uint8_t> seen;
  SI_TRY(seen.allocate(slots(view.shape, view.g)));
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    const PanelEntry& e = view.entry[panel];
    const auto refuse = [&](const char* what) { return corrupt("panel ", panel, ": ", what); };
    if (e.rows != rows_in_panel(view.shape, panel)) return refuse("wrong number of rows");
    if (e.column_offset != index || e.value_offset != quad) return refuse("wrong offset");
    std::fill(seen.begin(), seen.end(), uint8_t{0});
    for (int p = 1; p <= kPatterns; ++p) {
      const uint64_t count = e.count[p - 1];
      if (count == 0) continue;
      if (p >> e.rows != 0) return refuse("a pattern names a row that is not there");
      const uint64_t indices = count * static_cast<uint64_t>(unit_indices(view.g));
      const uint64_t quads = count * static_cast<uint64_t>(pattern_rows(p));
      if (indices > view.columns - index || quads > view.values - quad) return refuse("counts out of range");
      const PatternCheck check{view, view.index + index, view.value_as<Quad>() + quad, static_cast<int>(count), p};
      if (const char* fault = check.fault(seen.data()); *fault != '\0') return refuse(fault);
      index += indices;
      quad += quads;
    }
  }
  if (index != view.columns || quad != view.values) return corrupt("panel: totals do not match");
  SI_TRY(check_rows(view, header.nnz));
  *out = view;
  return SI_OK;
}

}  // namespace si
