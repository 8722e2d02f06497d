#include "formats/panel/panel.h"

#include <algorithm>
#include <cstring>

#include "core/buffer.h"
#include "core/tuning.h"
#include "formats/panel/counts.h"
#include "formats/panel/kblock.h"
#include "formats/panel/order.h"
#include "formats/panel/pairs.h"
#include "formats/panel/quads.h"
#include "formats/values.h"

namespace si {

namespace {

struct Layout {
  SectionPlan plan;
  uint64_t entry, order, index, value;
};

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

uint64_t zeros(si_value_type type, const void* values, uint64_t count) {
  if (type == SI_F32)
    return count_of<uint32_t>(static_cast<const float*>(values), count, [](float v) { return v == 0.0f; });
  return count_of<uint16_t>(static_cast<const BFloat16*>(values), count,
                            [](BFloat16 value) { return (value.bits & 0x7fff) == 0; });
}

}  // namespace

si_status panel_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  const int64_t K = shape.K();
  const si_value_type type = options.value_type;
  int32_t kblock = options.kblock;
  SI_REQUIRE(K <= kPanelMaxK, SI_ERR_ARGUMENT, "expected at most 65535 input columns for the panel format, got ", K,
             "; try the csr format");
  if (is_type(type, SI_I8)) return quads_pack(weight, shape, options, out);
  if (is_type(type, SI_BF16) && options.g == 2) return pairs_pack(weight, shape, options, out);
  SI_REQUIRE(options.scales == nullptr && options.g == 0, SI_ERR_ARGUMENT,
             "expected scales and g for int8 values, or g of 2 for pairs of bfloat16, got g of ", options.g,
             options.scales != nullptr ? " and scales with " : " with ", type_name(type), "; try value_type int8");
  const bool automatic = kblock == SI_KBLOCK_AUTO || kblock == SI_KBLOCK_MANY_TOKENS;
  SI_REQUIRE(automatic || (kblock >= 0 && kblock % kPanelGroup == 0 && kblock <= kPanelMaxKBlock), SI_ERR_ARGUMENT,
             "expected kblock to be 0 or a multiple of 16 up to 65536, got ", kblock, "; try 0, which makes one block");
  const Tuning tuning = tuning_of(options.target != nullptr ? *options.target : host_target());

  const int64_t per_group = panels_per_group(shape);
  const int64_t panels = per_group * shape.groups;
  // Row patterns are found anew for every count and for filling: cheaper than keeping one byte a column a panel.
  PanelCounts counts{};
  Buffer<uint32_t> order;
  bool ordered = false;
  SI_TRY(order_of(weight, shape, tuning.row_order, &order, &ordered, &counts));
  const uint64_t columns = counts.columns, values = counts.values;
  if (columns > UINT32_MAX || values > UINT32_MAX)
    return fail(SI_ERR_ARGUMENT, "expected fewer than 2^32 non-zeros for the panel format, got ", values);

  if (automatic) kblock = choose_kblock(tuning.kblock, shape, values, kblock == SI_KBLOCK_MANY_TOKENS);
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
  SI_TRY(new_blob(header, layout.plan, out));
  auto* entry = out->at<PanelEntry>(layout.entry);
  auto* index = out->at<uint16_t>(layout.index);
  auto* wide = out->at<float>(layout.value);
  auto* narrow = out->at<BFloat16>(layout.value);

  if (ordered) std::copy(order.begin(), order.end(), out->at<uint32_t>(layout.order));

  uint32_t column_offset = 0, value_offset = 0;
  const int64_t blocks = kblocks(shape, kblock);
  Buffer<uint8_t> pattern;
  SI_TRY(pattern.allocate(K));
  Buffer<uint16_t> by_pattern;
  SI_TRY(by_pattern.allocate(K));
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first_k = block * kblock, last_k = blocks == 1 ? K : std::min<int64_t>(first_k + kblock, K);
    for (int64_t panel = 0; panel < panels; ++panel) {
      PanelEntry& e = entry[block * panels + panel];
      e.column_offset = column_offset;
      e.value_offset = value_offset;
      e.rows = static_cast<uint16_t>(rows_in_panel(shape, panel));
      const uint32_t* output_row = order.data() + first_position(shape, panel);
      patterns_of(weight, K, first_k, last_k, output_row, e.rows, pattern.data());
      // The columns of each pattern, in order; those of the empty one are first and not stored.
      int64_t ends[kPatterns + 1] = {};
      for (int64_t k = 0; k < last_k - first_k; ++k) ++ends[pattern[k]];
      for (int p = 1; p <= kPatterns; ++p) ends[p] += ends[p - 1];
      for (int64_t k = last_k - 1; k >= first_k; --k)
        by_pattern[--ends[pattern[k - first_k]]] = static_cast<uint16_t>(k);
      // Now they are where each begins.
      for (int p = 1; p <= kPatterns; ++p) {
        const uint16_t* list = by_pattern.data() + ends[p];
        const auto count = static_cast<uint32_t>((p < kPatterns ? ends[p + 1] : last_k - first_k) - ends[p]);
        e.count[p - 1] = static_cast<uint16_t>(count);
        if (count == 0) continue;
        SI_TRY(check_unchanged(count <= columns - column_offset &&
                               count * static_cast<uint64_t>(pattern_rows(p)) <= values - value_offset));
        std::memcpy(index + column_offset, list, count * sizeof(uint16_t));
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
  SI_TRY(check_unchanged(column_offset == columns && value_offset == values));
  // Rounding may have made a zero of a value.
  out->at<BlobHeader>(0)->nnz = values - zeros(type, out->at<void>(layout.value), values);
  seal_blob(out->data.get());
  return SI_OK;
}

si_status check_order(const PanelView& view) {
  const int64_t M = view.shape.M(), group_rows = M / view.shape.groups;
  Buffer<uint8_t> seen;
  SI_TRY(seen.allocate(M));
  for (int64_t position = 0; position < M; ++position) {
    const uint32_t row = view.order[position];
    if (row >= M || row / group_rows != position / group_rows || seen[row] != 0)
      return corrupt("panel: the row order is no permutation of its group's rows");
    seen[row] = 1;
  }
  return SI_OK;
}

si_status panel_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  const WeightShape shape = shape_of(header);
  const int64_t K = shape.K();
  const auto type = static_cast<si_value_type>(header.value_type);
  if (is_type(type, SI_I8)) return quads_validate(header, blob, bytes, out);
  if (is_type(type, SI_BF16) && header.params[kParamGroup] == 2) return pairs_validate(header, blob, bytes, out);
  if (type != SI_F32 && type != SI_BF16) return corrupt("panel: unknown value type ", header.value_type);
  if (header.params[kParamRows] != kPanelRows) return corrupt("panel: unknown R ", header.params[kParamRows]);
  if (header.params[kParamGroup] != 1) return corrupt("panel: unknown g ", header.params[kParamGroup]);
  if (header.params[kParamIndexBits] != 16)
    return corrupt("panel: unknown index width ", header.params[kParamIndexBits]);
  if (header.params[kParamOrder] > 1) return corrupt("panel: bad row order ", header.params[kParamOrder]);
  const bool ordered = header.params[kParamOrder] == 1;
  for (int i = kParamOrder + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("panel: a reserved parameter is not zero");
  if (K > kPanelMaxK) return corrupt("panel: more than 65535 columns");
  const uint32_t kblock = header.params[kParamKBlock];
  if (kblock % kPanelGroup != 0 || kblock > kPanelMaxKBlock) return corrupt("panel: bad K block ", kblock);
  const uint64_t columns = header.counts[0], values = header.counts[1];
  if (columns > UINT32_MAX || values > UINT32_MAX || header.nnz > values) return corrupt("panel: counts out of range");
  const Layout layout = layout_of(shape, static_cast<int32_t>(kblock), type, ordered, columns, values);
  if (layout.plan.total() != bytes) return corrupt("panel: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));

  const PanelView view = view_of(shape, static_cast<int32_t>(kblock), type, ordered, columns, values, layout,
                                 static_cast<const uint8_t*>(blob));
  if (ordered) SI_TRY(check_order(view));
  uint64_t column = 0, value = 0;
  Buffer<uint8_t> seen;
  SI_TRY(seen.allocate(K));
  for (int64_t block = 0; block < view.kblocks; ++block) {
    const int64_t first_k = block * kblock, last_k = view.kblocks == 1 ? K : std::min<int64_t>(first_k + kblock, K);
    for (int64_t panel = 0; panel < view.panels; ++panel) {
      const PanelEntry& e = view.entry_of(block, panel);
      const auto refuse = [&](const char* what) { return corrupt("K block ", block, ", panel ", panel, ": ", what); };
      if (e.rows != rows_in_panel(shape, panel)) return refuse("wrong number of rows");
      if (e.column_offset != column || e.value_offset != value) return refuse("wrong offset");
      uint64_t panel_columns = 0, panel_values = 0;
      for (int p = 1; p <= kPatterns; ++p) {
        if (e.count[p - 1] != 0 && p >> e.rows != 0) return refuse("a pattern names a row that is not there");
        panel_columns += e.count[p - 1];
        panel_values += static_cast<uint64_t>(e.count[p - 1]) * static_cast<uint64_t>(pattern_rows(p));
      }
      if (panel_columns > columns - column || panel_values > values - value) return refuse("counts out of range");
      std::fill(seen.begin() + first_k, seen.begin() + last_k, uint8_t{0});
      // Loops without a way out, over whole vectors, take a fraction of the time. Where patterns meet, columns may
      // fall.
      const uint16_t *const first = view.index + column, *index = first;
      int64_t may_fall = 0;
      for (int p = 1; p <= kPatterns; ++p) {
        const int count = e.count[p - 1];
        if (count == 0) continue;
        if (index != first && index[0] <= index[-1]) ++may_fall;
        if (index[0] < first_k || index[count - 1] >= last_k) return refuse("a column index is out of range");
        index += count;
      }
      if (panel_columns > kPanelMaxK || count_falls(first, panel_columns) != may_fall)
        return refuse("column indices do not increase");
      for (uint64_t i = 0; i < panel_columns; ++i) seen[first[i]] = 1;
      // A column that stands twice is one fewer that was seen.
      if (count_marks(seen.data() + first_k, last_k - first_k) != panel_columns)
        return refuse("a column stands in two patterns");
      column += panel_columns;
      value += panel_values;
    }
  }
  if (column != columns || value != values) return corrupt("panel: totals do not match");
  if (zeros(type, view.value, values) != values - header.nnz)
    return corrupt("panel: the number of non-zero values does not match");
  *out = view;
  return SI_OK;
}

int64_t panel_work(const PanelView& view, int64_t panel) {
  if (panel == view.panels) return static_cast<int64_t>(view.values);
  uint64_t values = 0;
  for (int64_t block = 0; block < view.kblocks; ++block)
    values += view.entry_of(block, panel).value_offset - view.entry_of(block, 0).value_offset;
  return static_cast<int64_t>(values);
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

void panel_describe(const PanelView& view, const void* blob, si_weight_info* info) {
  if (view.value_type == SI_I8)
    section_offsets(blob, info->sections, view.entry, view.index, view.value, view.scale);
  else
    section_offsets(blob, info->sections, view.entry, view.index, view.value);
}

}  // namespace si
