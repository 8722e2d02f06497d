#include "kernels/network/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"

namespace si {

namespace {

// Two neighbours in x, and how much of the second.
struct Place {
  int64_t first, second;
  float share;
};

SI_INLINE Place place_of(ResizeKind kind, int64_t d, float ratio, int64_t size) {
  const auto at = static_cast<float>(d);
  const bool half = kind == ResizeKind::kNearestExact || kind == ResizeKind::kBilinear;
  float source = (half ? at + 0.5f : at) * ratio;
  if (kind == ResizeKind::kBilinear) source = std::max(source - 0.5f, 0.0f);
  const int64_t first = std::min(static_cast<int64_t>(source), size - 1);
  if (kind == ResizeKind::kNearest || kind == ResizeKind::kNearestExact) return {first, first, 0.0f};
  return {first, std::min(first + 1, size - 1), std::min(source - static_cast<float>(first), 1.0f)};
}

template <class T>
void nearest(const ResizeJob& job, const T* x, T* y) {
  int64_t before = -1;
  for (int64_t r = 0; r < job.oh; ++r, y += job.ow) {
    const int64_t row = place_of(job.kind, r, job.ratio[0], job.h).first;
    if (row == before) {
      std::memcpy(y, y - job.ow, static_cast<size_t>(job.ow) * sizeof(T));
      continue;
    }
    before = row;
    for (int64_t c = 0; c < job.ow; ++c) y[c] = x[row * job.w + place_of(job.kind, c, job.ratio[1], job.w).first];
  }
}

void bilinear(const ResizeJob& job, const float* x, float* y) {
  for (int64_t r = 0; r < job.oh; ++r, y += job.ow) {
    const Place row = place_of(job.kind, r, job.ratio[0], job.h);
    const float *above = x + row.first * job.w, *below = x + row.second * job.w;
    for (int64_t c = 0; c < job.ow; ++c) {
      const Place column = place_of(job.kind, c, job.ratio[1], job.w);
      const float left = 1.0f - column.share;
      y[c] = (1.0f - row.share) * (left * above[column.first] + column.share * above[column.second]) +
             row.share * (left * below[column.first] + column.share * below[column.second]);
    }
  }
}

}  // namespace

si_status resize(const ResizeJob& job, int threads) {
  const bool is_nearest = job.kind == ResizeKind::kNearest || job.kind == ResizeKind::kNearestExact;
  return parallel_for(threads, job.planes, [&](int64_t plane) {
    const int64_t from = plane * job.h * job.w, to = plane * job.oh * job.ow;
    if (job.bytes) return nearest(job, static_cast<const uint8_t*>(job.x) + from, static_cast<uint8_t*>(job.y) + to);
    const float* x = static_cast<const float*>(job.x) + from;
    float* y = static_cast<float*>(job.y) + to;
    is_nearest ? nearest(job, x, y) : bilinear(job, x, y);
  });
}

}  // namespace si
