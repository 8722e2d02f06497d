// How the rows of a weight fall into panels, and the order in which they are packed. For every type of weight.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/buffer.h"
#include "core/tuning.h"
#include "formats/panel/panel.h"

namespace si {

inline int64_t panels_per_group(const WeightShape& shape) {
  return (shape.M() / shape.groups + kPanelRows - 1) / kPanelRows;
}

inline int64_t first_position(const WeightShape& shape, int64_t panel) {
  const int64_t per_group = panels_per_group(shape);
  return panel / per_group * (shape.M() / shape.groups) + panel % per_group * kPanelRows;
}

inline int rows_in_panel(const WeightShape& shape, int64_t panel) {
  const int64_t left = shape.M() / shape.groups - panel % panels_per_group(shape) * kPanelRows;
  return static_cast<int>(left < kPanelRows ? left : kPanelRows);
}

// The patterns of columns [first, last): bit r set when row r of the panel, whose output rows are given, is non-zero
// there.
template <class T>
void patterns_of(const T* weight, int64_t K, int64_t first, int64_t last, const uint32_t* output_row, int rows,
                 uint8_t* pattern) {
  std::memset(pattern, 0, static_cast<size_t>(last - first));
  for (int row = 0; row < rows; ++row) {
    const T* from = weight + output_row[row] * K + first;
    for (int64_t k = 0; k < last - first; ++k) pattern[k] |= static_cast<uint8_t>((from[k] != T{0}) << row);
  }
}

struct PanelCounts {
  uint64_t columns, values;
};

// What the panels hold with the rows in this order.
template <class T>
si_status count_panels(const T* weight, const WeightShape& shape, const Buffer<uint32_t>& order, PanelCounts* out) {
  const int64_t K = shape.K();
  Buffer<uint8_t> pattern;
  SI_TRY(pattern.allocate(K));
  PanelCounts counts{};
  for (int64_t panel = 0; panel < panels_per_group(shape) * shape.groups; ++panel) {
    patterns_of(weight, K, 0, K, order.data() + first_position(shape, panel), rows_in_panel(shape, panel),
                pattern.data());
    for (const uint8_t p : pattern) {
      counts.columns += p != 0;
      counts.values += static_cast<uint64_t>(pattern_rows(p));
    }
  }
  *out = counts;
  return SI_OK;
}

// In every group the rows with a non-zero, then those without. Gives whether that is an order other than their own.
template <class T>
si_status zero_rows_last(const T* weight, const WeightShape& shape, Buffer<uint32_t>* order, bool* moved) {
  const int64_t M = shape.M(), K = shape.K(), group_rows = M / shape.groups;
  Buffer<uint32_t> zero;
  SI_TRY(zero.allocate(group_rows));
  SI_TRY(order->allocate(M));
  int64_t position = 0;
  *moved = false;
  for (int64_t first = 0; first < M; first += group_rows) {
    int64_t empty = 0;
    for (int64_t row = first; row < first + group_rows; ++row) {
      const T* values = weight + row * K;
      if (std::all_of(values, values + K, [](T value) { return value == T{0}; })) {
        zero[empty++] = static_cast<uint32_t>(row);
      } else {
        *moved = *moved || position != row;
        (*order)[position++] = static_cast<uint32_t>(row);
      }
    }
    std::copy(zero.begin(), zero.begin() + empty, order->begin() + position);
    position += empty;
  }
  return SI_OK;
}

// The rows as they are, or, where that spares enough of the columns, zero rows last.
template <class T>
si_status order_of(const T* weight, const WeightShape& shape, const RowOrderTuning& tuning, Buffer<uint32_t>* order,
                   bool* ordered, PanelCounts* counts) {
  Buffer<uint32_t> last;
  SI_TRY(zero_rows_last(weight, shape, &last, ordered));
  SI_TRY(order->allocate(shape.M()));
  for (int64_t row = 0; row < shape.M(); ++row) (*order)[row] = static_cast<uint32_t>(row);
  SI_TRY(count_panels(weight, shape, *order, counts));
  if (!*ordered) return SI_OK;
  PanelCounts packed{};
  SI_TRY(count_panels(weight, shape, last, &packed));
  const uint64_t spared = counts->columns - std::min(packed.columns, counts->columns);
  const auto cost = static_cast<uint64_t>(shape.ndim == 2 ? tuning.row_columns * shape.M() : 0);
  *ordered = spared > cost && spared * tuning.least_share >= counts->columns;
  if (!*ordered) return SI_OK;
  *counts = packed;
  std::copy(last.begin(), last.end(), order->begin());
  return SI_OK;
}

// Every position holds a row of its own group, and every row has one position.
[[nodiscard]] si_status check_order(const PanelView& view);

}  // namespace si
