// N:M structured sparsity: at most n non-zeros in every m consecutive input channels. Layout and the reasons for it:
// csrc/formats/nm/LAYOUT.md.
#pragma once

#include "formats/blob.h"
#include "formats/half.h"
#include "formats/units.h"

namespace si {

constexpr int32_t kNmMaxM = 32;  // the columns of a group are the bits of one word

// How the columns of a row are grouped. K = taps * channels, and channel c of tap t is column k = c * taps + t; each
// tap has groups of its own. Of one tap, the channels are the columns: a linear weight, a 1x1 convolution, a buffer of
// old.
struct NmColumns {
  int64_t taps, channels;
};

// Pointers into a validated blob. Entry (plane, row, group) of both sections is at (plane * M + row) * groups_per_row +
// group, where group counts the groups of all taps, and its channel is (group % groups_per_tap) * m + position.
struct NmView {
  WeightShape shape;
  int32_t n, m;
  NmColumns columns;
  int64_t groups_per_tap;  // ceil(channels / m)
  int64_t groups_per_row;  // taps * groups_per_tap
  // Planes that hold a column in the last group of a tap: min(n, its channels). The others hold value 0 and a position
  // past the channels there; a kernel must not read x for them.
  int32_t last_planes;
  si_value_type value_type;
  const void* values;
  const uint8_t* positions;
};

[[nodiscard]] si_status nm_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                OwnedBlob* out);
// Checks every invariant of the layout; the header has been checked.
[[nodiscard]] si_status nm_validate(const BlobHeader& header, const void* blob, size_t bytes, NmView* out);
void nm_unpack(const NmView& view, float* weight);
void nm_describe(const NmView& view, const void* blob, si_weight_info* info);

inline Units nm_units(const NmView& view) { return {view.shape.M() / view.shape.groups, 1, nullptr, 0, 1, 0, 0}; }
// Every row holds as much.
inline int64_t nm_work(const NmView&, int64_t) { return -1; }

// The value at an index of the values section.
static inline float nm_value(const NmView& view, int64_t at) {
  if (is_type(view.value_type, SI_F16)) return half_to_float(static_cast<const uint16_t*>(view.values)[at]);
  if (is_type(view.value_type, SI_BF16)) return bfloat16_to_float(static_cast<const uint16_t*>(view.values)[at]);
  return static_cast<const float*>(view.values)[at];
}

// Calls visit(k, value) for every entry of a row that has a column, by increasing tap and channel; value is 0 for a
// filler.
template <class Visit>
void nm_visit(const NmView& view, int64_t row, Visit&& visit) {
  for (int64_t group = 0; group < view.groups_per_row; ++group) {
    const int64_t tap = group / view.groups_per_tap, of_tap = group % view.groups_per_tap;
    const int32_t planes = of_tap + 1 < view.groups_per_tap ? view.n : view.last_planes;
    for (int32_t plane = 0; plane < planes; ++plane) {
      const int64_t at = (plane * view.shape.M() + row) * view.groups_per_row + group;
      visit((of_tap * view.m + view.positions[at]) * view.columns.taps + tap, nm_value(view, at));
    }
  }
}

// Calls visit(m, k, value) for those of all rows.
template <class Visit>
void nm_visit_all(const NmView& view, Visit&& visit) {
  for (int64_t row = 0; row < view.shape.M(); ++row)
    nm_visit(view, row, [&](int64_t k, float value) { visit(row, k, value); });
}

}  // namespace si
