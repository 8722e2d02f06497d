// The executable specification of what networks need besides the packed weights.
#include <cmath>
#include <limits>

#include "kernels/scalar/scalar.h"

namespace si {

float scalar_hardsigmoid(float v) {
  const float sum = v + 3.0f;
  return (sum < 0.0f ? 0.0f : sum > 6.0f ? 6.0f : sum) / 6.0f;
}

float scalar_activation(float v, si_activation activation) {
  switch (activation) {
    case SI_ACT_NONE:
      return v;
    case SI_ACT_RELU:
      return v < 0.0f ? 0.0f : v;
    case SI_ACT_RELU6:
      return v < 0.0f ? 0.0f : (v > 6.0f ? 6.0f : v);
    case SI_ACT_GELU:
      return 0.5f * v * (1.0f + std::erf(v * 0.7071067811865476f));
    case SI_ACT_GELU_TANH:
      return 0.5f * v * (1.0f + std::tanh(0.7978845608028654f * (v + 0.044715f * v * v * v)));
    case SI_ACT_SILU:
      return v / (1.0f + std::exp(-v));
    case SI_ACT_SIGMOID:
      return 1.0f / (1.0f + std::exp(-v));
    case SI_ACT_TANH:
      return std::tanh(v);
    case SI_ACT_HARDSWISH:
      return v * scalar_hardsigmoid(v);
    case SI_ACT_HARDSIGMOID:
      return scalar_hardsigmoid(v);
  }
  return v;
}

void scalar_activate(float* data, int64_t count, si_activation activation) {
  for (int64_t i = 0; i < count; ++i) data[i] = scalar_activation(data[i], activation);
}

void scalar_pool(const PoolJob& job) {
  for (int64_t r = 0; r < job.oh; ++r)
    for (int64_t c = 0; c < job.ow; ++c) {
      float all = job.average ? 0.0f : -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < job.kernel[0]; ++i)
        for (int64_t j = 0; j < job.kernel[1]; ++j) {
          const int64_t row = r * job.stride[0] - job.padding[0] + i, column = c * job.stride[1] - job.padding[1] + j;
          if (row < 0 || row >= job.h || column < 0 || column >= job.w) continue;
          const float v = job.x[row * job.w + column];
          if (job.average)
            all += v;
          else if (v > all || std::isnan(v))
            all = v;
        }
      job.y[r * job.ow + c] = job.average ? all / static_cast<float>(pool_divisor(job, r, c)) : all;
    }
}

void scalar_max_pool_bytes(const PoolJob& job, const uint8_t* x, uint8_t* y) {
  for (int64_t r = 0; r < job.oh; ++r)
    for (int64_t c = 0; c < job.ow; ++c) {
      uint8_t most = 0;
      for (int64_t i = 0; i < job.kernel[0]; ++i)
        for (int64_t j = 0; j < job.kernel[1]; ++j) {
          const int64_t row = r * job.stride[0] - job.padding[0] + i, column = c * job.stride[1] - job.padding[1] + j;
          if (row < 0 || row >= job.h || column < 0 || column >= job.w) continue;
          if (x[row * job.w + column] > most) most = x[row * job.w + column];
        }
      y[r * job.ow + c] = most;
    }
}

void scalar_softmax(const float* x, float* y, int64_t n, int64_t inner) {
  for (int64_t c = 0; c < inner; ++c) {
    float most = x[c], total = 0.0f;
    for (int64_t i = 1; i < n; ++i) most = std::fmax(most, x[i * inner + c]);
    for (int64_t i = 0; i < n; ++i) total += y[i * inner + c] = std::exp(x[i * inner + c] - most);
    for (int64_t i = 0; i < n; ++i) y[i * inner + c] /= total;
  }
}

}  // namespace si
