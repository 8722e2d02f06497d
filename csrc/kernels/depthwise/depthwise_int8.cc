#include "kernels/depthwise/depthwise_int8.h"

#include <cmath>

#include "kernels/depthwise/channels.h"
#include "kernels/source.h"

namespace si {

namespace {

// The executable specification.
void scalar_depthwise(const DepthwiseInt8Args& args, const ByteDepthwiseJob& job) {
  const int64_t kh = args.kernel[0], kw = args.kernel[1];
  for (int64_t channel = 0; channel < job.channels; ++channel) {
    const int8_t* weights = job.weights + channel * kh * kw;
    const float scale = job.scales[channel] * job.x_scale, bias = job.bias != nullptr ? job.bias[channel] : 0.0f;
    for (int64_t r = 0; r < args.oh; ++r)
      for (int64_t c = 0; c < args.ow; ++c) {
        int32_t sum = 0;
        for (int64_t i = 0; i < kh; ++i)
          for (int64_t j = 0; j < kw; ++j) {
            const int64_t row = r * args.stride[0] - args.padding[0] + i;
            const int64_t column = c * args.stride[1] - args.padding[1] + j;
            if (row < 0 || row >= args.h || column < 0 || column >= args.w) continue;
            const int32_t byte = job.x[(channel * args.h + row) * args.w + column];
            sum += weights[i * kw + j] * (byte - job.x_zero_point);
          }
        job.y[(channel * args.oh + r) * args.ow + c] = quantize(std::fma(static_cast<float>(sum), scale, bias), job.to);
      }
  }
}

// What all channels have in common.
ByteDepthwiseJob job_of(const DepthwiseInt8Args& args) {
  ByteDepthwiseJob job{};
  job.h = args.h;
  job.w = args.w;
  job.oh = args.oh;
  job.ow = args.ow;
  job.top = args.padding[0];
  job.left = args.padding[1];
  job.kernel = static_cast<int>(args.kernel[0]);
  job.stride = static_cast<int>(args.stride[0]);
  job.x_scale = args.quantization.x_scale;
  job.x_zero_point = args.quantization.x_zero_point;
  job.to = y_to_byte(args.quantization, args.activation);
  return job;
}

}  // namespace

si_status depthwise_int8(const TileKernels* isa, const DepthwiseInt8Args& args) {
  // A small library has tiles of the smallest kernels alone.
  const bool scalar = !has_tiles(isa) || !has_depthwise_tiles(args) || (kSmall && args.kernel[0] != 3);
  const ByteDepthwiseJob job = job_of(args);
  return for_depthwise_channels(isa, args, job, [&](ByteDepthwiseJob* own, int64_t channel) {
    own->scales = args.scales + channel;
    scalar ? scalar_depthwise(args, *own) : isa->byte_network->depthwise(*own);
  });
}

}  // namespace si
