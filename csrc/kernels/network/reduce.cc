#include "kernels/network/reduce.h"

#include <cstring>
#include <limits>

#include "core/parallel.h"
#include "kernels/network/binary.h"
#include "kernels/source.h"

namespace si {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// y[i] = y[i] op x[i].
void join(const TileKernels* isa, BinaryKind kind, float* y, const float* x, int64_t count) {
  if (has_tiles(isa)) return isa->binary(kind, {y, x, y, 1, 1, count, -kInfinity, kInfinity});
  for (int64_t i = 0; i < count; ++i) y[i] = scalar_binary(kind, y[i], x[i]);
}

float fold(const TileKernels* isa, BinaryKind kind, const float* x, int64_t count) {
  if (has_tiles(isa) && kind == BinaryKind::kAdd) return isa->sum(x, count);
  float all = x[0];
  for (int64_t i = 1; i < count; ++i) all = scalar_binary(kind, all, x[i]);
  return all;
}

// Some dimensions, and the steps from entry to entry of each in x.
struct Steps {
  int ndim = 0;
  int64_t total = 1, dims[kReduceDims], step[kReduceDims];

  void add(int64_t size, int64_t by) {
    dims[ndim] = size;
    step[ndim++] = by;
    total *= size;
  }
  int64_t at(int64_t index) const {  // dimensions stand from the last to the first
    int64_t offset = 0;
    for (int i = 0; i < ndim; index /= dims[i++]) offset += index % dims[i] * step[i];
    return offset;
  }
};

}  // namespace

si_status reduce(const TileKernels* isa, const ReduceJob& job, int threads) {
  const BinaryKind kind = job.kind == ReduceKind::kMaximum   ? BinaryKind::kMaximum
                          : job.kind == ReduceKind::kMinimum ? BinaryKind::kMinimum
                                                             : BinaryKind::kAdd;
  // The last dimensions that are all reduced, or all stay, are lines of x.
  int last = job.ndim - 1;
  const bool folds = job.reduced[last];
  int64_t line = job.dims[last--];
  for (; last >= 0 && job.reduced[last] == folds; --last) line *= job.dims[last];
  Steps stay, gone;
  int64_t step = line;
  for (; last >= 0; step *= job.dims[last--]) (job.reduced[last] ? gone : stay).add(job.dims[last], step);
  const int64_t width = folds ? 1 : line, divisor = gone.total * (folds ? line : 1);
  const int useful =
      !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, stay.total * gone.total * line);
  return parallel_for(useful, stay.total, [&](int64_t row) {
    const float* const x = job.x + stay.at(row);
    float* const y = job.y + row * width;
    for (int64_t i = 0; i < gone.total; ++i) {
      const float* const from = x + gone.at(i);
      const float one = folds ? fold(isa, kind, from, line) : 0.0f;
      const float* const part = folds ? &one : from;
      if (i == 0)
        std::memcpy(y, part, static_cast<size_t>(width) * sizeof(float));
      else
        join(isa, kind, y, part, width);
    }
    if (job.kind == ReduceKind::kMean)
      for (int64_t i = 0; i < width; ++i) y[i] /= static_cast<float>(divisor);
  });
}

}  // namespace si
