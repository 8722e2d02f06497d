#include "kernels/network/network.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Elements of a part of an element-wise operation: a page or so, of which threads take one after another.
constexpr int64_t kPart = 16384;
// An exponential costs about as much as so many multiply-adds.
constexpr int64_t kExponential = 16;

int threads_for(const TileKernels* isa, int threads, int64_t work) {
  return !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, work);
}

// Calls fn(first, count) for parts of [0, count).
template <class Fn>
si_status for_parts(const TileKernels* isa, int threads, int64_t count, int64_t work, const Fn& fn) {
  const int64_t parts = (count + kPart - 1) / kPart;
  return parallel_for(threads_for(isa, threads, work), parts,
                      [&](int64_t part) { fn(part * kPart, std::min(kPart, count - part * kPart)); });
}

}  // namespace

si_status pool(const TileKernels* isa, const PoolJob& job, const float* x, float* y, int64_t planes, int threads) {
  const int64_t work = planes * job.oh * job.ow * (job.kernel[0] + job.kernel[1]);
  return parallel_for(threads_for(isa, threads, work), planes, [&](int64_t plane) -> si_status {
    PoolJob own = job;
    own.x = x + plane * job.h * job.w;
    own.y = y + plane * job.oh * job.ow;
    if (has_tiles(isa)) SI_TRY(thread_scratch(Scratch::kInput, pool_line_floats(job), &own.line));
    if (measures_scratch()) return SI_OK;
    if (!has_tiles(isa)) {
      scalar_pool(own);
      return SI_OK;
    }
    isa->pool(own);
    return SI_OK;
  });
}

si_status global_average_pool(const TileKernels* isa, const float* x, float* y, int64_t planes, int64_t pixels,
                              int threads) {
  constexpr int64_t kPlanes = 64;  // of a part
  return parallel_for(threads_for(isa, threads, planes * pixels), (planes + kPlanes - 1) / kPlanes, [&](int64_t part) {
    for (int64_t plane = part * kPlanes; plane < std::min(planes, (part + 1) * kPlanes); ++plane) {
      float sum = 0.0f;
      if (has_tiles(isa))
        sum = isa->sum(x + plane * pixels, pixels);
      else
        for (int64_t i = 0; i < pixels; ++i) sum += x[plane * pixels + i];
      y[plane] = sum / static_cast<float>(pixels);
    }
  });
}

si_status add(const TileKernels* isa, const float* a, const float* b, float* y, int64_t count, si_activation activation,
              int threads) {
  return for_parts(isa, threads, count, count, [&](int64_t first, int64_t part) {
    if (!has_tiles(isa)) {
      for (int64_t i = first; i < first + part; ++i) y[i] = scalar_activation(a[i] + b[i], activation);
      return;
    }
    const Clamp clamp = clamp_of(activation);
    isa->add(y + first, a + first, b + first, part, clamp.low, clamp.high);
    if (!is_clamp(activation)) isa->activate(y + first, part, activation);
  });
}

si_status activation(const TileKernels* isa, const float* x, float* y, int64_t count, si_activation kind, int threads) {
  const int64_t work = is_clamp(kind) ? count : kExponential * count;
  return for_parts(isa, threads, count, work, [&](int64_t first, int64_t part) {
    if (has_tiles(isa) && is_clamp(kind)) {
      const Clamp clamp = clamp_of(kind);
      return isa->clamp(y + first, x + first, part, clamp.low, clamp.high);
    }
    if (y != x) std::memcpy(y + first, x + first, static_cast<size_t>(part) * sizeof(float));
    !has_tiles(isa) ? scalar_activate(y + first, part, kind) : isa->activate(y + first, part, kind);
  });
}

si_status softmax(const TileKernels* isa, const float* x, float* y, int64_t outer, int64_t n, int64_t inner,
                  int threads) {
  return parallel_for(threads_for(isa, threads, kExponential * outer * n * inner), outer, [&](int64_t row) {
    const int64_t at = row * n * inner;
    !has_tiles(isa) ? scalar_softmax(x + at, y + at, n, inner) : isa->softmax(x + at, y + at, n, inner);
  });
}

}  // namespace si
