// The executable specification of norms and of attention.
#include <cmath>
#include <limits>

#include "kernels/scalar/scalar.h"

namespace si {

void scalar_norm(const NormJob& job) {
  const auto n = static_cast<float>(job.n);
  for (int64_t row = 0; row < job.rows; ++row) {
    float* const y = job.y + row * job.n;
    float mean = 0.0f, variance = 0.0f;
    for (int64_t i = 0; i < job.n; ++i) {
      const float more = job.residual == nullptr ? 0.0f : job.residual[row * job.n + i];
      y[i] = job.x[row * job.n + i] + more;
      mean += y[i];
    }
    mean = job.centred ? mean / n : 0.0f;
    for (int64_t i = 0; i < job.n; ++i) variance += (y[i] - mean) * (y[i] - mean);
    const float factor = 1.0f / std::sqrt(variance / n + job.eps);
    for (int64_t i = 0; i < job.n; ++i) {
      const float scaled = (y[i] - mean) * factor * (job.weight == nullptr ? 1.0f : job.weight[i]);
      y[i] = scaled + (job.bias == nullptr ? 0.0f : job.bias[i]);
    }
  }
}

void scalar_attend(const AttentionJob& job) {
  float* const scores = job.scratch;
  for (int64_t i = 0; i < job.queries; ++i) {
    const float* const q = job.q + i * job.ldq;
    float* const y = job.y + i * job.ldy;
    const int64_t own = job.first + i + 1, keys = job.causal && own < job.keys ? own : job.keys;
    float most = -std::numeric_limits<float>::infinity(), total = 0.0f;
    for (int64_t j = 0; j < keys; ++j) {
      float score = 0.0f;
      for (int64_t d = 0; d < job.dim; ++d) score += q[d] * job.k[j * job.ldk + d];
      scores[j] = score * job.scale + (job.mask == nullptr ? 0.0f : job.mask[i * job.mask_ld + j]);
      if (scores[j] > most || std::isnan(scores[j])) most = scores[j];
    }
    for (int64_t d = 0; d < job.dim; ++d) y[d] = 0.0f;
    // Where everything is masked, there is nothing to take a mean of.
    if (most == -std::numeric_limits<float>::infinity()) continue;
    for (int64_t j = 0; j < keys; ++j) total += scores[j] = std::exp(scores[j] - most);
    for (int64_t j = 0; j < keys; ++j)
      for (int64_t d = 0; d < job.dim; ++d) y[d] += scores[j] / total * job.v[j * job.ldv + d];
  }
}

}  // namespace si
