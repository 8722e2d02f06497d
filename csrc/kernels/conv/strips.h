// How a convolution is cut: strips of output pixels, each with a scratch image of its own that stays near, shares for
// the threads, and room that is bounded whatever the image.
#pragma once

#include "kernels/conv/image.h"
#include "kernels/source.h"

namespace si {

struct ConvCut {
  int64_t images;         // of the batch that a pass computes
  int64_t rows, columns;  // strips of an image along each axis
  int64_t groups;         // of channels that a scratch image holds at a time
  int64_t parts;          // of the weight's rows: threads that compute the same strip, each with a scratch image

  int64_t strips() const { return rows * columns; }
  // Strip `index` of strips(), row by row.
  Strip strip(const ConvGeometry& geometry, int64_t index) const;
};

// What chooses: everything about a call but the values.
struct ConvCall {
  const TileSource& source;
  const si_conv_args& args;
  const ConvGeometry& geometry;
  int threads;
  bool apart;  // asked of the scratch image
};

// `divided`: threads share each image; else each has whole ones. Fails with SI_ERR_UNSUPPORTED where the least strip
// takes more than 32-bit offsets reach, whatever the threads.
[[nodiscard]] si_status cut_conv(const ConvCall& call, int64_t images, bool divided, ConvCut* out);

// Images of the batch, at most `images`, whose scratch stays in bounds together.
int64_t images_in_bounds(const ConvCall& call, int64_t images);

}  // namespace si
