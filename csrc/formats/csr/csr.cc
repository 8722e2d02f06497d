#include "formats/csr/csr.h"

#include <cstring>

#include "core/error.h"

namespace si {

namespace {

enum CsrParam { kParamIndexBits };

struct Layout {
  SectionPlan plan;
  size_t row, column, value;
};

Layout layout_of(const WeightShape& shape, uint64_t nnz) {
  Layout layout{};
  layout.row = layout.plan.add(static_cast<uint64_t>(shape.M()) + 1, sizeof(uint32_t));
  layout.column = layout.plan.add(nnz, sizeof(uint32_t));
  layout.value = layout.plan.add(nnz, sizeof(float));
  return layout;
}

}  // namespace

uint8_t* csr_pack(const float* weight, const WeightShape& shape, size_t* bytes) {
  const int64_t M = shape.M(), K = shape.K();
  uint64_t nnz = 0;
  for (int64_t i = 0; i < M * K; ++i) nnz += weight[i] != 0.0f;
  if (nnz > UINT32_MAX)
    fail(SI_ERR_ARGUMENT, "expected fewer than 2^32 non-zeros for the csr format, got " + std::to_string(nnz) +
                              "; try splitting the layer");

  const Layout layout = layout_of(shape, nnz);
  BlobHeader header = make_header(SI_FORMAT_CSR, shape);
  header.value_type = SI_F32;
  header.nnz = nnz;
  header.params[kParamIndexBits] = 32;
  header.counts[0] = nnz;
  BlobPtr blob = new_blob(header, layout.plan.total());
  auto* row = reinterpret_cast<uint32_t*>(blob.get() + layout.row);
  auto* column = reinterpret_cast<uint32_t*>(blob.get() + layout.column);
  auto* value = reinterpret_cast<float*>(blob.get() + layout.value);

  uint32_t stored = 0;
  for (int64_t m = 0; m < M; ++m) {
    row[m] = stored;
    for (int64_t k = 0; k < K; ++k) {
      const float w = weight[m * K + k];
      if (w == 0.0f) continue;
      check_unchanged(stored < nnz);
      column[stored] = static_cast<uint32_t>(k);
      value[stored++] = w;
    }
  }
  check_unchanged(stored == nnz);
  row[M] = stored;
  seal_blob(blob.get());
  *bytes = layout.plan.total();
  return blob.release();
}

CsrView csr_validate(const BlobHeader& header, const void* blob, size_t bytes) {
  const WeightShape shape = shape_of(header);
  const int64_t M = shape.M(), K = shape.K();
  if (header.value_type != SI_F32) corrupt("csr: unknown value type " + std::to_string(header.value_type));
  if (header.params[kParamIndexBits] != 32)
    corrupt("csr: unknown index width " + std::to_string(header.params[kParamIndexBits]));
  for (int i = kParamIndexBits + 1; i < 8; ++i)
    if (header.params[i] != 0) corrupt("csr: a reserved parameter is not zero");
  const uint64_t nnz = header.counts[0];
  if (nnz > UINT32_MAX || nnz != header.nnz || header.counts[1] != 0) corrupt("csr: counts out of range");
  const Layout layout = layout_of(shape, nnz);
  if (layout.plan.total() != bytes) corrupt("csr: its size does not match its counts");
  layout.plan.check_slack(blob);

  const auto* base = static_cast<const uint8_t*>(blob);
  CsrView view{};
  view.shape = shape;
  view.row = reinterpret_cast<const uint32_t*>(base + layout.row);
  view.column = reinterpret_cast<const uint32_t*>(base + layout.column);
  view.value = reinterpret_cast<const float*>(base + layout.value);
  view.nnz = nnz;
  if (view.row[0] != 0 || view.row[M] != nnz) corrupt("csr: the row starts do not run from 0 to the count");
  for (int64_t m = 0; m < M; ++m) {
    const uint32_t first = view.row[m], last = view.row[m + 1];
    if (last < first || last > nnz) corrupt("csr: row " + std::to_string(m) + ": row starts decrease");
    for (uint32_t i = first; i < last; ++i) {
      if (view.column[i] >= K) corrupt("csr: row " + std::to_string(m) + ": a column index is out of range");
      if (i > first && view.column[i] <= view.column[i - 1])
        corrupt("csr: row " + std::to_string(m) + ": column indices do not increase");
      if (view.value[i] == 0.0f) corrupt("csr: row " + std::to_string(m) + ": a stored value is zero");
    }
  }
  return view;
}

void csr_unpack(const CsrView& view, float* weight) {
  const int64_t M = view.shape.M(), K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(M * K) * sizeof(float));
  for (int64_t m = 0; m < M; ++m)
    for (uint32_t i = view.row[m]; i < view.row[m + 1]; ++i) weight[m * K + view.column[i]] = view.value[i];
}

void csr_sections(const CsrView& view, const void* blob, uint64_t (&offsets)[4]) {
  const void* starts[3] = {view.row, view.column, view.value};
  for (int i = 0; i < 3; ++i)
    offsets[i] = static_cast<uint64_t>(static_cast<const uint8_t*>(starts[i]) - static_cast<const uint8_t*>(blob));
  offsets[3] = 0;
}

}  // namespace si
