#include "kernels/conv/byte_image.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace si {

ByteImage::Axis ByteImage::axis_of(int64_t kernel, int64_t stride, int64_t dilation, bool apart) {
  if (apart) return {stride, dilation, kernel, 0, true};
  const int64_t residues = stride / std::gcd(stride, dilation);
  return {stride, dilation, std::min(kernel, residues), (kernel - 1) * dilation / stride, false};
}

ByteImage::ByteImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows)
    : geometry_(geometry),
      args_(args),
      first_row_(first_row),
      vertical_(axis_of(geometry.kh, args.stride[0], args.dilation[0], false)),
      horizontal_(axis_of(geometry.kw, args.stride[1], args.dilation[1], rows > 1)),
      rows_(rows + vertical_.reach),
      pitch_(geometry.ow + horizontal_.reach),
      plane_(saturated((saturated(rows_, pitch_) + kMostDwordWidth - 1) / kMostDwordWidth, kMostDwordWidth)),
      channel_(saturated(saturated(vertical_.planes, horizontal_.planes), plane_)) {}

void ByteImage::taps(int32_t* out) const {
  const int64_t area = geometry_.kh * geometry_.kw;
  for (int64_t tap = 0; tap < area; ++tap) {
    const int64_t kr = tap / geometry_.kw, kc = tap % geometry_.kw;
    const int64_t plane = vertical_.plane_of(kr) * horizontal_.planes + horizontal_.plane_of(kc);
    out[tap] = static_cast<int32_t>(plane * plane_ + vertical_.shift_of(kr) * pitch_ + horizontal_.shift_of(kc));
  }
  for (int64_t channel = 1; channel < geometry_.group_channels; ++channel)
    for (int64_t tap = 0; tap < area; ++tap)
      out[channel * area + tap] = out[tap] + static_cast<int32_t>(channel * channel_);
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

int64_t ByteImage::begin() const {
  return std::clamp<int64_t>(first_row_ * args_.stride[0] - args_.padding[0], 0, args_.h);
}

int64_t ByteImage::end() const {
  return std::clamp<int64_t>((first_row_ + rows_) * args_.stride[0] - args_.padding[0], begin(), args_.h);
}

int64_t ByteImage::room() const {
  const int64_t sides = horizontal_.planes * static_cast<int64_t>(sizeof(Inside));
  return sides + (end() - begin()) * args_.w + rows_ * args_.stride[1] * narrow();
}

void ByteImage::copy_plane(const ByteKernels& kernels, const uint8_t* from, int64_t from_pitch, int64_t rows,
                           const Inside& columns, uint8_t* out) const {
  // Rows as long as those of the plane in one piece, over what lies outside.
  if (from_pitch == pitch_)
    std::memcpy(out + columns.first, from, static_cast<size_t>((rows - 1) * pitch_ + columns.count));
  else
    kernels.copy_rows({from, from_pitch, out + columns.first, pitch_, rows, columns.count, 1});
  const auto outside = [&](int64_t column) {
    for (int64_t j = 0; j < rows; ++j)
      out[j * pitch_ + column] = static_cast<uint8_t>(args_.quantization->x_zero_point);
  };
  for (int64_t column = 0; column < columns.first; ++column) outside(column);
  for (int64_t column = columns.first + columns.count; column < pitch_; ++column) outside(column);
}

void ByteImage::fill_rows(const ByteKernels& kernels, const void* x, const ToByte& to, int64_t first, int64_t last,
                          uint8_t* room, uint8_t* out) const {
  // The columns of each residue by the stride are brought side by side, where that is not so.
  const bool as_it_stands = args_.stride[0] == 1 && args_.stride[1] == 1;
  const int64_t residues = args_.stride[1], pitch = narrow(), from_row = begin();
  const int64_t bytes = (end() - from_row) * args_.w;
  // The divisions are done for all channels at once.
  auto* const columns = reinterpret_cast<Inside*>(room);
  for (int64_t side = 0; side < horizontal_.planes; ++side) {
    columns[side] = inside(horizontal_, side, 0, args_.padding[2], pitch_, args_.w);
    columns[side].source = columns[side].source % residues * rows_ * pitch + columns[side].source / residues;
  }
  Inside rows[2];
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    rows[plane] = inside(vertical_, plane, first_row_, args_.padding[0], rows_, args_.h);
  uint8_t* const quantized = room + horizontal_.planes * static_cast<int64_t>(sizeof(Inside));
  uint8_t* const apart = quantized + bytes;
  for (int64_t channel = first; channel < last; ++channel) {
    const int64_t at = (channel * args_.h + from_row) * args_.w;
    const uint8_t* image = quantized;
    if (args_.x_type == SI_U8)
      image = static_cast<const uint8_t*>(x) + at;
    else
      kernels.quantize(static_cast<const float*>(x) + at, bytes, to, quantized);
    // From here on nothing is written yet.
    uint8_t* rest = out + channel * channel_;
    const auto outside_up_to = [&](const uint8_t* end) {
      std::memset(rest, static_cast<int>(args_.quantization->x_zero_point), static_cast<size_t>(end - rest));
    };
    uint8_t* to_plane = rest;
    for (int64_t plane = 0; plane < vertical_.planes; ++plane) {
      const Inside& some = rows[plane];
      const uint8_t* from = image + (some.source - from_row) * args_.w;
      for (int64_t residue = 0; !as_it_stands && some.count > 0 && residue < std::min(residues, args_.w); ++residue)
        kernels.copy_rows({from + residue, args_.stride[0] * args_.w, apart + residue * rows_ * pitch, pitch,
                           some.count, pitch - (residue > (args_.w - 1) % residues ? 1 : 0), residues});
      if (!as_it_stands) from = apart;
      for (int64_t side = 0; side < horizontal_.planes; ++side, to_plane += plane_) {
        if (some.count == 0 || columns[side].count == 0) continue;
        uint8_t* const first_row = to_plane + some.first * pitch_;
        outside_up_to(first_row);
        copy_plane(kernels, from + columns[side].source, pitch, some.count, columns[side], first_row);
        rest = first_row + some.count * pitch_;
      }
    }
    outside_up_to(to_plane);
  }
}

void ByteImage::fill_plainly(const void* x, const ToByte& to, int64_t channel, uint8_t* out) const {
  // Positions that no tap reads may lie past the padded image.
  const auto source = [&](int axis, int64_t p, int64_t size) {
    const int64_t last = size - 1 + args_.padding[2 * axis + 1];
    return padded_source(std::min(p - args_.padding[2 * axis], last), size, args_.padding_mode);
  };
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    for (int64_t side = 0; side < horizontal_.planes; ++side, out += plane_ - rows_ * pitch_)
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
  if (by_rows()) return fill_rows(kernels, x, to, first, last, room, out);
  for (int64_t channel = first; channel < last; ++channel) fill_plainly(x, to, channel, out + channel * channel_);
}

}  // namespace si
