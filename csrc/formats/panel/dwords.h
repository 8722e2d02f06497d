// Panels whose values stand in dwords: four int8 of one row (quads.h), or two bfloat16 (pairs.h). How their columns
// fall into units, and what of that is checked. Layout: csrc/formats/panel/LAYOUT.md.
#pragma once

#include <algorithm>
#include <type_traits>

#include "formats/panel/counts.h"
#include "formats/panel/order.h"

namespace si {

// Values of a dword.
template <class Dword>
constexpr int kValues = sizeof(Dword::value) / sizeof(Dword::value[0]);

// Columns that an index stands for: at g = 4 a group of four consecutive ones.
constexpr int index_columns(int32_t g) { return g == 4 ? 4 : 1; }

// Columns that indices name, one by one or in groups.
inline int64_t slots(const WeightShape& shape, int32_t g) {
  return (shape.K() + index_columns(g) - 1) / index_columns(g);
}

// Indices of a unit.
template <class Dword>
constexpr int unit_indices(int32_t g) {
  return kValues<Dword> / index_columns(g);
}

// Whether a value may be stored for a column of its own. A bfloat16 below 2^-126 counts as zero.
inline bool is_stored(int8_t value) { return value != 0; }
inline bool is_stored(uint16_t bfloat16) { return (bfloat16 & 0x7f80) != 0; }

// What a panel stores: its slots pattern by pattern, in order.
class PanelSlots {
 public:
  [[nodiscard]] si_status allocate(const WeightShape& shape) {
    SI_TRY(pattern_.allocate(shape.K()));
    return list_.allocate(shape.K());
  }
  template <class T>
  void find(const T* value, const WeightShape& shape, int32_t g, const uint32_t* output_row, int rows) {
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
  template <class Dword>
  int64_t units(int pattern, int32_t g) const {
    return (count(pattern) + unit_indices<Dword>(g) - 1) / unit_indices<Dword>(g);
  }

 private:
  Buffer<uint8_t> pattern_;
  Buffer<uint16_t> list_;
  int64_t begin_[kPatterns + 2];
};

struct DwordCounts {
  uint64_t indices, dwords;
};

template <class Dword, class T>
si_status count_dwords(const T* value, const WeightShape& shape, int32_t g, const Buffer<uint32_t>& order,
                       DwordCounts* out) {
  PanelSlots held;
  SI_TRY(held.allocate(shape));
  *out = {};
  for (int64_t panel = 0; panel < panels_per_group(shape) * shape.groups; ++panel) {
    held.find(value, shape, g, order.data() + first_position(shape, panel), rows_in_panel(shape, panel));
    for (int p = 1; p <= kPatterns; ++p) {
      const auto units = static_cast<uint64_t>(held.template units<Dword>(p, g));
      out->indices += units * static_cast<uint64_t>(unit_indices<Dword>(g));
      out->dwords += units * static_cast<uint64_t>(pattern_rows(p));
    }
  }
  SI_REQUIRE(out->indices <= UINT32_MAX && out->dwords <= UINT32_MAX, SI_ERR_ARGUMENT,
             "expected fewer than 2^32 indices for the panel format, got ", out->indices);
  return SI_OK;
}

// The values of a row that a unit multiplies; what its indices repeat, and columns past K, have none.
template <class Dword, class T>
Dword dword_of(const T* row, int64_t K, int32_t g, const uint16_t* list, int64_t count, int64_t unit) {
  Dword dword{};
  for (int64_t j = 0; j < kValues<Dword>; ++j) {
    const int64_t at = unit * kValues<Dword> + j;
    if (g != 4 && at >= count) break;
    const int64_t k = g == 4 ? list[unit] * int64_t{4} + j : list[at];
    if (k < K) dword.value[j] = row[k];
  }
  return dword;
}

// Writes the panel table, the indices and the values.
template <class Dword, class T>
si_status fill_dwords(const T* value, const WeightShape& shape, int32_t g, const Buffer<uint32_t>& order,
                      PanelEntry* entry, uint16_t* index, Dword* dword) {
  uint32_t index_offset = 0, dword_offset = 0;
  PanelSlots held;
  SI_TRY(held.allocate(shape));
  for (int64_t panel = 0; panel < panels_per_group(shape) * shape.groups; ++panel) {
    PanelEntry& e = entry[panel];
    e.column_offset = index_offset;
    e.value_offset = dword_offset;
    e.rows = static_cast<uint16_t>(rows_in_panel(shape, panel));
    const uint32_t* output_row = order.data() + first_position(shape, panel);
    held.find(value, shape, g, output_row, e.rows);
    for (int p = 1; p <= kPatterns; ++p) {
      const int64_t count = held.count(p), units = held.template units<Dword>(p, g);
      const uint16_t* list = held.list(p);
      e.count[p - 1] = static_cast<uint16_t>(units);
      for (int64_t i = 0; i < units * unit_indices<Dword>(g); ++i) index[index_offset++] = list[std::min(i, count - 1)];
      for (int64_t first = 0; first < units; first += kPanelGroup)
        for (int row = 0; row < kPanelRows; ++row) {
          if (!(p >> row & 1)) continue;
          for (int64_t unit = first; unit < std::min<int64_t>(first + kPanelGroup, units); ++unit)
            dword[dword_offset++] =
                dword_of<Dword>(value + output_row[row] * shape.K(), shape.K(), g, list, count, unit);
        }
    }
  }
  return SI_OK;
}

// The sections of panels of dwords.
struct DwordsLayout {
  SectionPlan plan;
  uint64_t entry, order, index, value;
  uint64_t scale, row_sum;  // of quads alone
};

template <class Dword>
DwordsLayout dwords_layout(const WeightShape& shape, bool ordered, const DwordCounts& counts) {
  const auto M = static_cast<uint64_t>(shape.M());
  DwordsLayout layout{};
  layout.entry = layout.plan.add(static_cast<uint64_t>(panels_per_group(shape) * shape.groups), sizeof(PanelEntry));
  if (ordered) layout.order = layout.plan.add(M, sizeof(uint32_t));
  if (std::is_same_v<Dword, Quad>) {
    layout.scale = layout.plan.add(M, sizeof(float));
    layout.row_sum = layout.plan.add(M, sizeof(int32_t));
  }
  layout.index = layout.plan.add(counts.indices, sizeof(uint16_t));
  layout.value = layout.plan.add(counts.dwords, sizeof(Dword));
  return layout;
}

// A buffer that wants its seal, and of quads what belongs to each row.
template <class Dword, class T>
si_status new_dwords(const T* value, const WeightShape& shape, si_value_type type, int32_t g,
                     const Buffer<uint32_t>& order, bool ordered, const DwordCounts& counts, OwnedBlob* out) {
  const DwordsLayout layout = dwords_layout<Dword>(shape, ordered, counts);
  BlobHeader header = make_header(SI_FORMAT_PANEL, shape);
  header.value_type = static_cast<uint32_t>(type);
  header.params[kParamRows] = kPanelRows;
  header.params[kParamGroup] = static_cast<uint32_t>(g);
  header.params[kParamIndexBits] = 16;
  header.params[kParamOrder] = ordered ? 1 : 0;
  header.counts[0] = counts.indices;
  header.counts[1] = counts.dwords;
  for (int64_t i = 0; i < shape.M() * shape.K(); ++i) header.nnz += value[i] != 0;
  SI_TRY(new_blob(header, layout.plan, out));
  if (ordered) std::copy(order.begin(), order.end(), out->at<uint32_t>(layout.order));
  return fill_dwords(value, shape, g, order, out->at<PanelEntry>(layout.entry), out->at<uint16_t>(layout.index),
                     out->at<Dword>(layout.value));
}

// Checks what the header says of a panel of quads or pairs beside g, and fills in the view but for its sections.
inline si_status read_dwords_header(const BlobHeader& header, PanelView* out) {
  PanelView view{};
  view.shape = shape_of(header);
  if (header.params[kParamRows] != kPanelRows) return corrupt("panel: unknown R ", header.params[kParamRows]);
  if (header.params[kParamIndexBits] != 16)
    return corrupt("panel: unknown index width ", header.params[kParamIndexBits]);
  if (header.params[kParamKBlock] != 0) return corrupt("panel: quads or pairs in K blocks");
  if (header.params[kParamOrder] > 1) return corrupt("panel: bad row order ", header.params[kParamOrder]);
  for (int i = kParamOrder + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("panel: a reserved parameter is not zero");
  if (view.shape.K() > kPanelMaxK) return corrupt("panel: more than 65535 columns");
  view.columns = header.counts[0];
  view.values = header.counts[1];
  if (view.columns > UINT32_MAX || view.values > UINT32_MAX) return corrupt("panel: counts out of range");
  view.panels_per_group = panels_per_group(view.shape);
  view.panels = view.panels_per_group * view.shape.groups;
  view.kblocks = 1;
  view.value_type = static_cast<si_value_type>(header.value_type);
  view.g = static_cast<int32_t>(header.params[kParamGroup]);
  *out = view;
  return SI_OK;
}

// The indices and values of one pattern of a panel, read while they are checked.
template <class Dword>
struct PatternCheck {
  const PanelView& view;
  const uint16_t* index;
  const Dword* dword;
  int count, pattern;

  const Dword& at(int unit, int rank) const {
    const int first = unit / kPanelGroup * kPanelGroup, group = std::min(kPanelGroup, count - first);
    return dword[first * pattern_rows(pattern) + rank * group + unit - first];
  }

  // Whether all is well, but for columns of other patterns: the quick way to see it. Marks the columns in `seen`, and
  // adds their number.
  bool is_sound(uint8_t* seen, uint64_t* columns) const {
    const int per_unit = unit_indices<Dword>(view.g), whole = (count - 1) * per_unit;
    const int64_t limit = slots(view.shape, view.g);
    // The last unit may repeat its columns. What increases up to one that is in range is in range itself.
    bool repeats = false;
    int own = 0;
    for (int i = whole; i < whole + per_unit; ++i) {
      if (index[i] >= limit) return false;
      const bool repeat = i > whole && index[i] == index[i - 1];
      if ((repeats && !repeat) || (!repeat && i > 0 && index[i] <= index[i - 1])) return false;
      if (*value_fault(count - 1, i - whole, repeat) != '\0') return false;
      repeats = repeat;
      own += repeat ? 0 : 1;
    }
    if (count_falls(index, static_cast<uint64_t>(whole)) != 0) return false;
    for (int i = 0; i < whole + own; ++i) seen[index[i]] = 1;
    *columns += static_cast<uint64_t>(whole + own);
    if (view.g == 4) {
      for (int unit = 0; unit < count - 1; ++unit)
        if (*value_fault(unit, 0, false) != '\0') return false;
      return true;
    }
    // All values are stored ones but those of the repeats.
    const auto values = static_cast<uint64_t>(count * pattern_rows(pattern) * kValues<Dword>);
    using Value = std::remove_cv_t<std::remove_reference_t<decltype(Dword::value[0])>>;
    const auto missing = static_cast<uint64_t>((per_unit - own) * pattern_rows(pattern));
    return count_of<Value>(&dword->value[0], values, [](Value value) { return !is_stored(value); }) == missing;
  }

  // "" where all is well. `seen` has a place for each slot of the panel.
  const char* fault(uint8_t* seen) const {
    const int per_unit = unit_indices<Dword>(view.g), indices = count * per_unit;
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
      const Dword& d = at(unit, rank);
      if (view.g != 4) {
        if (repeat ? d.value[column] != 0 : !is_stored(d.value[column]))
          return "a stored value is zero, or one of a repeated column is not";
        continue;
      }
      bool any = false;
      for (int j = 0; j < kValues<Dword>; ++j) {
        any = any || d.value[j] != 0;
        if (d.value[j] != 0 && index[unit] * 4 + j >= view.shape.K()) return "a value stands past the last column";
      }
      if (!any) return "a stored block is zero";
    }
    return "";
  }
};

// Checks the panel table, the indices and the values of a view whose sections have the sizes of its counts.
template <class Dword>
si_status check_dwords(const PanelView& view) {
  uint64_t index = 0, dword = 0;
  Buffer<uint8_t> seen;
  SI_TRY(seen.allocate(slots(view.shape, view.g)));
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    const PanelEntry& e = view.entry[panel];
    const auto refuse = [&](const char* what) { return corrupt("panel ", panel, ": ", what); };
    if (e.rows != rows_in_panel(view.shape, panel)) return refuse("wrong number of rows");
    if (e.column_offset != index || e.value_offset != dword) return refuse("wrong offset");
    std::fill(seen.begin(), seen.end(), uint8_t{0});
    uint64_t columns = 0;
    bool is_sound = true;
    const uint64_t first_index = index, first_dword = dword;
    for (int p = 1; p <= kPatterns; ++p) {
      const uint64_t count = e.count[p - 1];
      if (count == 0) continue;
      if (p >> e.rows != 0) return refuse("a pattern names a row that is not there");
      const uint64_t indices = count * static_cast<uint64_t>(unit_indices<Dword>(view.g));
      const uint64_t dwords = count * static_cast<uint64_t>(pattern_rows(p));
      if (indices > view.columns - index || dwords > view.values - dword) return refuse("counts out of range");
      const PatternCheck<Dword> check{view, view.index + index, view.value_as<Dword>() + dword, static_cast<int>(count),
                                      p};
      is_sound = is_sound && check.is_sound(seen.data(), &columns);
      index += indices;
      dword += dwords;
    }
    if (is_sound && count_marks(seen.data(), seen.size()) == columns) continue;
    // What is wrong, and where: the first fault.
    std::fill(seen.begin(), seen.end(), uint8_t{0});
    index = first_index;
    dword = first_dword;
    for (int p = 1; p <= kPatterns; ++p) {
      const auto count = static_cast<int>(e.count[p - 1]);
      const PatternCheck<Dword> check{view, view.index + index, view.value_as<Dword>() + dword, count, p};
      if (const char* fault = check.fault(seen.data()); *fault != '\0') return refuse(fault);
      index += static_cast<uint64_t>(count * unit_indices<Dword>(view.g));
      dword += static_cast<uint64_t>(count * pattern_rows(p));
    }
  }
  if (index != view.columns || dword != view.values) return corrupt("panel: totals do not match");
  return SI_OK;
}

// The view of a buffer of panels whose g is known, and what is wrong with it but for what its rows and values sum up
// to.
template <class Dword>
si_status open_dwords(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  PanelView view{};
  SI_TRY(read_dwords_header(header, &view));
  const bool ordered = header.params[kParamOrder] == 1;
  const DwordsLayout layout = dwords_layout<Dword>(view.shape, ordered, {view.columns, view.values});
  if (layout.plan.total() != bytes) return corrupt("panel: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));
  const auto* first = static_cast<const uint8_t*>(blob);
  view.entry = reinterpret_cast<const PanelEntry*>(first + layout.entry);
  view.order = ordered ? reinterpret_cast<const uint32_t*>(first + layout.order) : nullptr;
  view.index = reinterpret_cast<const uint16_t*>(first + layout.index);
  view.value = first + layout.value;
  if (std::is_same_v<Dword, Quad>) {
    view.scale = reinterpret_cast<const float*>(first + layout.scale);
    view.row_sum = reinterpret_cast<const int32_t*>(first + layout.row_sum);
  }
  if (ordered) SI_TRY(check_order(view));
  SI_TRY(check_dwords<Dword>(view));
  *out = view;
  return SI_OK;
}

}  // namespace si
