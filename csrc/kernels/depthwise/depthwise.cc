#include "kernels/depthwise/depthwise.h"

#include "kernels/depthwise/channels.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

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
  job.low = clamp.low;
  job.high = clamp.high;
  return job;
}

}  // namespace

si_status depthwise(const TileKernels* isa, const DepthwiseArgs& args) {
  const bool scalar = !has_tiles(isa) || !has_depthwise_tiles(args);
  const DepthwiseJob job = job_of(args);
  return for_depthwise_channels(isa, args, job, [&](DepthwiseJob* own, int64_t) {
    if (scalar) return scalar_depthwise(args, *own);
    isa->depthwise(*own);
    if (!is_clamp(args.activation)) isa->activate(own->y, own->channels * args.oh * args.ow, args.activation);
  });
}

}  // namespace si
