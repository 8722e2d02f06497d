// Compressed sparse rows: the interchange format. Layout and the reasons for it: csrc/formats/csr/LAYOUT.md.
#pragma once

#include "formats/blob.h"

namespace si {

// Pointers into a validated blob.
struct CsrView {
  WeightShape shape;
  const uint32_t* row;     // [M + 1]: where each row starts in `column` and `value`; the last is nnz
  const uint32_t* column;  // k within the row's group
  const float* value;
  uint64_t nnz;
};

uint8_t* csr_pack(const float* weight, const WeightShape& shape, size_t* bytes);
// Checks every invariant of the layout; the header has been checked.
CsrView csr_validate(const BlobHeader& header, const void* blob, size_t bytes);
void csr_unpack(const CsrView& view, float* weight);
void csr_sections(const CsrView& view, const void* blob, uint64_t (&offsets)[4]);

}  // namespace si
