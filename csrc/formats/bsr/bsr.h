// Square blocks of outputs by inputs, each stored whole. Layout and the reasons for it: csrc/formats/bsr/LAYOUT.md.
#pragma once

#include <algorithm>

#include "formats/blob.h"
#include "formats/half.h"
#include "formats/units.h"

namespace si {

// How a weight is cut: block rows never straddle a group, block columns never a tap.
struct BsrGrid {
  int64_t block;             // B, the edge
  int64_t taps;              // kernel rows x kernel columns; 1 for linear
  int64_t channels;          // of a group; K for linear
  int64_t channel_blocks;    // ceil(channels / B)
  int64_t group_rows;        // M / groups
  int64_t group_row_blocks;  // ceil(M / groups / B)
  int64_t row_blocks;        // of all groups
  SI_INLINE int64_t column_blocks() const { return taps * channel_blocks; }
  // The first output row of a block row, and how many rows it has.
  SI_INLINE int64_t first_row(int64_t row_block) const {
    return row_block / group_row_blocks * group_rows + row_block % group_row_blocks * block;
  }
  SI_INLINE int64_t rows_in(int64_t row_block) const {
    return std::min(block, group_rows - row_block % group_row_blocks * block);
  }
  SI_INLINE int64_t channels_in(int64_t column_block) const {
    return std::min(block, channels - column_block % channel_blocks * block);
  }
  // Column of the reshape to [M, K] of a block column's first channel; the next channel is `taps` further.
  SI_INLINE int64_t first_k(int64_t column_block) const {
    return column_block % channel_blocks * block * taps + column_block / channel_blocks;
  }
};

// Pointers into a validated blob.
struct BsrView {
  WeightShape shape;
  BsrGrid grid;
  si_value_type value_type;
  const uint32_t* row;     // [row_blocks + 1]: where each block row starts in `column` and `values`
  const uint32_t* column;  // block columns
  const void* values;      // [blocks][B][B]: output, input
  int64_t blocks;
};

[[nodiscard]] si_status bsr_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                 OwnedBlob* out);
// Checks every invariant of the layout; the header has been checked.
[[nodiscard]] si_status bsr_validate(const BlobHeader& header, const void* blob, size_t bytes, BsrView* out);
void bsr_unpack(const BsrView& view, float* weight);
void bsr_describe(const BsrView& view, const void* blob, si_weight_info* info);

// No tile kernel reads the format: its rows are units as any.
inline Units bsr_units(const BsrView& view) { return {view.shape.M() / view.shape.groups, 1, nullptr, 0, 1, 0, 0}; }
inline int64_t bsr_work(const BsrView&, int64_t) { return -1; }

// The value at an index of the values section.
static inline float bsr_value(const BsrView& view, int64_t at) {
  if (is_type(view.value_type, SI_F16)) return half_to_float(static_cast<const uint16_t*>(view.values)[at]);
  if (is_type(view.value_type, SI_BF16)) return bfloat16_to_float(static_cast<const uint16_t*>(view.values)[at]);
  return static_cast<const float*>(view.values)[at];
}

// Calls visit(m, k, value) for every element of every stored block that is no padding; value may be 0.
template <class Visit>
void bsr_visit_all(const BsrView& view, Visit&& visit) {
  const BsrGrid& grid = view.grid;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block)
    for (uint32_t i = view.row[row_block]; i < view.row[row_block + 1]; ++i) {
      const int64_t column = view.column[i], k = grid.first_k(column);
      for (int64_t r = 0; r < grid.rows_in(row_block); ++r)
        for (int64_t c = 0; c < grid.channels_in(column); ++c)
          visit(grid.first_row(row_block) + r, k + c * grid.taps,
                bsr_value(view, (i * grid.block + r) * grid.block + c));
    }
}

}  // namespace si
