// One token of the quads of quads_tile.h: the bytes of x that a panel multiplies are gathered, and a vector of them
// meets a vector of quads of one row.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "kernels/tile/quads_tile.h"

namespace si {
namespace {

// The bytes of x that a panel's units multiply, in their order: a vector of them meets a vector of quads of one row.
SI_INLINE void gather_quads(const PanelView& view, int64_t panel, const uint8_t* x, uint8_t* to) {
  const PanelEntry& entry = view.entry[panel];
  const uint16_t* index = view.index + entry.column_offset;
  int units = 0;
  for (const uint16_t count : entry.count) units += count;
  if (view.g == 1) {
    for (int i = 0; i < 4 * units; i += 4) SI_UNROLL for (int j = 0; j < 4; ++j) to[i + j] = x[index[i + j]];
  } else {
    for (int i = 0; i < units; ++i) std::memcpy(to + 4 * i, x + 4 * index[i], 4);
  }
}

template <class V, int P, class Dword>
SI_INLINE void quads_pattern_vector(typename V::Sum (&sum)[kPanelRows], const uint8_t* x, const Dword* quad,
                                    int count) {
  int u = 0;
  for (; count - u >= kPanelGroup; u += kPanelGroup) {
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (!(P >> r & 1)) continue;
      SI_UNROLL for (int part = 0; part < kPanelGroup; part += V::kInts) sum[r] =
          V::dot(sum[r], V::load(x + 4 * (u + part)), V::load(quad + part));
      quad += kPanelGroup;
    }
  }
  const int rest = count - u;
  if (rest == 0) return;
  SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
    if (!(P >> r & 1)) continue;
    for (int part = 0; part < rest; part += V::kInts)
      sum[r] = V::dot(sum[r], V::load_some(x + 4 * (u + part), rest - part), V::load_some(quad + part, rest - part));
    quad += rest;
  }
}

template <class V, int kRows, class Dword>
SI_INLINE void quads_rows_vector(typename V::Sum (&sums)[kPanelRows], int pattern, const uint8_t* x, const Dword* quad,
                                 int count) {
  const uint8_t* row = kRowsOf[pattern];
  for (int first = 0; first < count; first += kPanelGroup) {
    const int size = count - first < kPanelGroup ? count - first : kPanelGroup;
    for (int r = 0; r < kRows; ++r, quad += size) {
      auto sum = sums[row[r]];
      for (int part = 0; part < size; part += V::kInts)
        sum = V::dot(sum, V::load_some(x + 4 * (first + part), size - part), V::load_some(quad + part, size - part));
      sums[row[r]] = sum;
    }
  }
}

// What a vector reads past a panel's bytes of x is multiplied by zeros.
template <class V>
void quads_vector(const si_weights& weights, const ByteVectorJob& job) {
  const PanelView& view = weights.panel;
  const ByteOutput& out = job.out;
  uint8_t* here = job.gathered;
  uint8_t* next = job.gathered + gathered_bytes(view.shape.K());
  gather_quads(view, job.first, job.x, here);
  for (int64_t panel = job.first; panel < job.last; ++panel) {
    // One panel ahead, so that its stores are done when they are read as vectors.
    if (panel + 1 < job.last) gather_quads(view, panel + 1, job.x, next);
    const PanelEntry& entry = view.entry[panel];
    const int64_t row = view.row_of(panel);
    typename V::Int sum[kPanelRows];
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) sum[r] = V::broadcast_int(0);
    const uint8_t* x = here;
    const Quad* quad = view.value_as<Quad>() + entry.value_offset;
    if constexpr (kSmall) {
      each_pattern(entry, [&](int pattern, int count, auto of_pattern) SI_INLINE_LAMBDA {
        constexpr int kRows = decltype(of_pattern)::value;
        quads_rows_vector<V, kRows>(sum, pattern, x, quad, count);
        x += 4 * count;
        quad += count * kRows;
      });
    } else {
#define SI_PATTERN(P)                                \
  {                                                  \
    const int count = entry.count[P - 1];            \
    quads_pattern_vector<V, P>(sum, x, quad, count); \
    x += 4 * count;                                  \
    quad += count * pattern_rows(P);                 \
  }
      SI_EACH_PATTERN(SI_PATTERN);
#undef SI_PATTERN
    }
    SI_UNROLL for (int r = 0; r < kPanelRows; ++r) {
      if (r >= entry.rows) break;
      const int64_t position = row + r;
      const auto start = static_cast<uint32_t>(first_sum(view.row_sum[position], out.x_zero_point - V::kOffset));
      const auto total = static_cast<int32_t>(static_cast<uint32_t>(V::sum(sum[r])) + start);
      const float bias = out.bias != nullptr ? out.bias[position] : 0.0f;
      const int64_t at = position - out.row0;
      float v = __builtin_fmaf(static_cast<float>(total), view.scale[position] * out.x_scale, bias);
      if (out.residual_floats != nullptr) v += out.residual_floats[at];
      if (out.residual_bytes != nullptr)
        v = __builtin_fmaf(static_cast<float>(out.residual_bytes[at] - out.residual_zero_point), out.residual_scale, v);
      if (out.gelu) v = coarse_gelu(v);
      if (out.bytes != nullptr)
        out.bytes[at] = quantize(v, out.to);
      else
        out.floats[at] = clamp(v, out.low, out.high);
    }
    uint8_t* const done = here;
    here = next;
    next = done;
  }
}

}  // namespace
}  // namespace si
