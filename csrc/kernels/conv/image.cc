#include "kernels/conv/image.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace si {

namespace {

// Taps are 32-bit offsets.
constexpr int64_t kMaxFloats = 0x7fffffff;

// a * b of two positive factors, without overflow.
int64_t checked_floats(int64_t a, int64_t b) {
  if (a > kMaxFloats / b)
    fail(SI_ERR_UNSUPPORTED, "conv: expected a padded image of fewer than 2^31 values, got more; try smaller images");
  return a * b;
}

}  // namespace

ConvImage::Axis ConvImage::axis_of(int64_t kernel, int64_t stride, int64_t dilation) {
  Axis axis;
  axis.reach = 0;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t residue = tap * dilation % stride;
    auto at = std::find(axis.phases.begin(), axis.phases.end(), residue);
    if (at == axis.phases.end()) at = axis.phases.insert(at, residue);
    axis.plane_of.push_back(at - axis.phases.begin());
    axis.shift_of.push_back(tap * dilation / stride);
    axis.reach = std::max(axis.reach, axis.shift_of.back());
  }
  return axis;
}

ConvImage::ConvImage(const ConvGeometry& geometry, const si_conv_args& args, int64_t first_row, int64_t rows,
                     int64_t images, int vector_floats)
    : geometry_(geometry),
      args_(args),
      vertical_(axis_of(geometry.kh, args.stride[0], args.dilation[0])),
      horizontal_(axis_of(geometry.kw, args.stride[1], args.dilation[1])),
      first_row_(first_row),
      output_rows_(rows),
      rows_(rows + vertical_.reach) {
  const int64_t stride = args.stride[1], left = args.padding[2];
  const int64_t needed = geometry.ow + horizontal_.reach;
  pitch_ = geometry.ow;
  for (int64_t phase : horizontal_.phases) {
    Columns c{};
    if (args.padding_mode == SI_PAD_ZEROS) {
      // Plane column j is image column j * stride + phase - left.
      c.first = std::clamp<int64_t>((left - phase + stride - 1) / stride, 0, needed);
      if (left < phase) c.first = 0;
      c.last = std::clamp<int64_t>((args.w - 1 + left - phase) / stride + 1, c.first, needed);
      if (args.w - 1 + left < phase) c.last = c.first;
      c.source = c.first * stride + phase - left;
      // Reading past the pitch meets the next row's first columns: allowed while those are zeros.
      pitch_ = std::max({pitch_, c.last, needed - c.first});
    } else {
      checked_floats(rows_, needed);  // before a table that long is built
      for (int64_t j = 0; j < needed; ++j) {
        // A position past the padded image is read by garbage columns only.
        const int64_t p = std::min(j * stride + phase - left, args.w - 1 + args.padding[3]);
        c.column.push_back(padded_source(p, args.w, args.padding_mode));
      }
      pitch_ = std::max(pitch_, needed);
    }
    columns_.push_back(std::move(c));
  }
  // The last row of the last image has no next row to share zeros with.
  const int64_t tail = std::max<int64_t>(0, needed - pitch_);
  plane_ = checked_floats(checked_floats(images, rows_), pitch_) + tail;
  channel_ = checked_floats(static_cast<int64_t>(vertical_.phases.size() * horizontal_.phases.size()), plane_);
  // Channels an odd number of cache lines apart spread over the sets of a cache.
  channel_ = (channel_ + 15) / 16 * 16;
  if (channel_ / 16 % 2 == 0) channel_ += 16;
  slack_ = horizontal_.reach + vector_floats;
  checked_floats(geometry.channels, channel_);
  checked_floats(floats(), 1);
}

void ConvImage::taps(int32_t* out) const {
  for (int64_t ic = 0; ic < geometry_.group_channels; ++ic)
    for (int64_t kr = 0; kr < geometry_.kh; ++kr)
      for (int64_t kc = 0; kc < geometry_.kw; ++kc) {
        const auto r = static_cast<size_t>(kr), c = static_cast<size_t>(kc);
        const int64_t plane =
            vertical_.plane_of[r] * static_cast<int64_t>(horizontal_.phases.size()) + horizontal_.plane_of[c];
        *out++ = static_cast<int32_t>(ic * channel_ + plane * plane_ + vertical_.shift_of[r] * pitch_ +
                                      horizontal_.shift_of[c]);
      }
}

void ConvImage::fill_row(const float* row, size_t phase, float* dst) const {
  const Columns& c = columns_[phase];
  const int64_t stride = args_.stride[1];
  if (!c.column.empty()) {
    const auto count = static_cast<int64_t>(c.column.size());
    for (int64_t j = 0; j < count; ++j) dst[j] = row[c.column[static_cast<size_t>(j)]];
    std::fill(dst + count, dst + pitch_, 0.0f);
    return;
  }
  std::fill(dst, dst + c.first, 0.0f);
  if (c.first < c.last) {
    const float* from = row + c.source;
    if (stride == 1)
      std::memcpy(dst + c.first, from, static_cast<size_t>(c.last - c.first) * sizeof(float));
    else if (stride == 2)  // the compiler turns a constant stride into shuffles
      for (int64_t j = 0; j < c.last - c.first; ++j) dst[c.first + j] = from[j * 2];
    else
      for (int64_t j = 0; j < c.last - c.first; ++j) dst[c.first + j] = from[j * stride];
  }
  std::fill(dst + c.last, dst + pitch_, 0.0f);
}

void ConvImage::fill_channel(const float* x, int64_t image_stride, int64_t images, float* dst) const {
  float* end = dst + channel_;
  for (int64_t vertical : vertical_.phases)
    for (size_t horizontal = 0; horizontal < horizontal_.phases.size(); ++horizontal) {
      float* plane_end = dst + plane_;
      for (int64_t image = 0; image < images; ++image)
        for (int64_t r = first_row_; r < first_row_ + rows_; ++r, dst += pitch_) {
          // Rows past the padded image feed garbage rows only, or none.
          const int64_t p = std::min(r * args_.stride[0] + vertical - args_.padding[0], args_.h - 1 + args_.padding[1]);
          const int64_t source = padded_source(p, args_.h, args_.padding_mode);
          if (source < 0)
            std::fill(dst, dst + pitch_, 0.0f);
          else
            fill_row(x + image * image_stride + source * args_.w, horizontal, dst);
        }
      std::fill(dst, plane_end, 0.0f);
      dst = plane_end;
    }
  std::fill(dst, end, 0.0f);
}

void ConvImage::fill(const float* x, int64_t images, float* scratch) const {
  const int64_t area = args_.h * args_.w;
  for (int64_t channel = 0; channel < geometry_.channels; ++channel)
    fill_channel(x + channel * area, geometry_.channels * area, images, scratch + channel * channel_);
  float* end = scratch + geometry_.channels * channel_;
  std::fill(end, end + slack_, 0.0f);
}

}  // namespace si
