#include "kernels/conv/image.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace si {

namespace {

// Taps are 32-bit offsets.
constexpr int64_t kMaxFloats = 0x7fffffff;

// a * b of two positive factors, without overflow.
si_status checked_floats(int64_t a, int64_t b, int64_t* product) {
  SI_REQUIRE(a <= kMaxFloats / b, SI_ERR_UNSUPPORTED,
             "conv: expected a padded image of fewer than 2^31 values, got more; try smaller images");
  *product = a * b;
  return SI_OK;
}

// Floats of half a cache line.
constexpr int64_t kHalfLine = 8;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

bool ConvImage::can_be_apart(const ConvTuning& tuning, const ConvGeometry& geometry) {
  return geometry.kw > 1 && geometry.kw <= tuning.most_apart &&
         round_up(geometry.ow, kHalfLine) * tuning.apart_garbage <= geometry.ow * (tuning.apart_garbage + 1);
}

si_status ConvImage::Axis::allocate(int64_t kernel) {
  planes = reach = 0;
  SI_TRY(phases.allocate(kernel));
  SI_TRY(plane_of.allocate(kernel));
  return shift_of.allocate(kernel);
}

si_status ConvImage::Axis::plan_apart(int64_t kernel, int64_t dilation) {
  SI_TRY(allocate(kernel));
  planes = kernel;
  for (int64_t tap = 0; tap < kernel; ++tap) {
    phases[tap] = tap * dilation;
    plane_of[tap] = tap;
  }
  return SI_OK;
}

si_status ConvImage::Axis::plan(int64_t kernel, int64_t stride, int64_t dilation) {
  SI_TRY(allocate(kernel));
  for (int64_t tap = 0; tap < kernel; ++tap) {
    const int64_t residue = tap * dilation % stride;
    plane_of[tap] = std::find(phases.begin(), phases.begin() + planes, residue) - phases.begin();
    if (plane_of[tap] == planes) phases[planes++] = residue;
    shift_of[tap] = tap * dilation / stride;
    reach = std::max(reach, shift_of[tap]);
  }
  return SI_OK;
}

si_status ConvImage::plan(int64_t first_row, int64_t rows, int64_t images, bool apart) {
  first_row_ = first_row;
  output_rows_ = rows;
  apart = apart && can_be_apart(isa_.tuning.conv, geometry_);
  SI_TRY(vertical_.plan(geometry_.kh, args_.stride[0], args_.dilation[0]));
  SI_TRY(apart ? horizontal_.plan_apart(geometry_.kw, args_.dilation[1])
               : horizontal_.plan(geometry_.kw, args_.stride[1], args_.dilation[1]));
  rows_ = rows + vertical_.reach;
  const int64_t stride = args_.stride[1], left = args_.padding[2];
  const int64_t needed = geometry_.ow + horizontal_.reach;
  pitch_ = geometry_.ow;
  SI_TRY(columns_.allocate(horizontal_.planes));
  int64_t unused = 0;
  if (args_.padding_mode != SI_PAD_ZEROS) {
    SI_TRY(checked_floats(rows_, needed, &unused));  // before a table that long is built
    SI_TRY(column_of_.allocate(horizontal_.planes * needed));
  }
  for (int64_t plane = 0; plane < horizontal_.planes; ++plane) {
    const int64_t phase = horizontal_.phases[plane];
    Columns c{};
    if (args_.padding_mode == SI_PAD_ZEROS) {
      // Plane column j is image column j * stride + phase - left.
      c.first = std::clamp<int64_t>((left - phase + stride - 1) / stride, 0, needed);
      if (left < phase) c.first = 0;
      c.last = std::clamp<int64_t>((args_.w - 1 + left - phase) / stride + 1, c.first, needed);
      if (args_.w - 1 + left < phase) c.last = c.first;
      c.source = c.first * stride + phase - left;
      // Reading past the pitch meets the next row's first columns: allowed while those are zeros.
      pitch_ = std::max({pitch_, c.last, needed - c.first});
    } else {
      c.table = plane * needed;
      c.named = needed;
      for (int64_t j = 0; j < needed; ++j) {
        // A position past the padded image is read by garbage columns only.
        const int64_t p = std::min(j * stride + phase - left, args_.w - 1 + args_.padding[3]);
        column_of_[c.table + j] = padded_source(p, args_.w, args_.padding_mode);
      }
      pitch_ = std::max(pitch_, needed);
    }
    columns_[plane] = c;
  }
  if (apart) pitch_ = round_up(pitch_, kHalfLine);
  // The last row of the last image has no next row to share zeros with.
  const int64_t tail = std::max<int64_t>(0, needed - pitch_);
  SI_TRY(checked_floats(images, rows_, &plane_));
  SI_TRY(checked_floats(plane_, pitch_, &plane_));
  plane_ += tail;
  SI_TRY(checked_floats(vertical_.planes * horizontal_.planes, plane_, &channel_));
  // Channels an odd number of cache lines apart spread over the sets of a cache.
  channel_ = (channel_ + 15) / 16 * 16;
  if (channel_ / 16 % 2 == 0) channel_ += 16;
  slack_ = horizontal_.reach + isa_.width * isa_.max_vectors;
  SI_TRY(checked_floats(geometry_.channels, channel_, &unused));
  return checked_floats(floats(), 1, &unused);
}

void ConvImage::taps(int32_t* out) const {
  for (int64_t ic = 0; ic < geometry_.group_channels; ++ic)
    for (int64_t kr = 0; kr < geometry_.kh; ++kr)
      for (int64_t kc = 0; kc < geometry_.kw; ++kc) {
        const int64_t plane = vertical_.plane_of[kr] * horizontal_.planes + horizontal_.plane_of[kc];
        *out++ = static_cast<int32_t>(ic * channel_ + plane * plane_ + vertical_.shift_of[kr] * pitch_ +
                                      horizontal_.shift_of[kc]);
      }
}

void ConvImage::fill_plane(const float* x, int64_t first, const Columns& columns, float* dst) const {
  const int64_t stride = args_.stride[0], count = columns.last - columns.first;
  if (args_.padding_mode == SI_PAD_ZEROS && args_.stride[1] <= 2) {
    // Rows above the image, rows of it, rows below.
    const int64_t above = std::clamp<int64_t>((stride - 1 - first) / stride, 0, rows_);
    const int64_t in_image = first + above * stride;
    const int64_t rows = in_image < args_.h ? std::min((args_.h - 1 - in_image) / stride + 1, rows_ - above) : 0;
    std::fill_n(dst, above * pitch_, 0.0f);
    dst += above * pitch_;
    isa_.copy_rows({x + in_image * args_.w + columns.source, stride * args_.w, dst, pitch_, rows, columns.first, count,
                    pitch_ - columns.last, args_.stride[1]});
    std::fill_n(dst + rows * pitch_, (rows_ - above - rows) * pitch_, 0.0f);
    return;
  }
  for (int64_t r = 0; r < rows_; ++r, dst += pitch_) {
    // Rows past the padded image feed garbage rows only, or none.
    const int64_t p = std::min(first + r * stride, args_.h - 1 + args_.padding[1]);
    const int64_t source = padded_source(p, args_.h, args_.padding_mode);
    std::fill_n(dst, pitch_, 0.0f);
    if (source < 0) continue;
    const float* row = x + source * args_.w;
    for (int64_t j = 0; j < columns.named; ++j) dst[j] = row[column_of_[columns.table + j]];
    for (int64_t j = 0; j < count; ++j) dst[columns.first + j] = row[columns.source + j * args_.stride[1]];
  }
}

void ConvImage::fill_channel(const float* x, int64_t image_stride, int64_t images, float* dst) const {
  float* const end = dst + channel_;
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    for (const Columns& columns : columns_) {
      for (int64_t image = 0; image < images; ++image)
        fill_plane(x + image * image_stride, first_row_ * args_.stride[0] + vertical_.phases[plane] - args_.padding[0],
                   columns, dst + image * rows_ * pitch_);
      const int64_t used = images * rows_ * pitch_;
      std::fill(dst + used, dst + plane_, 0.0f);
      dst += plane_;
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
