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
  const int64_t area = geometry_.kh * geometry_.kw;
  for (int64_t tap = 0; tap < area; ++tap) {
    const int64_t kr = tap / geometry_.kw, kc = tap % geometry_.kw;
    const int64_t plane = vertical_.plane_of(kr) * horizontal_.planes + horizontal_.plane_of(kc);
    out[tap] = static_cast<int32_t>(plane * plane_ + vertical_.shift_of(kr) * pitch_ + horizontal_.shift_of(kc));
  }
  // Of the other channels without a division.
  const auto channel = static_cast<int32_t>(channel_);
  for (int64_t k = area; k < geometry_.group_channels * area; ++k) out[k] = out[k - area] + channel;
}

bool ByteImage::by_rows() const {
  return args_.stride[0] <= 2 && args_.stride[1] <= 2 && args_.padding_mode == SI_PAD_ZEROS;
}

ByteImage::Inside ByteImage::inside(const Axis& axis, int64_t plane, int64_t first, int64_t padding, int64_t length,
                                    int64_t size) {
  const int64_t begin = first * axis.stride + axis.phase(plane) - padding;
  const int64_t before = begin < 0 ? std::min((-begin + axis.stride - 1) / axis.stride, length) : 0;
  const int64_t source = begin + before * axis.stride;
  const int64_t count = source < size ? std::min((size - 1 - source) / axis.stride + 1, length - before) : 0;
  return {before, count, source};
}

int64_t ByteImage::room() const {
  return by_rows() ? std::min(args_.h, (rows_ + 1) * args_.stride[0]) * args_.w : args_.w;
}

void ByteImage::fill_rows(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t channel, uint8_t* room,
                          uint8_t* out) const {
  // The rows of the image that any plane reads, as bytes.
  const int64_t begin = std::clamp<int64_t>(first_row_ * args_.stride[0] - args_.padding[0], 0, args_.h);
  const int64_t end = std::clamp<int64_t>((first_row_ + rows_) * args_.stride[0] - args_.padding[0], begin, args_.h);
  const int64_t at = (channel * args_.h + begin) * args_.w;
  const uint8_t* from = room;
  if (args_.x_type == SI_U8)
    from = static_cast<const uint8_t*>(x) + at;
  else
    kernels.quantize(static_cast<const float*>(x) + at, (end - begin) * args_.w, to, room);
  std::memset(out, static_cast<int>(args_.quantization->x_zero_point), static_cast<size_t>(channel_));
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    for (int64_t side = 0; side < horizontal_.planes; ++side, out += plane_) {
      const Inside rows = inside(vertical_, plane, first_row_, args_.padding[0], rows_, args_.h);
      const Inside columns = inside(horizontal_, side, 0, args_.padding[2], pitch_, args_.w);
      kernels.copy_rows({from + (rows.source - begin) * args_.w + columns.source, args_.stride[0] * args_.w,
                         out + rows.first * pitch_ + columns.first, pitch_, columns.count > 0 ? rows.count : 0,
                         columns.count, args_.stride[1]});
    }
}

void ByteImage::fill_plainly(const void* x, const ToByte& to, int64_t channel, uint8_t* out) const {
  // Positions that no tap reads may lie past the padded image.
  const auto source = [&](int axis, int64_t p, int64_t size) {
    const int64_t last = size - 1 + args_.padding[2 * axis + 1];
    return padded_source(std::min(p - args_.padding[2 * axis], last), size, args_.padding_mode);
  };
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    for (int64_t side = 0; side < horizontal_.planes; ++side)
      for (int64_t j = 0; j < rows_; ++j) {
        const int64_t row = source(0, (first_row_ + j) * args_.stride[0] + vertical_.phase(plane), args_.h);
        for (int64_t i = 0; i < pitch_; ++i) {
          const int64_t column = source(1, i * args_.stride[1] + horizontal_.phase(side), args_.w);
          const int64_t at = (channel * args_.h + row) * args_.w + column;
          if (row < 0 || column < 0)
            *out++ = static_cast<uint8_t>(args_.quantization->x_zero_point);
          else
            *out++ = args_.x_type == SI_U8 ? static_cast<const uint8_t*>(x)[at]
                                           : quantize(static_cast<const float*>(x)[at], to);
        }
      }
}

void ByteImage::fill(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t first, int64_t last,
                     uint8_t* room, uint8_t* out) const {
  for (int64_t channel = first; channel < last; ++channel) {
    if (by_rows())
      fill_rows(kernels, x, to, channel, room, out + channel * channel_);
    else
      fill_plainly(x, to, channel, out + channel * channel_);
  }
}

}  // namespace si
