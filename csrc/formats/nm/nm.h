// N:M structured sparsity: at most n non-zeros in every m consecutive columns. Layout and the reasons for it:
// csrc/formats/nm/LAYOUT.md.
#pragma once

#include "formats/blob.h"
#include "formats/half.h"
#include "formats/units.h"

namespace si {

constexpr int32_t kNmMaxM = 32;  // the columns of a group are the bits of one word

// Pointers into a validated blob. Entry (plane, row, group) of both sections is at (plane * M + row) * groups_per_row +
// group, and its column is group * m + position.
struct NmView {
  WeightShape shape;
  int32_t n, m;
  int64_t groups_per_row;  // ceil(K / m)
  // Planes that hold a column in the last group of a row: min(n, its columns). The others hold value 0 and a position
  // past K there; a kernel must not read x for them.
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
  if (view.value_type == SI_F16) return half_to_float(static_cast<const uint16_t*>(view.values)[at]);
  if (view.value_type == SI_BF16) return bfloat16_to_float(static_cast<const uint16_t*>(view.values)[at]);
  return static_cast<const float*>(view.values)[at];
}

// Calls visit(k, value) for every entry of a row that has a column, by increasing k; value is 0 for a filler.
template <class Visit>
void nm_visit(const NmView& view, int64_t row, Visit&& visit) {
  for (int64_t group = 0; group < view.groups_per_row; ++group) {
    const int32_t planes = group + 1 < view.groups_per_row ? view.n : view.last_planes;
    for (int32_t plane = 0; plane < planes; ++plane) {
      const int64_t at = (plane * view.shape.M() + row) * view.groups_per_row + group;
      visit(group * view.m + view.positions[at], nm_value(view, at));
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
