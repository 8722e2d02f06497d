// The geometry of a convolution: output size and where padded positions come from.
#pragma once

#include <sparseinfer.h>

#include "formats/blob.h"

namespace si {

struct ConvGeometry {
  int64_t channels;  // of x: all groups
  int64_t group_channels;
  int64_t kh, kw;
  int64_t oh, ow;
};

// Fails with SI_ERR_ARGUMENT when the arguments do not describe a convolution with at least one output pixel.
[[nodiscard]] si_status conv_geometry(const WeightShape& shape, const si_conv_args& args, ConvGeometry* out);

// Whether a kernel of one tap with stride 1 and no padding reads the image as it stands.
bool is_pointwise(const ConvGeometry& geometry, const si_conv_args& args);

// The source row (or column) of position p of the padded image, p counted from -padding; -1 for a zero.
int64_t padded_source(int64_t p, int64_t size, si_padding mode);

}  // namespace si
