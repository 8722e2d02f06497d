#include "kernels/conv/geometry.h"

#include <algorithm>

#include "core/error.h"

namespace si {

namespace {

// Far beyond any image, near enough that no sum or product below overflows.
constexpr int64_t kMaxExtent = int64_t{1} << 30;

si_status check_axis(const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t before,
                     int64_t after, si_padding mode) {
  if (size < 1 || size > kMaxExtent)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " of the image from 1 to 2^30, got ", size);
  if (stride < 1 || stride > kMaxExtent)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " stride from 1 to 2^30, got ", stride);
  if (dilation < 1 || dilation > kMaxExtent)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " dilation from 1 to 2^30, got ", dilation);
  if (before < 0 || after < 0 || before > kMaxExtent || after > kMaxExtent)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " padding from 0 to 2^30, got ", before, " and ", after);
  const int64_t most = before > after ? before : after;
  if (mode == SI_PAD_REFLECT && most >= size)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " reflect padding below the image's ", size, ", got ", most);
  if (mode == SI_PAD_CIRCULAR && most > size)
    return fail(SI_ERR_ARGUMENT, "conv: expected ", axis, " circular padding of at most the image's ", size, ", got ",
                most);
  const int64_t reach = dilation * (kernel - 1) + 1;
  if (size + before + after < reach)
    return fail(SI_ERR_ARGUMENT, "conv: expected a padded ", axis, " of at least the kernel's ", reach, ", got ",
                size + before + after);
  return SI_OK;
}

}  // namespace

si_status conv_geometry(const WeightShape& shape, const si_conv_args& args, ConvGeometry* out) {
  if (shape.ndim < 3)
    return fail(SI_ERR_ARGUMENT, "conv: expected a convolution weight of 3 or 4 dimensions, got ", shape.ndim);
  ConvGeometry g{};
  g.group_channels = shape.dims[1];
  g.channels = g.group_channels * shape.groups;
  g.kh = shape.ndim == 4 ? shape.dims[2] : 1;
  g.kw = shape.dims[shape.ndim - 1];
  if (args.padding_mode < SI_PAD_ZEROS || args.padding_mode > SI_PAD_CIRCULAR)
    return fail(SI_ERR_ARGUMENT, "conv: unknown padding mode ", args.padding_mode);
  SI_TRY(check_axis("height", args.h, g.kh, args.stride[0], args.dilation[0], args.padding[0], args.padding[1],
                    args.padding_mode));
  SI_TRY(check_axis("width", args.w, g.kw, args.stride[1], args.dilation[1], args.padding[2], args.padding[3],
                    args.padding_mode));
  g.oh = (args.h + args.padding[0] + args.padding[1] - args.dilation[0] * (g.kh - 1) - 1) / args.stride[0] + 1;
  g.ow = (args.w + args.padding[2] + args.padding[3] - args.dilation[1] * (g.kw - 1) - 1) / args.stride[1] + 1;
  *out = g;
  return SI_OK;
}

bool is_pointwise(const ConvGeometry& geometry, const si_conv_args& args) {
  const auto zero = [](int64_t padding) { return padding == 0; };
  return geometry.kh == 1 && geometry.kw == 1 && args.stride[0] == 1 && args.stride[1] == 1 &&
         std::all_of(args.padding, args.padding + 4, zero);
}

int64_t padded_source(int64_t p, int64_t size, si_padding mode) {
  if (p >= 0 && p < size) return p;
  switch (mode) {
    case SI_PAD_ZEROS:
      break;
    case SI_PAD_REFLECT:
      return p < 0 ? -p : 2 * (size - 1) - p;
    case SI_PAD_REPLICATE:
      return p < 0 ? 0 : size - 1;
    case SI_PAD_CIRCULAR:
      return p < 0 ? p + size : p - size;
  }
  return -1;
}

}  // namespace si
