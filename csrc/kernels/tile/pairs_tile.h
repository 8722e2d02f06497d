// Panels of bfloat16 pairs: y[m, n] = act(sum_k W[m, k] x[k, n] + bias[m]), W and x bfloat16, sums float32.
//
// The tiles of quads_tile.h with two values in a dword: a unit names two rows of x, any two columns of one pattern,
// which are interleaved in registers. Of 32 columns dword i of 128-bit lane L is column 8 L + i of the first vector and
// column 8 L + 4 + i of the second. Without instructions for pairs V::Int is two vectors of floats, of the first and of
// the second value of each, and V::load gives what V::interleave makes them of. Source: measured here. y must not alias
// x. Benchmark: `python -m benchmarks.run --suite kernels`.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/pairs.h"
#include "kernels/tile/quads_vector.h"

namespace si {
namespace {

// NX vectors of each row of x. Two vectors of sums wait for their own additions: units go to two sets in turn, where
// registers hold both.
template <class V, int NX>
struct Interleaved {
  static constexpr int kVectors = 2 * NX, kIndices = 2, kRowBytes = NX * V::kBytes;
  static constexpr int kSets = NX == 1 && 2 * kPanelRows * kVectors <= V::kMostSums ? 2 : 1;
  static constexpr bool kNatural = false;
  template <class Map>
  static SI_INLINE void load(typename V::Int (&x)[kVectors], const uint16_t* index, const Map& map) {
    const uint8_t *a = map(index[0]), *b = map(index[1]);
    SI_UNROLL for (int j = 0; j < NX; ++j)
        V::interleave(V::load(a + V::kBytes * j), V::load(b + V::kBytes * j), x[2 * j], x[2 * j + 1]);
  }
};

// As many columns as a vector has dwords.
template <class V>
struct InterleavedHalf {
  static constexpr int kVectors = 1, kIndices = 2, kSets = 2, kRowBytes = V::kBytes / 2;
  static constexpr bool kNatural = true;
  template <class Map>
  static SI_INLINE void load(typename V::Int (&x)[1], const uint16_t* index, const Map& map) {
    x[0] = V::interleave_half(map(index[0]), map(index[1]));
  }
};

// The units of a pattern of one row, whose sums would wait for their own additions where another row's do not follow:
// every second unit goes to sums that are added at the end.
template <class V, class Load, int P, class Map>
SI_INLINE void pairs_lone(QuadSums<V, Load>& sums, const uint16_t*& index, const Pair*& pair, int count,
                          const Map& map) {
  constexpr int NV = Load::kVectors, kRow = __builtin_ctz(P);
  using Unit = QuadsPart<V, Load, P, 0, NV>;
  if (count == 0) return;
  typename V::Sum even[kPanelRows][NV], odd[kPanelRows][NV];
  SI_UNROLL for (int j = 0; j < NV; ++j) {
    even[kRow][j] = sums.set[0][kRow][j];
    odd[kRow][j] = V::broadcast(0.0f);
  }
  for (; count >= 2; count -= 2, index += 4, pair += 2) {
    Unit::unit(even, index, pair, 0, map);
    Unit::unit(odd, index + 2, pair + 1, 0, map);
  }
  if (count > 0) Unit::unit(even, index, pair, 0, map);
  index += 2 * count;
  pair += count;
  SI_UNROLL for (int j = 0; j < NV; ++j) sums.set[0][kRow][j] = V::add(even[kRow][j], odd[kRow][j]);
}

// One row of a tile.
template <class V, class Load>
SI_INLINE void pairs_store(typename V::Sum (&sum)[Load::kVectors], const PairOutput& out, int64_t position) {
  constexpr int NV = Load::kVectors;
  const int64_t at = (position - out.row0) * out.ldy;
  const auto low = V::broadcast(out.low), high = V::broadcast(out.high);
  SI_UNROLL for (int j = 0; j < NV; ++j) sum[j] = V::min(high, V::max(low, sum[j]));
  if constexpr (!Load::kNatural) {
    SI_UNROLL for (int j = 0; j < NV; j += 2) {
      if (out.halves != nullptr) {
        V::store_interleaved(out.halves + at + V::kInts * j, sum[j], sum[j + 1]);
      } else {
        V::natural(sum[j], sum[j + 1]);
        V::store_floats(out.floats + at + V::kInts * j, sum[j]);
        V::store_floats(out.floats + at + V::kInts * (j + 1), sum[j + 1]);
      }
    }
  } else if (out.halves != nullptr) {
    V::store_narrow(out.halves + at, sum[0]);
  } else {
    V::store_floats(out.floats + at, sum[0]);
  }
}

template <class V, class Load>
void pairs_tile(const si_weights& weights, const PairJob& given_job) {
  constexpr int NV = Load::kVectors;
  // Copies: a store may change whatever else is in memory, so that it would be read again.
  const PanelView view = weights.panel;
  const PairJob job = given_job;
  const PackedMap<Load::kRowBytes> map{reinterpret_cast<const uint8_t*>(job.x)};
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const PanelEntry& entry = view.entry[panel];
    const int rows = entry.rows;
    const int64_t row = view.row_of(panel);
    QuadSums<V, Load> sums;
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      const auto start = V::broadcast(r < rows && job.out.bias != nullptr ? job.out.bias[row + r] : 0.0f);
      SI_UNROLL for (int j = 0; j < NV; ++j) {
        sums.set[0][r][j] = start;
        if (Load::kSets > 1) sums.set[Load::kSets - 1][r][j] = V::broadcast(0.0f);
      }
    }
    const uint16_t* index = view.index + entry.column_offset;
    const Pair* pair = view.value_as<Pair>() + entry.value_offset;
    if constexpr (kSmall) {
      each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
        quads_rows<V, Load, decltype(of_pattern)::value>(sums, pattern, index, pair, count, map);
      });
    } else {
#define SI_PATTERN(P)                                                   \
  if constexpr (pattern_rows(P) == 1 && Load::kSets == 1)               \
    pairs_lone<V, Load, P>(sums, index, pair, entry.count[P - 1], map); \
  else                                                                  \
    quads_pattern<V, Load, P>(sums, index, pair, entry.count[P - 1], map);
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= rows) break;
      if (Load::kSets > 1)
        SI_UNROLL for (int j = 0; j < NV; ++j) sums.set[0][r][j] =
            V::add(sums.set[0][r][j], sums.set[Load::kSets - 1][r][j]);
      pairs_store<V, Load>(sums.set[0][r], job.out, row + r);
    }
  }
}

// ---- One token ----------------------------------------------------------------------------------------------------

// The values of x that a panel's units multiply, in their order.
SI_INLINE void gather_pairs(const PanelView& view, int64_t panel, const uint16_t* x, uint16_t* to) {
  const PanelEntry& entry = view.entry[panel];
  const uint16_t* index = view.index + entry.column_offset;
  int units = 0;
  for (const uint16_t count : entry.count) units += count;
  for (int i = 0; i < 2 * units; i += 2) SI_UNROLL for (int j = 0; j < 2; ++j) to[i + j] = x[index[i + j]];
}

template <class V>
void pairs_vector(const si_weights& weights, const PairVectorJob& job) {
  const PanelView& view = weights.panel;
  uint16_t* here = job.gathered;
  uint16_t* next = job.gathered + gathered_halves(view.shape.K());
  gather_pairs(view, job.first, job.x, here);
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    // One panel ahead, so that its stores are done when they are read as vectors.
    if (panel + 1 < job.last) gather_pairs(view, panel + 1, job.x, next);
    const PanelEntry& entry = view.entry[panel];
    const int64_t row = view.row_of(panel);
    typename V::Sum sum[kPanelRows];
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) sum[r] = V::broadcast(0.0f);
    const uint8_t* x = reinterpret_cast<const uint8_t*>(here);
    const Pair* pair = view.value_as<Pair>() + entry.value_offset;
    if constexpr (kSmall) {
      each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
        constexpr int kRows = decltype(of_pattern)::value;
        quads_rows_vector<V, kRows>(sum, pattern, x, pair, count);
        x += 4 * count;
        pair += count * kRows;
      });
    } else {
#define SI_PATTERN(P)                                \
  {                                                  \
    const int count = entry.count[P - 1];            \
    quads_pattern_vector<V, P>(sum, x, pair, count); \
    x += 4 * count;                                  \
    pair += count * pattern_rows(P);                 \
  }
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= entry.rows) break;
      const int64_t position = row + r;
      const float v = V::sum(sum[r]) + (job.out.bias != nullptr ? job.out.bias[position] : 0.0f);
      job.out.floats[position - job.out.row0] = clamp(v, job.out.low, job.out.high);
    }
    uint16_t* const done = here;
    here = next;
    next = done;
  }
}

}  // namespace
}  // namespace si
