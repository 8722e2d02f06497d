#include "kernels/network/binary.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Elements of a part, of which threads take one after another.
constexpr int64_t kPart = 16384;
// std::pow costs about as much as so many multiply-adds.
constexpr int64_t kPowerCost = 32;

void run_line(const TileKernels* isa, const BinaryJob& job, const BinaryLine& line) {
  if (has_tiles(isa) && job.kind != BinaryKind::kPower) {
    isa->binary(job.kind, line);
    if (!is_clamp(job.activation)) isa->activate(line.y, line.count, job.activation);
    return;
  }
  for (int64_t i = 0; i < line.count; ++i)
    line.y[i] =
        scalar_activation(scalar_binary(job.kind, line.a[i * line.a_step], line.b[i * line.b_step]), job.activation);
}

}  // namespace

float scalar_binary(BinaryKind kind, float a, float b) {
  switch (kind) {
    case BinaryKind::kAdd:
      return a + b;
    case BinaryKind::kSubtract:
      return a - b;
    case BinaryKind::kMultiply:
      return a * b;
    case BinaryKind::kDivide:
      return a / b;
    case BinaryKind::kMinimum:
      return std::isnan(a) || a < b ? a : b;
    case BinaryKind::kMaximum:
      return std::isnan(a) || a > b ? a : b;
    case BinaryKind::kPower:
      return std::pow(a, b);
  }
  return a;
}

void broadcast_dims(const int64_t* a, int a_ndim, const int64_t* b, int b_ndim, BinaryJob* job) {
  // From the last dimension to the first, and turned round at the end.
  int count = 0;
  int64_t a_next = 1, b_next = 1;
  for (int i = 1; i <= std::max(a_ndim, b_ndim); ++i) {
    const int64_t a_size = i <= a_ndim ? a[a_ndim - i] : 1, b_size = i <= b_ndim ? b[b_ndim - i] : 1;
    const int64_t size = std::max(a_size, b_size);
    const int64_t a_step = a_size == 1 ? 0 : a_next, b_step = b_size == 1 ? 0 : b_next;
    a_next *= a_size;
    b_next *= b_size;
    if (size == 1) continue;
    const int64_t inside = count > 0 ? job->dims[count - 1] : 0;
    if (count > 0 && a_step == job->a_step[count - 1] * inside && b_step == job->b_step[count - 1] * inside) {
      job->dims[count - 1] *= size;
      continue;
    }
    job->dims[count] = size;
    job->a_step[count] = a_step;
    job->b_step[count++] = b_step;
  }
  if (count == 0) {
    job->dims[0] = 1;
    job->a_step[0] = job->b_step[0] = 0;
    count = 1;
  }
  job->ndim = count;
  std::reverse(job->dims, job->dims + count);
  std::reverse(job->a_step, job->a_step + count);
  std::reverse(job->b_step, job->b_step + count);
}

si_status binary(const TileKernels* isa, const BinaryJob& job, int threads) {
  const int last = job.ndim - 1;
  const int64_t length = job.dims[last];
  int64_t rows = 1;
  for (int i = 0; i < last; ++i) rows *= job.dims[i];
  // Parts are some rows, or a part of one.
  const int64_t pieces = (length + kPart - 1) / kPart, height = std::max<int64_t>(1, kPart / length);
  const int64_t work = rows * length * (job.kind == BinaryKind::kPower ? kPowerCost : 1);
  const int useful = !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, work);
  const Clamp clamp = clamp_of(job.activation);
  return parallel_for(useful, (rows + height - 1) / height * pieces, [&](int64_t part) {
    const int64_t first = part % pieces * kPart, from = part / pieces * height;
    for (int64_t row = from; row < std::min(rows, from + height); ++row) {
      int64_t a = first * job.a_step[last], b = first * job.b_step[last];
      for (int64_t i = last - 1, rest = row; i >= 0; rest /= job.dims[i--]) {
        a += rest % job.dims[i] * job.a_step[i];
        b += rest % job.dims[i] * job.b_step[i];
      }
      run_line(isa, job,
               {job.a + a, job.b + b, job.y + row * length + first, job.a_step[last], job.b_step[last],
                std::min(kPart, length - first), clamp.low, clamp.high});
    }
  });
}

}  // namespace si
