#include "kernels/conv/half_image.h"

#include <algorithm>

#include "formats/values.h"

namespace si {

HalfImage::HalfImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows)
    : geometry_(geometry),
      args_(args),
      first_row_(first_row),
      rows_((rows - 1) * args.stride[0] + (geometry.kh - 1) * args.dilation[0] + 1),
      columns_((geometry.ow - 1) * args.stride[1] + (geometry.kw - 1) * args.dilation[1] + 1),
      part_((columns_ + args.stride[1] - 1) / args.stride[1]),
      pitch_(part_ * args.stride[1]),
      channel_(pitch_ > kMost / rows_ ? kMost + 1 : pitch_ * rows_) {}

void HalfImage::taps(int32_t* out) const {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(uint16_t));
  const int64_t area = geometry_.kh * geometry_.kw, stride = args_.stride[1];
  for (int64_t tap = 0; tap < area; ++tap) {
    const int64_t kr = tap / geometry_.kw, column = tap % geometry_.kw * args_.dilation[1];
    const int64_t at = kr * args_.dilation[0] * pitch_ + column % stride * part_ + column / stride;
    out[tap] = static_cast<int32_t>(at * kBytes);
  }
  // Of the other channels without a division.
  const auto channel = static_cast<int32_t>(channel_ * kBytes);
  for (int64_t k = area; k < geometry_.group_channels * area; ++k) out[k] = out[k - area] + channel;
}

void HalfImage::fill(const PairKernels& kernels, const void* x, int64_t first, int64_t last, uint16_t* room,
                     uint16_t* out) const {
  const int64_t w = args_.w, before = args_.padding[2], stride = args_.stride[1];
  const int64_t end = std::min(columns_, before + w);
  const int64_t size = element_bytes(args_.x_type);
  for (int64_t channel = first; channel < last; ++channel)
    for (int64_t r = 0; r < rows_; ++r) {
      uint16_t* const to = out + channel * channel_ + r * pitch_;
      const int64_t row =
          padded_source(first_row_ * args_.stride[0] + r - args_.padding[0], args_.h, args_.padding_mode);
      if (row < 0) {
        std::fill(to, to + pitch_, uint16_t{0});
        continue;
      }
      const void* from = static_cast<const uint8_t*>(x) + (channel * args_.h + row) * w * size;
      kernels.narrow(from, args_.x_type, w, room);
      const auto padding = [&](int64_t c) {
        const int64_t column = padded_source(c - before, w, args_.padding_mode);
        return column < 0 ? uint16_t{0} : room[column];
      };
      for (int64_t part = 0; part < stride; ++part) {
        uint16_t* at = to + part * part_;
        int64_t c = part;
        for (; c < std::min(before, columns_); c += stride) *at++ = padding(c);
        if (stride == 1 && c < end) {
          std::copy(room + (c - before), room + (end - before), at);
          at += end - c;
          c = end;
        }
        for (; c < end; c += stride) *at++ = room[c - before];
        for (; c < columns_; c += stride) *at++ = padding(c);
      }
    }
}

}  // namespace si
