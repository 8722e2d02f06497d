#include "kernels/depthwise/depthwise.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Floats of a strip's padded rows: they and the output rows stay in the nearest cache.
constexpr int64_t kStripFloats = 4096;
// Floats after a strip, so that a block of vectors may be read at its last element, and a copy may write past it.
constexpr int64_t kSlack = 64;

// The executable specification, of one channel.
void scalar_depthwise(const DepthwiseArgs& args, const float* x, const float* w, float bias, float* y) {
  for (int64_t r = 0; r < args.oh; ++r)
    for (int64_t c = 0; c < args.ow; ++c) {
      float sum = bias;
      for (int64_t i = 0; i < args.kernel[0]; ++i)
        for (int64_t j = 0; j < args.kernel[1]; ++j) {
          const int64_t row = r * args.stride[0] - args.padding[0] + i,
                        column = c * args.stride[1] - args.padding[1] + j;
          if (row < 0 || row >= args.h || column < 0 || column >= args.w) continue;
          sum += w[i * args.kernel[1] + j] * x[row * args.w + column];
        }
      y[r * args.ow + c] = scalar_activation(sum, args.activation);
    }
}

// One channel, strip by strip, through a padded copy.
class Channel {
 public:
  Channel(const TileKernels& isa, const DepthwiseArgs& args)
      : isa_(isa),
        args_(args),
        kernel_(args.kernel[0]),
        stride_(args.stride[0]),
        pitch_((padded_columns() + stride_ - 1) / stride_),
        rows_(std::clamp<int64_t>((kStripFloats / (pitch_ * stride_) - kernel_) / stride_ + 1,
                                  std::min<int64_t>(4, args.oh), args.oh)),
        plane_(((rows_ - 1) * stride_ + kernel_) * pitch_) {}

  int64_t scratch_floats() const { return stride_ * plane_ + kSlack; }

  // `spill`: floats after y that are written later by the same thread.
  void run(const float* x, const float* w, float bias, float* y, int64_t spill, float* scratch) const {
    const Clamp clamp = clamp_of(args_.activation);
    DepthwiseJob job{};
    job.x = scratch;
    job.pitch = pitch_;
    job.phase = plane_;
    job.columns = args_.ow;
    job.kernel = static_cast<int>(kernel_);
    job.stride = static_cast<int>(stride_);
    job.weights = w;
    job.bias = bias;
    job.low = clamp.low;
    job.high = clamp.high;
    for (int64_t first = 0; first < args_.oh; first += rows_) {
      job.rows = std::min(rows_, args_.oh - first);
      job.y = y + first * args_.ow;
      job.spill = (args_.oh - first - job.rows) * args_.ow + spill;
      copy(x, first * stride_ - args_.padding[0], (job.rows - 1) * stride_ + kernel_, scratch);
      isa_.depthwise(job);
    }
    if (!is_clamp(args_.activation)) isa_.activate(y, args_.oh * args_.ow, args_.activation);
  }

 private:
  int64_t padded_columns() const { return (args_.ow - 1) * args_.stride[1] + args_.kernel[1]; }

  // Rows [top, top + rows) of x, between zeros, to the scratch: a plane for each phase, holding columns that many
  // apart. In order, because a copy may write up to a vector past its end.
  void copy(const float* x, int64_t top, int64_t rows, float* scratch) const {
    const int64_t above = std::clamp<int64_t>(-top, 0, rows), below = std::clamp<int64_t>(args_.h - top, above, rows);
    for (int64_t phase = 0; phase < stride_; ++phase, scratch += plane_) {
      // Element q of a row is column q * stride + phase - left of x.
      const int64_t left = args_.padding[1] - phase;
      const int64_t before = left > 0 ? std::min(pitch_, (left + stride_ - 1) / stride_) : 0;
      const int64_t from = before * stride_ - left;
      const int64_t count = from < args_.w ? std::min(pitch_ - before, (args_.w - from - 1) / stride_ + 1) : 0;
      std::fill(scratch, scratch + above * pitch_, 0.0f);
      RowCopy job{};
      job.src = x + (top + above) * args_.w + from;
      job.src_pitch = args_.w;
      job.dst = scratch + above * pitch_;
      job.dst_pitch = pitch_;
      job.rows = below - above;
      job.before = before;
      job.count = count;
      job.after = pitch_ - before - count;
      job.step = stride_;
      isa_.copy_rows(job);
      std::fill(scratch + below * pitch_, scratch + rows * pitch_, 0.0f);
    }
  }

  const TileKernels& isa_;
  const DepthwiseArgs& args_;
  const int64_t kernel_, stride_;
  const int64_t pitch_;  // of the padded rows of a phase
  const int64_t rows_;   // of the output in a strip
  const int64_t plane_;  // floats of a phase
};

bool has_kernel(const DepthwiseArgs& args) {
  const int64_t kernel = args.kernel[0], stride = args.stride[0];
  return args.kernel[1] == kernel && args.stride[1] == stride && (kernel == 3 || kernel == 5 || kernel == 7) &&
         (stride == 1 || stride == 2);
}

}  // namespace

si_status depthwise(const TileKernels* isa, const DepthwiseArgs& args) {
  const ScratchUse use;
  const int64_t planes = args.batch * args.channels, image = args.h * args.w, pixels = args.oh * args.ow;
  const int64_t taps = args.kernel[0] * args.kernel[1];
  const bool scalar = isa == nullptr || !has_kernel(args);
  const int threads =
      isa == nullptr ? args.threads : useful_threads(isa->tuning.threads, args.threads, planes * pixels * taps);
  // A few parts a thread, of channels that follow one another.
  const int64_t parts = std::min<int64_t>(planes, threads == 1 ? 1 : 4 * threads);
  return parallel_for(threads, parts, [&](int64_t part) -> si_status {
    const int64_t first = planes * part / parts, last = planes * (part + 1) / parts;
    float* scratch = nullptr;
    if (!scalar) SI_TRY(thread_scratch(Scratch::kInput, Channel(*isa, args).scratch_floats(), &scratch));
    for (int64_t plane = first; plane < last; ++plane) {
      const int64_t channel = plane % args.channels;
      const float* x = args.x + plane * image;
      const float* w = args.weights + channel * taps;
      const float bias = args.bias != nullptr ? args.bias[channel] : 0.0f;
      float* y = args.y + plane * pixels;
      if (scalar)
        scalar_depthwise(args, x, w, bias, y);
      else
        Channel(*isa, args).run(x, w, bias, y, (last - plane - 1) * pixels, scratch);
    }
    return SI_OK;
  });
}

}  // namespace si
