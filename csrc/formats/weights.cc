#include "formats/weights.h"

namespace si {

si_weights open_weights(const void* blob, size_t bytes) {
  const BlobHeader& header = check_header(blob, bytes);
  si_weights weights{};
  weights.shape = shape_of(header);
  weights.bytes = bytes;
  weights.nnz = static_cast<int64_t>(header.nnz);
  weights.blob = blob;
  weights.format = static_cast<si_format>(header.format);
  switch (header.format) {
    case SI_FORMAT_PANEL:
      weights.panel = panel_validate(header, blob, bytes);
      break;
    case SI_FORMAT_CSR:
      weights.csr = csr_validate(header, blob, bytes);
      break;
    case SI_FORMAT_NM:
      weights.nm = nm_validate(header, blob, bytes);
      break;
    case SI_FORMAT_BSR:
      weights.bsr = bsr_validate(header, blob, bytes);
      break;
    default:
      corrupt("unknown format " + std::to_string(header.format));
  }
  return weights;
}

si_weight_info describe(const si_weights& weights) {
  si_weight_info info{};
  info.format = weights.format;
  info.desc.ndim = weights.shape.ndim;
  for (int i = 0; i < 4; ++i) info.desc.shape[i] = weights.shape.dims[i];
  info.desc.groups = weights.shape.groups;
  info.nnz = weights.nnz;
  info.bytes = weights.bytes;
  const auto& header = *static_cast<const BlobHeader*>(weights.blob);
  info.value_type = static_cast<si_value_type>(header.value_type);
  for (int i = 0; i < 4; ++i) info.params[i] = static_cast<int32_t>(header.params[i]);
  switch (weights.format) {
    case SI_FORMAT_PANEL:
      panel_sections(weights.panel, weights.blob, info.sections);
      break;
    case SI_FORMAT_CSR:
      csr_sections(weights.csr, weights.blob, info.sections);
      break;
    case SI_FORMAT_NM:
      nm_sections(weights.nm, weights.blob, info.sections);
      break;
    case SI_FORMAT_BSR:
      info.params[1] = static_cast<int32_t>(weights.bsr.blocks);
      bsr_sections(weights.bsr, weights.blob, info.sections);
      break;
  }
  return info;
}

}  // namespace si
