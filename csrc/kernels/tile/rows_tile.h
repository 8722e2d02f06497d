// csr and nm: one output row at a time, each non-zero one vector load of x and one multiply-add. y must not alias x.
//
// Rows do not share loads of x, so these run at half the panel kernel's rate or less; they exist because users bring
// these formats. Benchmark: `python -m benchmarks.run --suite formats`.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/panel_tile.h"

namespace si {
namespace {

// Calls visit(k, w) for the stored entries of one row, in the order that they are stored in.
template <class Visit>
SI_INLINE void visit_row(const CsrView& view, int64_t row, Visit&& visit) {
  for (uint32_t i = view.row[row]; i < view.row[row + 1]; ++i)
    visit(static_cast<int64_t>(view.column[i]), view.value[i]);
}

// The entries of one tap of a row; where there is but one tap, nothing is multiplied.
template <bool kOneTap, class Visit>
SI_INLINE void visit_tap(const NmView& view, int64_t entry, int64_t tap, Visit&& visit) {
  const int64_t groups = view.groups_per_tap, taps = kOneTap ? 1 : view.columns.taps;
  const int64_t plane = view.shape.M() * view.groups_per_row;
  const auto* value = static_cast<const float*>(view.values) + entry;
  const uint8_t* position = view.positions + entry;
  for (int64_t g = 0; g < groups; ++g) {
    // In the last group, planes past its channels hold positions past the last one.
    const int planes = g + 1 < groups ? view.n : view.last_planes;
    for (int i = 0; i < planes; ++i) visit((g * view.m + position[i * plane + g]) * taps + tap, value[i * plane + g]);
  }
}

template <class Visit>
SI_INLINE void visit_row(const NmView& view, int64_t row, Visit&& visit) {
  const int64_t entry = row * view.groups_per_row, taps = view.columns.taps;
  if (taps == 1) return visit_tap<true>(view, entry, 0, visit);
  for (int64_t tap = 0; tap < taps; ++tap) visit_tap<false>(view, entry + tap * view.groups_per_tap, tap, visit);
}

template <class V, int NV, class Map, class View>
void rows_tile_width(const View& view, const TileJob& job) {
  const Map map(job.x);
  const typename V::Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
  for (int64_t row = job.first; row < job.last; ++row) {
    typename V::Reg acc[NV];
    const typename V::Reg start = V::broadcast(job.bias != nullptr ? job.bias[row] : 0.0f);
    SI_UNROLL for (int j = 0; j < NV; ++j) acc[j] = start;
    visit_row(view, row, [&](int64_t k, float weight) {
      const float* x = map(k);
      const typename V::Reg w = V::broadcast(weight);
      SI_UNROLL for (int j = 0; j < NV; ++j) acc[j] = V::fma(w, V::load(x + V::kWidth * j), acc[j]);
    });
    float* c = job.c + (row - job.row0) * job.ldc;
    SI_UNROLL for (int j = 0; j < NV; ++j) V::store(c + V::kWidth * j, V::min(high, V::max(low, acc[j])));
  }
}

template <class V, class Map, class View>
void rows_tile_map(const View& view, const TileJob& job) {
  using Fn = void (*)(const View&, const TileJob&);
  static constexpr Fn by_width[] = {rows_tile_width<V, 1, Map, View>, rows_tile_width<V, 2, Map, View>,
                                    rows_tile_width<V, 3, Map, View>, rows_tile_width<V, 4, Map, View>,
                                    rows_tile_width<V, 5, Map, View>, rows_tile_width<V, 6, Map, View>};
  by_width[job.vectors - 1](view, job);
}

template <class V, class View>
void rows_tile(const View& view, const TileJob& job) {
  if constexpr (kSmall) {
    return in_small_tiles<V>(
        job, [&](const TileJob& part) { rows_tile_width<V, kSmallVectors<V>, AnyMap, View>(view, part); },
        [&](const TileJob& part) { rows_tile_width<V, 1, AnyMap, View>(view, part); });
  }
  if (job.x.taps != nullptr)
    rows_tile_map<V, TapMap, View>(view, job);
  else
    rows_tile_map<V, PitchMap, View>(view, job);
}

template <class V>
void csr_tile(const si_weights& weights, const TileJob& job) {
  rows_tile<V>(weights.csr, job);
}

template <class V>
void nm_tile(const si_weights& weights, const TileJob& job) {
  rows_tile<V>(weights.nm, job);
}

template <class V>
void csr_vector(const si_weights& weights, const VectorJob& job) {
  const CsrView& view = weights.csr;
  const auto* x = static_cast<const float*>(job.x);
  for (int64_t row = job.first; row < job.last; ++row) {
    typename V::Reg acc = V::broadcast(0.0f);
    float tail = job.bias != nullptr ? job.bias[row] : 0.0f;
    // 64 bits: i plus a vector must not wrap when there are nearly 2^32 non-zeros.
    int64_t i = view.row[row];
    const int64_t end = view.row[row + 1];
    for (; i + V::kWidth <= end; i += V::kWidth)
      acc = V::fma(V::load(view.value + i), V::gather(x, view.column + i), acc);
    for (; i < end; ++i) tail += view.value[i] * x[view.column[i]];
    job.y[row - job.row0] = clamp(V::sum(acc) + tail, job.low, job.high);
  }
}

template <class V>
void nm_vector(const si_weights& weights, const VectorJob& job) {
  const NmView& view = weights.nm;
  const auto* x = static_cast<const float*>(job.x);
  for (int64_t row = job.first; row < job.last; ++row) {
    float sum = job.bias != nullptr ? job.bias[row] : 0.0f;
    visit_row(view, row, [&](int64_t k, float weight) { sum += weight * x[k]; });
    job.y[row - job.row0] = clamp(sum, job.low, job.high);
  }
}

}  // namespace
}  // namespace si
