// Row-pattern panels: the CPU format. Layout and the reasons for it: csrc/formats/panel/LAYOUT.md.
#pragma once

#include "formats/blob.h"
#include "formats/half.h"
#include "formats/units.h"

namespace si {

constexpr int kPanelRows = 4;                     // R
constexpr int kPatterns = (1 << kPanelRows) - 1;  // 1 .. 15; the empty pattern is not stored
constexpr int kPanelGroup = 16;                   // columns whose values stand together
constexpr int64_t kPanelMaxK = 65535;             // a column index, and a pattern's count, fit 16 bits
constexpr int32_t kPanelMaxKBlock = 65536;        // one block holds every K

// Places in the header's params.
enum PanelParam { kParamRows, kParamGroup, kParamIndexBits, kParamKBlock, kParamOrder };

// A value as bfloat16: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

// Four int8 values of one row. At g = 1 they are those of any four columns of one pattern, at g = 4 of four consecutive
// ones.
struct Quad {
  int8_t value[4];
};

// Two bfloat16 values of one row, those of any two columns of one pattern.
struct Pair {
  uint16_t value[2];
};

// What a panel holds of one K block.
struct PanelEntry {
  uint32_t column_offset;     // into the indices
  uint32_t value_offset;      // into the values
  uint16_t rows;              // 1 .. R: fewer in the last panel of a group of output rows
  uint16_t count[kPatterns];  // columns; of quads and pairs: units, of as many indices as values, or at g = 4 of one
};
static_assert(sizeof(PanelEntry) == 40, "the panel table is part of the file format");

// Pointers into a validated blob.
struct PanelView {
  WeightShape shape;
  int64_t panels_per_group;
  int64_t panels;
  int32_t kblock;           // 0: all of K is one block
  int64_t kblocks;          // ceil(K / kblock)
  const PanelEntry* entry;  // [kblocks][panels]
  const uint32_t* order;    // [M]: the output row at each position; null where every row stands at its own
  const uint16_t* index;
  si_value_type value_type;  // F32, BF16 or I8
  const void* value;
  uint64_t columns;  // indices
  uint64_t values;   // quads, pairs
  int32_t g;         // int8: columns that an index stands for, 1 or 4; bfloat16: 2 in pairs; else 0
  // Of int8 values alone:
  const float* scale;      // [M], by position
  const int32_t* row_sum;  // [M], by position: the sum of the row's values

  SI_INLINE bool pairs() const { return is_type(value_type, SI_BF16) && g == 2; }
  // The values as what they are: float, BFloat16, Quad or Pair.
  template <class Value>
  SI_INLINE const Value* value_as() const {
    return static_cast<const Value*>(value);
  }

  // The position of a panel's first row. Kernels count rows by position; drivers store them where they belong.
  SI_INLINE int64_t row_of(int64_t panel) const {
    const int64_t group = panel / panels_per_group;
    return group * (shape.M() / shape.groups) + (panel % panels_per_group) * kPanelRows;
  }
  SI_INLINE const PanelEntry& entry_of(int64_t block, int64_t panel) const { return entry[block * panels + panel]; }
  // The output row at a position.
  SI_INLINE int64_t output_row(int64_t position) const { return order == nullptr ? position : order[position]; }
};

// Values as float32, as bfloat16 (rounded to the nearest, ties to even), in pairs of those (pairs.h), or as int8 with a
// scale a row (quads.h).
[[nodiscard]] si_status panel_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                   OwnedBlob* out);
// Checks every invariant of the layout; the header has been checked.
[[nodiscard]] si_status panel_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out);
void panel_unpack(const PanelView& view, float* weight);
void panel_describe(const PanelView& view, const void* blob, si_weight_info* info);

inline Units panel_units(const PanelView& view) {
  return {view.panels_per_group, kPanelRows, view.order, view.kblock, view.kblocks, view.columns, view.values};
}
int64_t panel_work(const PanelView& view, int64_t panel);

// The number of rows in a pattern, a compile-time constant in the kernels.
SI_INLINE constexpr int pattern_rows(int pattern) {
  return (pattern & 1) + (pattern >> 1 & 1) + (pattern >> 2 & 1) + (pattern >> 3 & 1);
}

SI_INLINE float panel_value(float value) { return value; }
SI_INLINE float panel_value(BFloat16 value) { return bfloat16_to_float(value.bits); }

template <class Value, class Visit>
void panel_visit_as(const PanelView& view, int64_t panel, Visit&& visit) {
  for (int64_t block = 0; block < view.kblocks; ++block) {
    const PanelEntry& entry = view.entry_of(block, panel);
    const uint16_t* index = view.index + entry.column_offset;
    const Value* value = view.value_as<Value>() + entry.value_offset;
    for (int pattern = 1; pattern <= kPatterns; ++pattern) {
      const int count = entry.count[pattern - 1];
      for (int first = 0; first < count; first += kPanelGroup) {
        const int group = count - first < kPanelGroup ? count - first : kPanelGroup;
        for (int row = 0; row < kPanelRows; ++row) {
          if (!(pattern >> row & 1)) continue;
          for (int i = 0; i < group; ++i) visit(static_cast<int64_t>(index[first + i]), row, panel_value(*value++));
        }
      }
      index += count;
    }
  }
}

// Calls visit(k, row in panel, int8 value, or bits of a bfloat16) for every value of a panel of quads or pairs that is
// not zero.
template <class Dword, class Visit>
void dwords_visit(const PanelView& view, int64_t panel, Visit&& visit) {
  constexpr int kValues = sizeof(Dword::value) / sizeof(Dword::value[0]);
  const PanelEntry& entry = view.entry_of(0, panel);
  const uint16_t* index = view.index + entry.column_offset;
  const Dword* value = view.value_as<Dword>() + entry.value_offset;
  const int indices = view.g == 4 ? 1 : kValues;
  for (int pattern = 1; pattern <= kPatterns; ++pattern) {
    const int count = entry.count[pattern - 1];
    for (int first = 0; first < count; first += kPanelGroup) {
      const int group = count - first < kPanelGroup ? count - first : kPanelGroup;
      for (int row = 0; row < kPanelRows; ++row) {
        if (!(pattern >> row & 1)) continue;
        for (int i = 0; i < group; ++i, ++value)
          for (int j = 0; j < kValues; ++j) {
            if (value->value[j] == 0) continue;
            const int at = (first + i) * indices;
            visit(static_cast<int64_t>(view.g == 4 ? index[at] * 4 + j : index[at + j]), row, value->value[j]);
          }
      }
    }
    index += count * indices;
  }
}

// Calls visit(k, row in panel, value) for every stored value of a panel: K block by K block, in each pattern by
// pattern.
template <class Visit>
void panel_visit(const PanelView& view, int64_t panel, Visit&& visit) {
  if (is_type(view.value_type, SI_I8)) {
    const float* scale = view.scale + view.row_of(panel);
    return dwords_visit<Quad>(view, panel, [&](int64_t k, int row, int8_t q) { visit(k, row, q * scale[row]); });
  }
  if (view.pairs())
    return dwords_visit<Pair>(view, panel,
                              [&](int64_t k, int row, uint16_t bits) { visit(k, row, bfloat16_to_float(bits)); });
  if (is_type(view.value_type, SI_BF16))
    panel_visit_as<BFloat16>(view, panel, visit);
  else if (is_type(view.value_type, SI_F32))
    panel_visit_as<float>(view, panel, visit);
}

// Calls visit(m, k, value) for every stored value.
template <class Visit>
void panel_visit_all(const PanelView& view, Visit&& visit) {
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    const int64_t row = view.row_of(panel);
    panel_visit(view, panel, [&](int64_t k, int r, float value) { visit(view.output_row(row + r), k, value); });
  }
}

}  // namespace si
