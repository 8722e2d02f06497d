// Row-pattern panels for few tokens: y[m, n] = clamp(bias[m] + sum_k W[m, k] x[k, n]) for a range of panels and all of
// at most W columns, x [K][W] and y [rows][W].
//
// A tile of one or two vectors waits for its additions: a column of a one-row pattern adds to the accumulator that the
// column before has just added to. U sets of accumulators, taken in turn by the columns of a pattern, break that chain;
// they are added up once a panel. Which tokens are computed this way depends on their number alone, never on threads,
// so that results do not either. y must not alias x. Benchmark: `python -m benchmarks.run --suite kernels`, N = 2
// to 32.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/panel_tile.h"

namespace si {
namespace {

template <class V, int NV, int U, int P, class Value>
SI_INLINE void narrow_pattern(typename V::Reg (&acc)[U][kPanelRows][NV], const uint16_t* index, const Value* value,
                              int count, const float* base) {
  constexpr int kRows = pattern_rows(P), kTokens = V::kWidth * NV;
  // A group of 16 columns (fewer at the end) holds its values row after row, `stride` apart.
  const int group = kRows == 1 ? count : kPanelGroup;
  for (int first = 0; first < count; first += group) {
    const int stride = count - first < group ? count - first : group;
    const auto column = [&](int i, typename V::Reg(&sums)[kPanelRows][NV]) {
      const float* x = base + static_cast<int64_t>(index[first + i]) * kTokens;
      const Value* weight = value + first * kRows + i;
      typename V::Reg xv[NV];
      SI_UNROLL for (int j = 0; j < NV; ++j) xv[j] = V::load(x + V::kWidth * j);
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        if (!(P >> r & 1)) continue;
        const typename V::Reg w = spread<V>(weight);
        weight += stride;
        SI_UNROLL for (int j = 0; j < NV; ++j) sums[r][j] = V::fma(w, xv[j], sums[r][j]);
      }
    };
    int i = 0;
    for (; i + U <= stride; i += U) {
      SI_UNROLL for (int u = 0; u < U; ++u) column(i + u, acc[u]);
    }
    SI_UNROLL for (int u = 0; u < U - 1; ++u) {
      if (i + u >= stride) break;
      column(i + u, acc[u]);
    }
  }
}

template <class V, int NV, int U, class Value>
void panel_narrow_value(const PanelView& view, const TileJob& job) {
  const typename V::Reg low = V::broadcast(job.low), high = V::broadcast(job.high), zero = V::broadcast(0.0f);
  const auto* x = job.x.as<float>();
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const int rows = view.entry[panel].rows;
    const int64_t row = view.row_of(panel);
    typename V::Reg acc[U][kPanelRows][NV];
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      const typename V::Reg start = job.bias != nullptr && r < rows ? V::broadcast(job.bias[row + r]) : zero;
      SI_UNROLL for (int u = 0; u < U; ++u) {
        SI_UNROLL for (int j = 0; j < NV; ++j) acc[u][r][j] = u == 0 ? start : zero;
      }
    }
    for (int64_t block = 0; block < view.kblocks; ++block) {
      const PanelEntry& entry = view.entry_of(block, panel);
      const uint16_t* index = view.index + entry.column_offset;
      const Value* value = view.value_as<Value>() + entry.value_offset;
#define SI_PATTERN(P)                                         \
  {                                                           \
    const int count = entry.count[P - 1];                     \
    narrow_pattern<V, NV, U, P>(acc, index, value, count, x); \
    index += count;                                           \
    value += count * pattern_rows(P);                         \
  }
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    float* c = job.c + (row - job.row0) * job.ldc;
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= rows) break;
      SI_UNROLL for (int j = 0; j < NV; ++j) {
        typename V::Reg sum = acc[0][r][j];
        SI_UNROLL for (int u = 1; u < U; ++u) sum = V::add(sum, acc[u][r][j]);
        V::store(c + r * job.ldc + V::kWidth * j, V::min(high, V::max(low, sum)));
      }
    }
  }
}

template <class V, int NV, int U>
void panel_narrow(const si_weights& weights, const TileJob& job) {
  if (is_type(weights.value_type, SI_BF16))
    panel_narrow_value<V, NV, U, BFloat16>(weights.panel, job);
  else if (is_type(weights.value_type, SI_F32))
    panel_narrow_value<V, NV, U, float>(weights.panel, job);
}

}  // namespace
}  // namespace si
