// Compressed sparse rows: the interchange format. Layout and the reasons for it: csrc/formats/csr/LAYOUT.md.
#pragma once

#include "formats/blob.h"
#include "formats/units.h"

namespace si {

// Pointers into a validated blob.
struct CsrView {
  WeightShape shape;
  const uint32_t* row;     // [M + 1]: where each row starts in `column` and `value`; the last is nnz
  const uint32_t* column;  // k within the row's group
  const float* value;
  uint64_t nnz;
};

[[nodiscard]] si_status csr_pack(const float* weight, const WeightShape& shape, const si_pack_options& options,
                                 OwnedBlob* out);
// Checks every invariant of the layout; the header has been checked.
[[nodiscard]] si_status csr_validate(const BlobHeader& header, const void* blob, size_t bytes, CsrView* out);
void csr_unpack(const CsrView& view, float* weight);
void csr_describe(const CsrView& view, const void* blob, si_weight_info* info);

inline Units csr_units(const CsrView& view) {
  return {view.shape.M() / view.shape.groups, 1, nullptr, 0, 1, view.nnz, view.nnz};
}
inline int64_t csr_work(const CsrView& view, int64_t unit) { return view.row[unit]; }

// Calls visit(m, k, value) for every stored value.
template <class Visit>
void csr_visit_all(const CsrView& view, Visit&& visit) {
  for (int64_t row = 0; row < view.shape.M(); ++row)
    for (uint32_t i = view.row[row]; i < view.row[row + 1]; ++i)
      visit(row, static_cast<int64_t>(view.column[i]), view.value[i]);
}

}  // namespace si
