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

// The executable specification.
void scalar_depthwise(const DepthwiseArgs& args, const DepthwiseJob& job) {
  const int64_t kh = args.kernel[0], kw = args.kernel[1];
  for (int64_t channel = 0; channel < job.channels; ++channel)
    for (int64_t r = 0; r < args.oh; ++r)
      for (int64_t c = 0; c < args.ow; ++c) {
        float sum = job.bias != nullptr ? job.bias[channel] : 0.0f;
        for (int64_t i = 0; i < kh; ++i)
          for (int64_t j = 0; j < kw; ++j) {
            const int64_t row = r * args.stride[0] - args.padding[0] + i;
            const int64_t column = c * args.stride[1] - args.padding[1] + j;
            if (row < 0 || row >= args.h || column < 0 || column >= args.w) continue;
            sum += job.weights[(channel * kh + i) * kw + j] * job.x[(channel * args.h + row) * args.w + column];
          }
        job.y[(channel * args.oh + r) * args.ow + c] = scalar_activation(sum, args.activation);
      }
}

// What all channels have in common.
DepthwiseJob job_of(const DepthwiseArgs& args) {
  const Clamp clamp = clamp_of(args.activation);
  DepthwiseJob job{};
  job.h = args.h;
  job.w = args.w;
  job.oh = args.oh;
  job.ow = args.ow;
  job.top = args.padding[0];
  job.left = args.padding[1];
  job.kernel = static_cast<int>(args.kernel[0]);
  job.stride = static_cast<int>(args.stride[0]);
  job.pitch = std::max(job.left + job.w, (args.ow - 1) * args.stride[1] + args.kernel[1]);
  job.strip_rows = std::clamp<int64_t>((kStripFloats / job.pitch - job.kernel) / job.stride + 1,
                                       std::min<int64_t>(4, args.oh), args.oh);
  job.low = clamp.low;
  job.high = clamp.high;
  return job;
}

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
  const DepthwiseJob job = job_of(args);
  // A few parts a thread, of channels that follow one another.
  const int64_t parts = std::min<int64_t>(planes, threads == 1 ? 1 : 4 * threads);
  return parallel_for(threads, parts, [&](int64_t part) -> si_status {
    const int64_t first = planes * part / parts, last = planes * (part + 1) / parts;
    DepthwiseJob own = job;
    if (!scalar) {
      const int64_t floats = 2 * depthwise_strip_floats(job);
      SI_TRY(thread_scratch(Scratch::kInput, floats, &own.strips));
      std::fill(own.strips, own.strips + floats, 0.0f);
    }
    for (int64_t plane = first; plane < last; plane += own.channels) {
      const int64_t channel = plane % args.channels;
      own.channels = std::min(args.channels - channel, last - plane);
      own.x = args.x + plane * image;
      own.y = args.y + plane * pixels;
      own.weights = args.weights + channel * taps;
      own.bias = args.bias != nullptr ? args.bias + channel : nullptr;
      own.spill = (last - plane - own.channels) * pixels;
      if (scalar) {
        scalar_depthwise(args, own);
        continue;
      }
      isa->depthwise(own);
      if (!is_clamp(args.activation)) isa->activate(own.y, own.channels * pixels, args.activation);
    }
    return SI_OK;
  });
}

}  // namespace si
