#include "kernels/conv/byte_image.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace si {

ByteImage::Axis ByteImage::axis_of(int64_t kernel, int64_t stride, int64_t dilation) {
  return {stride, dilation, std::min(kernel, stride / std::gcd(stride, dilation)), (kernel - 1) * dilation / stride};
}

ByteImage::ByteImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows)
    : geometry_(geometry),
      args_(args),
      first_row_(first_row),
      vertical_(axis_of(geometry.kh, args.stride[0], args.dilation[0])),
      horizontal_(axis_of(geometry.kw, args.stride[1], args.dilation[1])),
      rows_(rows + vertical_.reach),
      pitch_(geometry.ow + horizontal_.reach),
      plane_(saturated(rows_, pitch_)),
      channel_(saturated(vertical_.planes * horizontal_.planes, plane_)) {}

void ByteImage::taps(int32_t* out) const {
  for (int64_t ic = 0; ic < geometry_.group_channels; ++ic)
    for (int64_t kr = 0; kr < geometry_.kh; ++kr)
      for (int64_t kc = 0; kc < geometry_.kw; ++kc) {
        const int64_t plane = vertical_.plane_of(kr) * horizontal_.planes + horizontal_.plane_of(kc);
        *out++ = static_cast<int32_t>(ic * channel_ + plane * plane_ + vertical_.shift_of(kr) * pitch_ +
                                      horizontal_.shift_of(kc));
      }
}

si_status ByteImage::fill(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t first, int64_t last,
                          uint8_t* row, uint8_t* out) const {
  // The source of each column of each plane, -1 outside. Positions that no tap reads may lie past the padded image.
  Buffer<int64_t> source;
  SI_TRY(source.allocate(horizontal_.planes * pitch_));
  for (int64_t plane = 0; plane < horizontal_.planes; ++plane)
    for (int64_t j = 0; j < pitch_; ++j) {
      const int64_t p = j * args_.stride[1] + horizontal_.phase(plane) - args_.padding[2];
      source[plane * pitch_ + j] =
          padded_source(std::min(p, args_.w - 1 + args_.padding[3]), args_.w, args_.padding_mode);
    }
  const auto outside = static_cast<int>(args_.quantization->x_zero_point);
  // With a stride of 1 the columns inside the image are one run.
  const bool run = args_.stride[1] == 1 && args_.padding_mode == SI_PAD_ZEROS;
  const int64_t before = std::min(args_.padding[2], pitch_), within = std::min(args_.w, pitch_ - before);
  for (int64_t channel = first; channel < last; ++channel)
    for (int64_t plane = 0; plane < vertical_.planes; ++plane)
      for (int64_t j = 0; j < rows_; ++j) {
        const int64_t p = (first_row_ + j) * args_.stride[0] + vertical_.phase(plane) - args_.padding[0];
        const int64_t r = padded_source(std::min(p, args_.h - 1 + args_.padding[1]), args_.h, args_.padding_mode);
        uint8_t* dst = out + channel * channel_ + plane * horizontal_.planes * plane_ + j * pitch_;
        if (r < 0) {
          for (int64_t side = 0; side < horizontal_.planes; ++side)
            std::memset(dst + side * plane_, outside, static_cast<size_t>(pitch_));
          continue;
        }
        const int64_t at = (channel * args_.h + r) * args_.w;
        const uint8_t* from = row;
        if (args_.x_type == SI_U8)
          from = static_cast<const uint8_t*>(x) + at;
        else
          kernels.quantize(static_cast<const float*>(x) + at, args_.w, to, row);
        if (run) {
          std::memset(dst, outside, static_cast<size_t>(before));
          std::memcpy(dst + before, from, static_cast<size_t>(within));
          std::memset(dst + before + within, outside, static_cast<size_t>(pitch_ - before - within));
          continue;
        }
        for (int64_t side = 0; side < horizontal_.planes; ++side)
          for (int64_t i = 0; i < pitch_; ++i) {
            const int64_t c = source[side * pitch_ + i];
            dst[side * plane_ + i] = c < 0 ? static_cast<uint8_t>(outside) : from[c];
          }
      }
  return SI_OK;
}

}  // namespace si
