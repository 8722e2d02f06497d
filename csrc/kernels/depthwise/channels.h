// What depthwise convolutions of floats and of bytes share: which kernels have tiles, and how planes go to threads.
#pragma once

#include <algorithm>

#include "core/parallel.h"
#include "kernels/tile/tile.h"

namespace si {

template <class Args>
bool has_depthwise_tiles(const Args& args) {
  const int64_t kernel = args.kernel[0], stride = args.stride[0];
  return args.kernel[1] == kernel && args.stride[1] == stride && (kernel == 3 || kernel == 5 || kernel == 7) &&
         (stride == 1 || stride == 2);
}

// Calls `run(&own, channel)` for channels that follow one another within one image, from `channel` on: of a few parts a
// thread, with the job as that part's own.
template <class Args, class Job, class Run>
[[nodiscard]] si_status for_depthwise_channels(const TileKernels* isa, const Args& args, const Job& job,
                                               const Run& run) {
  const int64_t planes = args.batch * args.channels, image = args.h * args.w, pixels = args.oh * args.ow;
  const int64_t taps = args.kernel[0] * args.kernel[1];
  const int threads =
      !has_tiles(isa) ? args.threads : useful_threads(isa->tuning.threads, args.threads, planes * pixels * taps);
  const int64_t parts = std::min<int64_t>(planes, threads == 1 ? 1 : 4 * threads);
  return parallel_for(threads, parts, [&](int64_t part) -> si_status {
    const int64_t first = planes * part / parts, last = planes * (part + 1) / parts;
    Job own = job;
    own.x_begin = args.x;
    own.x_end = args.x + args.batch * args.channels * image;
    for (int64_t plane = first; plane < last; plane += own.channels) {
      const int64_t channel = plane % args.channels;
      own.channels = std::min(args.channels - channel, last - plane);
      own.x = args.x + plane * image;
      own.y = args.y + plane * pixels;
      own.weights = args.weights + channel * taps;
      own.bias = args.bias != nullptr ? args.bias + channel : nullptr;
      own.spill = (last - plane - own.channels) * pixels;
      run(&own, channel);
    }
    return SI_OK;
  });
}

}  // namespace si
