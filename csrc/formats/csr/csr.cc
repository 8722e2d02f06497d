#include "formats/csr/csr.h"

#include <cstring>

namespace si {

namespace {

enum CsrParam { kParamIndexBits };

struct Layout {
  SectionPlan plan;
  uint64_t row, column, value;
};

Layout layout_of(const WeightShape& shape, uint64_t nnz) {
  Layout layout{};
  layout.row = layout.plan.add(static_cast<uint64_t>(shape.M()) + 1, sizeof(uint32_t));
  layout.column = layout.plan.add(nnz, sizeof(uint32_t));
  layout.value = layout.plan.add(nnz, sizeof(float));
  return layout;
}

}  // namespace

si_status csr_pack(const float* weight, const WeightShape& shape, const si_pack_options&, OwnedBlob* out) {
  const int64_t M = shape.M(), K = shape.K();
  uint64_t nnz = 0;
  for (int64_t i = 0; i < M * K; ++i) nnz += weight[i] != 0.0f;
  if (nnz > UINT32_MAX)
    return fail(SI_ERR_ARGUMENT, "expected fewer than 2^32 non-zeros for the csr format, got ", nnz,
                "; try splitting the layer");

  const Layout layout = layout_of(shape, nnz);
  BlobHeader header = make_header(SI_FORMAT_CSR, shape);
  header.value_type = SI_F32;
  header.nnz = nnz;
  header.params[kParamIndexBits] = 32;
  header.counts[0] = nnz;
  SI_TRY(new_blob(header, layout.plan, out));
  auto* row = out->at<uint32_t>(layout.row);
  auto* column = out->at<uint32_t>(layout.column);
  auto* value = out->at<float>(layout.value);

  uint32_t stored = 0;
  for (int64_t m = 0; m < M; ++m) {
    row[m] = stored;
    for (int64_t k = 0; k < K; ++k) {
      const float w = weight[m * K + k];
      if (w == 0.0f) continue;
      SI_TRY(check_unchanged(stored < nnz));
      column[stored] = static_cast<uint32_t>(k);
      value[stored++] = w;
    }
  }
  SI_TRY(check_unchanged(stored == nnz));
  row[M] = stored;
  seal_blob(out->data.get());
  return SI_OK;
}

si_status csr_validate(const BlobHeader& header, const void* blob, size_t bytes, CsrView* out) {
  const WeightShape shape = shape_of(header);
  const int64_t M = shape.M(), K = shape.K();
  if (header.value_type != SI_F32) return corrupt("csr: unknown value type ", header.value_type);
  if (header.params[kParamIndexBits] != 32) return corrupt("csr: unknown index width ", header.params[kParamIndexBits]);
  for (int i = kParamIndexBits + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("csr: a reserved parameter is not zero");
  const uint64_t nnz = header.counts[0];
  if (nnz > UINT32_MAX || nnz != header.nnz || header.counts[1] != 0) return corrupt("csr: counts out of range");
  const Layout layout = layout_of(shape, nnz);
  if (layout.plan.total() != bytes) return corrupt("csr: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));

  const auto* base = static_cast<const uint8_t*>(blob);
  CsrView view{};
  view.shape = shape;
  view.row = reinterpret_cast<const uint32_t*>(base + layout.row);
  view.column = reinterpret_cast<const uint32_t*>(base + layout.column);
  view.value = reinterpret_cast<const float*>(base + layout.value);
  view.nnz = nnz;
  if (view.row[0] != 0 || view.row[M] != nnz) return corrupt("csr: the row starts do not run from 0 to the count");
  for (int64_t m = 0; m < M; ++m) {
    const uint32_t first = view.row[m], last = view.row[m + 1];
    if (last < first || last > nnz) return corrupt("csr: row ", m, ": row starts decrease");
    for (uint32_t i = first; i < last; ++i) {
      if (view.column[i] >= K) return corrupt("csr: row ", m, ": a column index is out of range");
      if (i > first && view.column[i] <= view.column[i - 1])
        return corrupt("csr: row ", m, ": column indices do not increase");
      if (view.value[i] == 0.0f) return corrupt("csr: row ", m, ": a stored value is zero");
    }
  }
  *out = view;
  return SI_OK;
}

void csr_unpack(const CsrView& view, float* weight) {
  const int64_t M = view.shape.M(), K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(M * K) * sizeof(float));
  for (int64_t m = 0; m < M; ++m)
    for (uint32_t i = view.row[m]; i < view.row[m + 1]; ++i) weight[m * K + view.column[i]] = view.value[i];
}

void csr_describe(const CsrView& view, const void* blob, si_weight_info* info) {
  section_offsets(blob, info->sections, view.row, view.column, view.value);
}

}  // namespace si
