#include "kernels/conv/image.h"

#include <algorithm>
#include <numeric>

namespace si {

namespace {

// Floats of half a cache line.
constexpr int64_t kHalfLine = 8;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace

ConvImage::Axis ConvImage::axis_of(int64_t kernel, int64_t stride, int64_t dilation, int64_t outputs, bool apart) {
  Axis axis{stride, dilation, std::min(kernel, stride / std::gcd(stride, dilation)), (kernel - 1) * dilation / stride,
            false};
  if (!apart && kernel * outputs >= axis.planes * (outputs + axis.reach)) return axis;
  return {stride, dilation, kernel, 0, true};
}

ConvImage::Columns ConvImage::columns_of(int64_t phase) const {
  // Plane column j is image column j * stride + phase - left.
  const int64_t stride = args_.stride[1], left = args_.padding[2] - strip_.first_column * stride;
  const int64_t needed = strip_.columns + horizontal_.reach;
  Columns c{};
  if (args_.padding_mode != SI_PAD_ZEROS) return c;
  c.first = std::clamp<int64_t>((left - phase + stride - 1) / stride, 0, needed);
  if (left < phase) c.first = 0;
  c.last = std::clamp<int64_t>((args_.w - 1 + left - phase) / stride + 1, c.first, needed);
  if (args_.w - 1 + left < phase) c.last = c.first;
  c.source = c.first * stride + phase - left;
  return c;
}

ConvImage::ConvImage(const TileKernels& isa, const ConvGeometry& geometry, const si_conv_args& args, const Strip& strip,
                     int64_t images, int64_t groups, bool apart)
    : isa_(isa), geometry_(geometry), args_(args), strip_(strip), channels_(groups * geometry.group_channels) {
  const ConvTuning& tuning = isa.tuning.conv;
  const bool aligned =
      apart && geometry.kw > 1 && geometry.kw <= tuning.most_apart &&
      round_up(strip.columns, kHalfLine) * tuning.apart_garbage <= strip.columns * (tuning.apart_garbage + 1);
  vertical_ = axis_of(geometry.kh, args.stride[0], args.dilation[0], strip.rows, false);
  horizontal_ = axis_of(geometry.kw, args.stride[1], args.dilation[1], strip.columns, aligned);
  rows_ = strip.rows + vertical_.reach;
  const int64_t needed = strip.columns + horizontal_.reach;
  pitch_ = args.padding_mode == SI_PAD_ZEROS ? strip.columns : needed;
  for (int64_t plane = 0; plane < horizontal_.planes; ++plane) {
    const Columns c = columns_of(horizontal_.phase(plane));
    // Reading past the pitch meets the next row's first columns: allowed while those are zeros.
    if (args.padding_mode == SI_PAD_ZEROS) pitch_ = std::max({pitch_, c.last, needed - c.first});
  }
  if (aligned) pitch_ = round_up(pitch_, kHalfLine);
  // The last row of the last image has no next row to share zeros with.
  const int64_t tail = std::max<int64_t>(0, needed - pitch_);
  plane_ = saturated_product(saturated_product(images, rows_), pitch_) + tail;
  channel_ = saturated_product(vertical_.planes * horizontal_.planes, plane_);
  // Channels an odd number of cache lines apart spread over the sets of a cache.
  channel_ = (channel_ + 15) / 16 * 16;
  if (channel_ / 16 % 2 == 0) channel_ += 16;
  slack_ = horizontal_.reach + isa.width * isa.max_vectors;
}

void ConvImage::taps(int32_t* out) const {
  for (int64_t ic = 0; ic < geometry_.group_channels; ++ic)
    for (int64_t kr = 0; kr < geometry_.kh; ++kr)
      for (int64_t kc = 0; kc < geometry_.kw; ++kc) {
        const int64_t plane = vertical_.plane_of(kr) * horizontal_.planes + horizontal_.plane_of(kc);
        *out++ = static_cast<int32_t>(ic * channel_ + plane * plane_ + vertical_.shift_of(kr) * pitch_ +
                                      horizontal_.shift_of(kc));
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
    for (int64_t j = 0; j < columns.named; ++j) dst[j] = row[columns.column[j]];
    for (int64_t j = 0; j < count; ++j) dst[columns.first + j] = row[columns.source + j * args_.stride[1]];
  }
}

void ConvImage::fill_channel(const float* x, int64_t image_stride, int64_t images, const Columns* columns,
                             float* dst) const {
  float* const end = dst + channel_;
  for (int64_t plane = 0; plane < vertical_.planes; ++plane)
    for (const Columns* each = columns; each != columns + horizontal_.planes; ++each) {
      for (int64_t image = 0; image < images; ++image)
        fill_plane(x + image * image_stride,
                   strip_.first_row * args_.stride[0] + vertical_.phase(plane) - args_.padding[0], *each,
                   dst + image * rows_ * pitch_);
      const int64_t used = images * rows_ * pitch_;
      std::fill(dst + used, dst + plane_, 0.0f);
      dst += plane_;
    }
  std::fill(dst, end, 0.0f);
}

si_status ConvImage::fill(const float* x, int64_t images, float* scratch) const {
  const int64_t needed = strip_.columns + horizontal_.reach;
  Columns* columns = nullptr;
  SI_TRY(thread_scratch(Scratch::kColumns, horizontal_.planes, &columns));
  int64_t* column_of = nullptr;
  if (args_.padding_mode != SI_PAD_ZEROS)
    SI_TRY(thread_scratch(Scratch::kNamed, horizontal_.planes * needed, &column_of));
  if (measures_scratch()) return SI_OK;
  for (int64_t plane = 0; plane < horizontal_.planes; ++plane) {
    const int64_t phase = horizontal_.phase(plane);
    columns[plane] = columns_of(phase);
    if (args_.padding_mode == SI_PAD_ZEROS) continue;
    int64_t* const named = column_of + plane * needed;
    columns[plane].column = named;
    columns[plane].named = needed;
    for (int64_t j = 0; j < needed; ++j) {
      // A position past the padded image is read by garbage columns only.
      const int64_t p = std::min((strip_.first_column + j) * args_.stride[1] + phase - args_.padding[2],
                                 args_.w - 1 + args_.padding[3]);
      named[j] = padded_source(p, args_.w, args_.padding_mode);
    }
  }
  const int64_t area = args_.h * args_.w;
  for (int64_t channel = 0; channel < channels_; ++channel)
    fill_channel(x + channel * area, geometry_.channels * area, images, columns, scratch + channel * channel_);
  float* end = scratch + channels_ * channel_;
  std::fill(end, end + slack_, 0.0f);
  return SI_OK;
}

}  // namespace si
