// Row-pattern panels for a small library (kSmall): what panel_tile.h computes, and in its order, by code that is one
// for all patterns of as many rows and for few widths. Accumulators stand in memory between patterns, which takes a
// sixth of the code.
//
// Included by the instruction-set translation units only.
#pragma once

#include <type_traits>

#include "kernels/tile/panel_common.h"

namespace si {
namespace {

// Either, by a look at each column.
struct AnyMap {
  const float* base;
  int64_t pitch;
  const int32_t* taps;
  explicit AnyMap(const XView& x) : base(x.as<float>()), pitch(x.pitch), taps(x.taps) {}
  SI_INLINE const float* operator()(int64_t k) const { return base + (taps != nullptr ? taps[k] : k * pitch); }
};

// The widest tile of a small library. A tile of any other width is cut in such ones, and in single vectors.
template <class V>
constexpr int kSmallVectors = V::kMaxVectors < 4 ? V::kMaxVectors : 4;
template <class V, class Wide, class Single>
SI_INLINE void in_small_tiles(TileJob job, const Wide& wide, const Single& single) {
  for (int left = job.vectors; left > 0; left -= job.vectors) {
    const bool whole = left >= kSmallVectors<V>;
    job.vectors = whole ? kSmallVectors<V> : 1;
    whole ? wide(job) : single(job);
    job.x.base = job.x.as<float>() + V::kWidth * job.vectors;
    job.c += V::kWidth * job.vectors;
  }
}

// The rows of each pattern.
constexpr uint8_t kRowsOf[kPatterns + 1][kPanelRows] = {{},     {0},       {1},       {0, 1},      {2},    {0, 2},
                                                        {1, 2}, {0, 1, 2}, {3},       {0, 3},      {1, 3}, {0, 1, 3},
                                                        {2, 3}, {0, 2, 3}, {1, 2, 3}, {0, 1, 2, 3}};

// Calls fn(pattern, count, its rows as a constant) for the patterns that have columns. Of a small library, whose code
// is one for all patterns of as many rows.
template <class Fn>
SI_INLINE void each_pattern(const PanelEntry& entry, const Fn& fn) {
  for (int pattern = 1; pattern <= kPatterns; ++pattern) {
    const int count = entry.count[pattern - 1];
    if (count == 0) continue;
    switch (pattern_rows(pattern)) {
      case 1:
        fn(pattern, count, std::integral_constant<int, 1>());
        break;
      case 2:
        fn(pattern, count, std::integral_constant<int, 2>());
        break;
      case 3:
        fn(pattern, count, std::integral_constant<int, 3>());
        break;
      case 4:
        fn(pattern, count, std::integral_constant<int, 4>());
        break;
    }
  }
}

// The columns of a pattern of so many rows.
template <class V, int NV, int kRows, class Value>
SI_INLINE void panel_rows(typename V::Reg (&acc)[kPanelRows][NV], int pattern, const uint16_t* index,
                          const Value* value, int count, const AnyMap& map) {
  typename V::Reg sum[kRows][NV];
  const uint8_t* row = kRowsOf[pattern];
  SI_UNROLL for (int r = 0; r < kRows; ++r) { SI_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] = acc[row[r]][j]; }
  for (int first = 0; first < count; first += kPanelGroup) {
    const int stride = count - first < kPanelGroup ? count - first : kPanelGroup;
    for (int c = 0; c < stride; ++c, ++value) {
      const float* x = map(*index++);
      typename V::Reg xv[NV];
      SI_UNROLL for (int j = 0; j < NV; ++j) xv[j] = V::load(x + V::kWidth * j);
      SI_UNROLL for (int r = 0; r < kRows; ++r) {
        const typename V::Reg w = spread<V>(value + r * stride);
        SI_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] = V::fma(w, xv[j], sum[r][j]);
      }
    }
    value += (kRows - 1) * stride;
  }
  SI_UNROLL for (int r = 0; r < kRows; ++r) { SI_UNROLL for (int j = 0; j < NV; ++j) acc[row[r]][j] = sum[r][j]; }
}

template <class V, int NV, class Value>
void small_tile_width(const PanelView& view, const TileJob& job) {
  const AnyMap map(job.x);
  const bool starts = job.kfirst == 0, ends = job.klast == view.kblocks;
  const typename V::Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const int rows = view.entry[panel].rows;
    const int64_t row = view.row_of(panel);
    float* const c = job.c + (row - job.row0) * job.ldc;
    typename V::Reg acc[kPanelRows][NV];
    for (int r = 0; r < kPanelRows; ++r) {
      const float start = job.bias != nullptr && r < rows ? job.bias[row + r] : 0.0f;
      for (int j = 0; j < NV; ++j)
        acc[r][j] = starts || r >= rows ? V::broadcast(start) : V::load(c + r * job.ldc + V::kWidth * j);
    }
    for (int64_t block = job.kfirst; block < job.klast; ++block) {
      const PanelEntry& entry = view.entry_of(block, panel);
      const uint16_t* index = view.index + entry.column_offset;
      const Value* value = view.value_as<Value>() + entry.value_offset;
      each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
        constexpr int kRows = decltype(of_pattern)::value;
        panel_rows<V, NV, kRows>(acc, pattern, index, value, count, map);
        index += count;
        value += count * kRows;
      });
    }
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < NV; ++j)
        V::store(c + r * job.ldc + V::kWidth * j, ends ? V::min(high, V::max(low, acc[r][j])) : acc[r][j]);
  }
}

template <class V, class Value>
void small_tile(const PanelView& view, const TileJob& job) {
  in_small_tiles<V>(
      job, [&](const TileJob& part) { small_tile_width<V, kSmallVectors<V>, Value>(view, part); },
      [&](const TileJob& part) { small_tile_width<V, 1, Value>(view, part); });
}

// One token: the columns of a pattern of so many rows.
template <class V, int kRows, class Value>
SI_INLINE void panel_rows_vector(typename V::Reg (&acc)[kPanelRows], float (&tail)[kPanelRows], int pattern,
                                 const uint16_t* index, const Value* value, int count, const float* x) {
  const uint8_t* row = kRowsOf[pattern];
  typename V::Reg sum[kRows];
  SI_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = acc[row[r]];
  for (; count >= kPanelGroup; count -= kPanelGroup) {
    for (int part = 0; part < kPanelGroup; part += V::kWidth) {
      const typename V::Reg xv = V::gather(x, index + part);
      SI_UNROLL for (int r = 0; r < kRows; ++r) sum[r] = V::fma(values<V>(value + r * kPanelGroup + part), xv, sum[r]);
    }
    index += kPanelGroup;
    value += kPanelGroup * kRows;
  }
  SI_UNROLL for (int r = 0; r < kRows; ++r) acc[row[r]] = sum[r];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < count; ++c) tail[row[r]] += spread<Single>(value++) * x[index[c]];
}

template <class V, class Value>
void small_vector(const PanelView& view, const VectorJob& job) {
  const auto* x = static_cast<const float*>(job.x);
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const int rows = view.entry[panel].rows;
    const int64_t row = view.row_of(panel);
    typename V::Reg acc[kPanelRows];
    float tail[kPanelRows] = {};
    for (int r = 0; r < kPanelRows; ++r) {
      acc[r] = V::broadcast(0.0f);
      if (job.bias != nullptr && r < rows) tail[r] = job.bias[row + r];
    }
    for (int64_t block = 0; block < view.kblocks; ++block) {
      const PanelEntry& entry = view.entry_of(block, panel);
      const uint16_t* index = view.index + entry.column_offset;
      const Value* value = view.value_as<Value>() + entry.value_offset;
      each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
        constexpr int kRows = decltype(of_pattern)::value;
        panel_rows_vector<V, kRows>(acc, tail, pattern, index, value, count, x);
        index += count;
        value += count * kRows;
      });
    }
    for (int r = 0; r < rows; ++r) job.y[row - job.row0 + r] = clamp(V::sum(acc[r]) + tail[r], job.low, job.high);
  }
}

}  // namespace
}  // namespace si
