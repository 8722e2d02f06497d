// A validated packed weight: what a si_weights handle holds.
#pragma once

#include <sparseinfer.h>

#include "formats/bsr/bsr.h"
#include "formats/csr/csr.h"
#include "formats/nm/nm.h"
#include "formats/panel/panel.h"

struct si_weights {
  si_format format;
  si::WeightShape shape;
  uint64_t bytes;
  int64_t nnz;
  const void* blob;
  // The one that `format` names is filled in.
  si::PanelView panel;
  si::CsrView csr;
  si::NmView nm;
  si::BsrView bsr;
};

namespace si {

// Validates; throws SI_ERR_CORRUPT or SI_ERR_ARGUMENT.
si_weights open_weights(const void* blob, size_t bytes);
si_weight_info describe(const si_weights& weights);

}  // namespace si
