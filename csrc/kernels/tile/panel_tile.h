// Row-pattern panels: y[m, n] = clamp(bias[m] + sum_k W[m, k] x[k, n]) for a range of panels and one tile of columns.
//
// R x NV accumulators stay in registers; for each of the 15 patterns a branch-free loop over its columns loads NV
// vectors of x once and multiplies them into the rows of the pattern. Source of the idea: sparse register tiling
// (Wilkinson, Cheshmi, Mehri Dehnavi, PLDI 2023). y must not alias x. Benchmark: `python -m benchmarks.run --suite
// kernels`.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/panel_common.h"
#include "kernels/tile/small_panel.h"

namespace si {
namespace {

#define SI_EACH_PATTERN(DO) \
  DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)

// The columns of one pattern of a K block.
template <class V, int NV, int P, class Value, class Map>
SI_INLINE void panel_pattern(typename V::Reg (&acc)[kPanelRows][NV], const uint16_t* index, const Value* value,
                             int count, const Map& map) {
  constexpr int kRows = pattern_rows(P);
  const auto column = [&](int c, const Value* weight, int stride) SI_INLINE_LAMBDA {
    const float* x = map(index[c]);
    typename V::Reg xv[NV];
    SI_UNROLL for (int j = 0; j < NV; ++j) xv[j] = V::load(x + V::kWidth * j);
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (!(P >> r & 1)) continue;
      const typename V::Reg w = spread<V>(weight);
      weight += stride;
      SI_UNROLL for (int j = 0; j < NV; ++j) acc[r][j] = V::fma(w, xv[j], acc[r][j]);
    }
  };
  if (kRows == 1) {
    for (int c = 0; c < count; ++c) column(c, value + c, 0);
    return;
  }
  // A group of 16 columns (fewer at the end) holds its values row after row, `stride` apart.
  int c = 0;
  for (; count - c >= kPanelGroup; value += kPanelGroup * kRows)
    for (const int end = c + kPanelGroup; c < end; ++c) column(c, value + c % kPanelGroup, kPanelGroup);
  const int stride = count - c;
  for (; c < count; ++c) column(c, value++, stride);
}

template <class V, int NV, class Value, class Map>
void panel_tile_width(const PanelView& view, const TileJob& job) {
  const Map map(job.x);
  const bool starts = job.kfirst == 0, ends = job.klast == view.kblocks;
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const int rows = view.entry[panel].rows;
    const int64_t row = view.row_of(panel);
    float* c = job.c + (row - job.row0) * job.ldc;
    typename V::Reg acc[kPanelRows][NV];
    if (starts) {
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        const typename V::Reg start = V::broadcast(job.bias != nullptr && r < rows ? job.bias[row + r] : 0.0f);
        SI_UNROLL for (int j = 0; j < NV; ++j) acc[r][j] = start;
      }
    } else {
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        const float* from = c + (r < rows ? r : 0) * job.ldc;
        SI_UNROLL for (int j = 0; j < NV; ++j) acc[r][j] = V::load(from + V::kWidth * j);
      }
    }
    for (int64_t block = job.kfirst; block < job.klast; ++block) {
      const PanelEntry& entry = view.entry_of(block, panel);
      const uint16_t* index = view.index + entry.column_offset;
      const Value* value = view.value_as<Value>() + entry.value_offset;
#define SI_PATTERN(P)                                       \
  {                                                         \
    const int count = entry.count[P - 1];                   \
    panel_pattern<V, NV, P>(acc, index, value, count, map); \
    index += count;                                         \
    value += count * pattern_rows(P);                       \
  }
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    const typename V::Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= rows) break;
      SI_UNROLL for (int j = 0; j < NV; ++j)
          V::store(c + r * job.ldc + V::kWidth * j, ends ? V::min(high, V::max(low, acc[r][j])) : acc[r][j]);
    }
  }
}

template <class V, class Value, class Map>
void panel_tile_map(const PanelView& view, const TileJob& job) {
  using Fn = void (*)(const PanelView&, const TileJob&);
  static constexpr Fn by_width[] = {panel_tile_width<V, 1, Value, Map>, panel_tile_width<V, 2, Value, Map>,
                                    panel_tile_width<V, 3, Value, Map>, panel_tile_width<V, 4, Value, Map>,
                                    panel_tile_width<V, 5, Value, Map>, panel_tile_width<V, 6, Value, Map>};
  static_assert(V::kMaxVectors <= 6, "a tile this wide has no kernel");
  by_width[job.vectors - 1](view, job);
}

template <class V, class Value>
void panel_tile_value(const PanelView& view, const TileJob& job) {
  if constexpr (kSmall) return small_tile<V, Value>(view, job);
  if (job.x.taps != nullptr)
    panel_tile_map<V, Value, TapMap>(view, job);
  else
    panel_tile_map<V, Value, PitchMap>(view, job);
}

template <class V>
void panel_tile(const si_weights& weights, const TileJob& job) {
  if (is_type(weights.value_type, SI_BF16))
    panel_tile_value<V, BFloat16>(weights.panel, job);
  else if (is_type(weights.value_type, SI_F32))
    panel_tile_value<V, float>(weights.panel, job);
}

// N = 1: the same storage read the other way round. For each group of 16 columns x is gathered once by index and
// multiplied with a vector of values for every row of the pattern.
template <class V, int P, class Value>
SI_INLINE void panel_pattern_vector(typename V::Reg (&acc)[kPanelRows], float (&tail)[kPanelRows],
                                    const uint16_t* index, const Value* value, int count, const float* x) {
  constexpr int kRows = pattern_rows(P);
  int c = 0;
  for (; c + kPanelGroup <= count; c += kPanelGroup) {
    SI_UNROLL for (int part = 0; part < kPanelGroup; part += V::kWidth) {
      const typename V::Reg xv = V::gather(x, index + c + part);
      const Value* v = value + part;
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        if (!(P >> r & 1)) continue;
        acc[r] = V::fma(values<V>(v), xv, acc[r]);
        v += kPanelGroup;
      }
    }
    value += kPanelGroup * kRows;
  }
  if (c == count) return;
  V::gather_tail(
      x, index + c, count - c,
      [&](typename V::Reg xv, auto load) {
        const Value* v = value;
        SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
          if (!(P >> r & 1)) continue;
          acc[r] = V::fma(load(v), xv, acc[r]);
          v += count - c;
        }
      },
      [&](int i) {
        const float xi = x[index[c + i]];
        const Value* v = value + i;
        SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
          if (!(P >> r & 1)) continue;
          tail[r] += spread<Single>(v) * xi;
          v += count - c;
        }
      });
}

template <class V, class Value>
void panel_vector_value(const PanelView& view, const VectorJob& job) {
  const auto* x = static_cast<const float*>(job.x);
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const int rows = view.entry[panel].rows;
    const int64_t row = view.row_of(panel);
    typename V::Reg acc[kPanelRows];
    float tail[kPanelRows];
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      acc[r] = V::broadcast(0.0f);
      tail[r] = job.bias != nullptr && r < rows ? job.bias[row + r] : 0.0f;
    }
    for (int64_t block = 0; block < view.kblocks; ++block) {
      const PanelEntry& entry = view.entry_of(block, panel);
      const uint16_t* index = view.index + entry.column_offset;
      const Value* value = view.value_as<Value>() + entry.value_offset;
#define SI_PATTERN(P)                                              \
  {                                                                \
    const int count = entry.count[P - 1];                          \
    panel_pattern_vector<V, P>(acc, tail, index, value, count, x); \
    index += count;                                                \
    value += count * pattern_rows(P);                              \
  }
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= rows) break;
      job.y[row - job.row0 + r] = clamp(V::sum(acc[r]) + tail[r], job.low, job.high);
    }
  }
}

template <class V>
void panel_vector(const si_weights& weights, const VectorJob& job) {
  const auto run = [&](auto value) {
    using Value = decltype(value);
    if constexpr (kSmall)
      small_vector<V, Value>(weights.panel, job);
    else
      panel_vector_value<V, Value>(weights.panel, job);
  };
  if (is_type(weights.value_type, SI_BF16))
    run(BFloat16());
  else if (is_type(weights.value_type, SI_F32))
    run(0.0f);
}

}  // namespace
}  // namespace si
