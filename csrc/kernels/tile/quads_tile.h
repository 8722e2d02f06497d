// Panels of int8 quads: y[m, n] = act(scale (sum_k W[m, k] x[k, n] - zero point * sum_k W[m, k]) + bias[m] +
// residual[m, n]), W int8, x bytes, sums exact in int32.
//
// R x kVectors accumulators stay in registers. A unit names four rows of x (g = 1: any four columns of one pattern) or
// one (g = 4: four consecutive columns that stand together). `Load` brings a unit's bytes as vectors of dwords, one
// dword a column of the tile, and each is multiplied by the quad of every row of the pattern: 15 loops without a
// branch.
//   Quartets    four rows of bytes are interleaved in registers by eight unpacks, which on Zen 4 run beside the
//               products. Of 64 columns dword i of 128-bit lane L of vector j is column 16 L + 4 j + i; the packs that
//               make bytes of the results undo just that.
//   Groups      rows of g = 4 as they lie.
// V::dot multiplies bytes less V::kOffset, which the sums begin with.
// Source: measured here; the panels are those of panel_tile.h. y must not alias x. Benchmark: `python -m benchmarks.run
// --suite kernels`.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/coarse_gelu.h"
#include "kernels/tile/panel_tile.h"

namespace si {
namespace {

// Rows of a packed tile: kBytes is what a unit's index stands for.
template <int kBytes>
struct PackedMap {
  const uint8_t* base;
  SI_INLINE const uint8_t* operator()(uint16_t i) const { return base + int64_t{i} * kBytes; }
};

// Rows of an image that is read as it stands.
struct ByteTaps {
  const uint8_t* base;
  const int32_t* taps;
  SI_INLINE const uint8_t* operator()(uint16_t i) const { return base + taps[i]; }
};

template <class V>
struct Quartets {
  static constexpr int kVectors = 4, kIndices = 4, kSets = 1, kRowBytes = V::kBytes;
  static constexpr bool kNatural = false;
  template <class Map>
  static SI_INLINE void load(typename V::Int (&x)[4], const uint16_t* index, const Map& map) {
    const auto a = V::load(map(index[0])), b = V::load(map(index[1]));
    const auto c = V::load(map(index[2])), d = V::load(map(index[3]));
    V::interleave(a, b, c, d, x);
  }
};

// Narrow tiles wait for their own additions: units go to two sets of accumulators in turn.
template <class V, int NV>
struct Groups {
  static constexpr int kVectors = NV, kIndices = 1, kSets = NV == 1 ? 2 : 1, kRowBytes = NV * V::kBytes;
  static constexpr bool kNatural = true;
  template <class Map>
  static SI_INLINE void load(typename V::Int (&x)[NV], const uint16_t* index, const Map& map) {
    const uint8_t* from = map(index[0]);
    SI_UNROLL for (int j = 0; j < NV; ++j) x[j] = V::load(from + V::kBytes * j);
  }
};

template <class V, class Load>
struct QuadSums {
  typename V::Sum set[Load::kSets][kPanelRows][Load::kVectors];
};

// What one pattern's units add to vectors [kFirst, kLast) of the tile.
template <class V, class Load, int P, int kFirst, int kLast>
struct QuadsPart {
  static constexpr int NV = Load::kVectors, kRows = pattern_rows(P);
  using Sums = typename V::Sum[kPanelRows][NV];

  template <class Dword, class Map>
  static SI_INLINE void unit(Sums& sum, const uint16_t* index, const Dword* q, int64_t stride, const Map& map) {
    typename V::Int x[NV];
    Load::load(x, index, map);
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (!(P >> r & 1)) continue;
      const auto w = V::spread(q);
      q += stride;
      SI_UNROLL for (int j = kFirst; j < kLast; ++j) sum[r][j] = V::dot(sum[r][j], x[j], w);
    }
  }

  // `size` units, whose quads stand row after row, `stride` apart.
  template <class Dword, class Map>
  static SI_INLINE void units(QuadSums<V, Load>& sums, const uint16_t* index, const Dword* q, int64_t size,
                              int64_t stride, const Map& map) {
    int64_t i = 0;
    for (; i + Load::kSets <= size; i += Load::kSets)
      SI_UNROLL for (int s = 0; s < Load::kSets; ++s)
          unit(sums.set[s], index + (i + s) * Load::kIndices, q + i + s, stride, map);
    if (Load::kSets > 1 && i < size) unit(sums.set[0], index + i * Load::kIndices, q + i, stride, map);
  }

  // `index` and `quad` go on to the next pattern.
  template <class Dword, class Map>
  static SI_INLINE void pattern(QuadSums<V, Load>& sums, const uint16_t*& index, const Dword*& quad, int64_t count,
                                const Map& map) {
    // Copies, which stay in registers where the sums of all rows do not.
    QuadSums<V, Load> here = sums;
    if (kRows > 1) {
      for (; count >= kPanelGroup; count -= kPanelGroup) {
        units(here, index, quad, kPanelGroup, kPanelGroup, map);
        index += kPanelGroup * Load::kIndices;
        quad += kPanelGroup * kRows;
      }
    }
    units(here, index, quad, count, count, map);
    index += count * Load::kIndices;
    quad += count * kRows;
    SI_UNROLL for (int s = 0; s < Load::kSets; ++s) {
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        if (!(P >> r & 1)) continue;
        SI_UNROLL for (int j = kFirst; j < kLast; ++j) sums.set[s][r][j] = here.set[s][r][j];
      }
    }
  }
};

// Where registers do not hold the sums of all rows (V::kMostSums), these stand in memory between patterns, and a
// pattern of many rows runs twice, each time for half of the vectors.
template <class V, class Load, int P, class Dword, class Map>
SI_INLINE void quads_pattern(QuadSums<V, Load>& sums, const uint16_t*& index, const Dword*& quad, int64_t count,
                             const Map& map) {
  constexpr int NV = Load::kVectors;
  if constexpr (kPanelRows * NV * Load::kSets <= V::kMostSums) {
    QuadsPart<V, Load, P, 0, NV>::pattern(sums, index, quad, count, map);
  } else {
    if (count == 0) return;
    constexpr int kPart = pattern_rows(P) * NV <= V::kMostSums ? NV : NV / 2;
    const uint16_t* const first_index = index;
    const Dword* const first_quad = quad;
    asm volatile("" : "+m"(sums));
    QuadsPart<V, Load, P, 0, kPart>::pattern(sums, index, quad, count, map);
    if constexpr (kPart < NV) {
      index = first_index;
      quad = first_quad;
      asm volatile("" : "+m"(sums));
      QuadsPart<V, Load, P, kPart, NV>::pattern(sums, index, quad, count, map);
    }
  }
}

// Of any pattern of so many rows, for a small library.
template <class V, class Load, int kRows, class Dword, class Map>
SI_INLINE void quads_rows(QuadSums<V, Load>& sums, int pattern, const uint16_t*& index, const Dword*& quad, int count,
                          const Map& map) {
  constexpr int NV = Load::kVectors;
  const uint8_t* row = kRowsOf[pattern];
  typename V::Sum sum[kRows][NV];
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] = sums.set[0][row[r]][j];
  }
  for (int first = 0; first < count; first += kPanelGroup) {
    const int stride = count - first < kPanelGroup ? count - first : kPanelGroup;
    for (int c = 0; c < stride; ++c, ++quad, index += Load::kIndices) {
      typename V::Int x[NV];
      Load::load(x, index, map);
      SI_UNROLL for (int r = 0; r < kRows; ++r) {
        const auto w = V::spread(quad + r * stride);
        SI_UNROLL for (int j = 0; j < NV; ++j) sum[r][j] = V::dot(sum[r][j], x[j], w);
      }
    }
    quad += (kRows - 1) * stride;
  }
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int j = 0; j < NV; ++j) sums.set[0][row[r]][j] = sum[r][j];
  }
}

// What the sums of a row begin with, so that they end with the zero point taken off.
SI_INLINE int32_t first_sum(int32_t row_sum, int32_t zero_point) {
  return static_cast<int32_t>(0u - static_cast<uint32_t>(zero_point) * static_cast<uint32_t>(row_sum));
}

// v and what bytes of the residual stand for.
template <class V>
SI_INLINE typename V::Floats plus_bytes(typename V::Floats v, typename V::Int bytes, const ByteOutput& out) {
  const auto centred = V::to_float(V::sub(bytes, V::broadcast_int(out.residual_zero_point)));
  return V::fma(centred, V::broadcast(out.residual_scale), v);
}

// The residual's bytes from `at` on as dwords, column by column where a block's sums have them.
template <class V, class Load>
SI_INLINE void residual_dwords(const ByteOutput& out, int64_t at, typename V::Int (&dwords)[4]) {
  if constexpr (Load::kNatural) {
    SI_UNROLL for (int j = 0; j < 4; ++j) dwords[j] = V::load_narrow(out.residual_bytes + at + V::kInts * j);
  } else {
    const auto zero = V::broadcast_int(0);
    V::interleave(V::load(out.residual_bytes + at), zero, zero, zero, dwords);
  }
}

// One row of a block of columns, from `column` of the tile on, from its sums.
template <class V, class Load>
SI_INLINE void quads_store(typename V::Int (&sum)[Load::kVectors], const PanelView& view, const ByteOutput& out,
                           int64_t position, int64_t column) {
  constexpr int NV = Load::kVectors;
  const float weight_scale = view.scale[position];
  const auto bias = V::broadcast(out.bias != nullptr ? out.bias[position] : 0.0f);
  const int64_t at = (position - out.row0) * out.ldy + column;
  const auto scale = V::broadcast(weight_scale * out.x_scale);
  const int64_t added = (position - out.row0) * out.residual_ld + column;
  if constexpr (NV == 4) {
    if (out.bytes != nullptr && out.x_scales == nullptr && out.residual_floats == nullptr) {
      const bool below = saturates(out.to);
      typename V::Floats v[NV];
      SI_UNROLL for (int j = 0; j < NV; ++j) v[j] = V::fma(V::to_float(sum[j]), scale, bias);
      if (out.residual_bytes != nullptr) {
        residual_dwords<V, Load>(out, added, sum);
        SI_UNROLL for (int j = 0; j < NV; ++j) v[j] = plus_bytes<V>(v[j], sum[j], out);
      }
      if (out.gelu) SI_UNROLL for (int j = 0; j < NV; ++j) v[j] = coarse_gelu<V>(v[j]);
      SI_UNROLL for (int j = 0; j < NV; ++j) sum[j] =
          below ? V::round_below(v[j], out.to) : V::round_to_byte(v[j], out.to);
      const auto bytes = V::pack_bytes(sum, out.to.zero_point);
      if constexpr (Load::kNatural)
        V::store(out.bytes + at, V::natural_bytes(bytes));
      else
        V::store(out.bytes + at, bytes);
      return;
    }
  }
  if constexpr (!Load::kNatural) V::natural(sum);
  const auto row_sum = V::broadcast_int(view.row_sum[position]);
  const auto low = V::broadcast(out.low), high = V::broadcast(out.high), row_scale = V::broadcast(weight_scale);
  SI_UNROLL for (int j = 0; j < NV; ++j) {
    auto scale_of = scale;
    if (out.x_scales != nullptr) {
      sum[j] = V::sub(sum[j], V::mul(row_sum, V::load(out.x_zero_points + column + V::kInts * j)));
      scale_of = V::mul(row_scale, V::load_floats(out.x_scales + column + V::kInts * j));
    }
    auto v = V::fma(V::to_float(sum[j]), scale_of, bias);
    if (out.residual_floats != nullptr) v = V::add(v, V::load_floats(out.residual_floats + added + V::kInts * j));
    if (out.residual_bytes != nullptr)
      v = plus_bytes<V>(v, V::load_narrow(out.residual_bytes + added + V::kInts * j), out);
    if (out.gelu) v = coarse_gelu<V>(v);
    if (out.bytes == nullptr)
      V::store_floats(out.floats + at + V::kInts * j, V::min(high, V::max(low, v)));
    else
      V::store_narrow(out.bytes + at + V::kInts * j, V::round_to_byte(v, out.to), out.to.zero_point);
  }
}

// kBlocks blocks of columns, as many as Load has vectors for, one after the other in each panel. map_of gives the rows
// from a column on.
template <class V, class Load, int kBlocks, class MapOf>
void quads_tile_load(const PanelView& given_view, const ByteJob& given_job, const MapOf& map_of) {
  constexpr int NV = Load::kVectors;
  // Copies: a store of bytes may change whatever else is in memory, so that it would be read again.
  const PanelView view = given_view;
  const ByteJob job = given_job;
  const ByteOutput& out = job.out;
  const int32_t zero_point = (out.x_scales == nullptr ? out.x_zero_point : 0) - V::kOffset;
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    const PanelEntry& entry = view.entry[panel];
    const int rows = entry.rows;
    const int64_t row = view.row_of(panel);
    for (int block = 0; block < kBlocks; ++block) {
      const auto map = map_of(job.x + block * Load::kRowBytes);
      QuadSums<V, Load> sums;
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        const auto start = V::broadcast_int(r < rows ? first_sum(view.row_sum[row + r], zero_point) : 0);
        SI_UNROLL for (int j = 0; j < NV; ++j) {
          sums.set[0][r][j] = start;
          if (Load::kSets > 1) sums.set[Load::kSets - 1][r][j] = V::broadcast_int(0);
        }
      }
      const uint16_t* index = view.index + entry.column_offset;
      const Quad* quad = view.value_as<Quad>() + entry.value_offset;
      if constexpr (kSmall) {
        each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
          quads_rows<V, Load, decltype(of_pattern)::value>(sums, pattern, index, quad, count, map);
        });
      } else {
#define SI_PATTERN(P) quads_pattern<V, Load, P>(sums, index, quad, entry.count[P - 1], map);
        SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
      }
      SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
        if (r >= rows) break;
        if (Load::kSets > 1)
          SI_UNROLL for (int j = 0; j < NV; ++j) sums.set[0][r][j] =
              V::add(sums.set[0][r][j], sums.set[Load::kSets - 1][r][j]);
        quads_store<V, Load>(sums.set[0][r], view, out, row + r, int64_t{block} * NV * V::kInts);
      }
    }
  }
}

// VOne, VFour: the vectors and the loads of a block at g = 1 and at g = 4.
template <class VOne, class LoadOne, class VFour, class LoadFour, int kBlocks = 1>
void quads_tile(const si_weights& weights, const ByteJob& job) {
  if (weights.panel.g == 4) {
    using Map = PackedMap<LoadFour::kRowBytes * kBlocks>;
    quads_tile_load<VFour, LoadFour, kBlocks>(weights.panel, job, [](const uint8_t* x) { return Map{x}; });
  } else if (job.taps != nullptr) {
    const int32_t* const taps = job.taps;
    quads_tile_load<VOne, LoadOne, kBlocks>(weights.panel, job, [=](const uint8_t* x) { return ByteTaps{x, taps}; });
  } else {
    using Map = PackedMap<LoadOne::kRowBytes * kBlocks>;
    quads_tile_load<VOne, LoadOne, kBlocks>(weights.panel, job, [](const uint8_t* x) { return Map{x}; });
  }
}

}  // namespace
}  // namespace si
