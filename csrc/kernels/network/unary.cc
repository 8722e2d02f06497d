#include "kernels/network/unary.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Elements of a part, of which threads take one after another, and about what one costs in multiply-adds.
constexpr int64_t kPart = 16384, kCost = 16;

}  // namespace

float scalar_unary(const UnaryFunction& function, float x) {
  const float p = function.p[0], q = function.p[1];
  switch (function.kind) {
    case UnaryKind::kHardswish:
      return x * scalar_hardsigmoid(x);
    case UnaryKind::kHardsigmoid:
      return scalar_hardsigmoid(x);
    case UnaryKind::kLeakyRelu:
      return x > 0.0f ? x : p * x;
    case UnaryKind::kElu:
      return x > 0.0f ? x : p * std::expm1(x);
    case UnaryKind::kClamp: {
      const float above = x < p ? p : x;
      return above > q ? q : above;
    }
    case UnaryKind::kSoftplus:  // log(1 + exp(p x)) / p, x above the threshold q / p
      return p * x > q ? x : std::log1p(std::exp(p * x)) / p;
    case UnaryKind::kAbs:
      return std::fabs(x);
    case UnaryKind::kExp:
      return std::exp(x);
    case UnaryKind::kLog:
      return std::log(x);
    case UnaryKind::kSqrt:
      return std::sqrt(x);
    case UnaryKind::kRsqrt:
      return 1.0f / std::sqrt(x);
    case UnaryKind::kErf:
      return std::erf(x);
    case UnaryKind::kSin:
      return std::sin(x);
    case UnaryKind::kCos:
      return std::cos(x);
    case UnaryKind::kFloor:
      return std::floor(x);
    case UnaryKind::kCeil:
      return std::ceil(x);
    case UnaryKind::kRound:  // halves to even
      return std::nearbyint(x);
  }
  return x;
}

si_status unary(const TileKernels* isa, const UnaryFunction& function, const float* x, float* y, int64_t count,
                int threads) {
  const int useful = !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, kCost * count);
  return parallel_for(useful, (count + kPart - 1) / kPart, [&](int64_t part) {
    const int64_t first = part * kPart, last = std::min(count, first + kPart);
    if (has_tiles(isa) && isa->unary(function, y + first, x + first, last - first)) return;
    for (int64_t i = first; i < last; ++i) y[i] = scalar_unary(function, x[i]);
  });
}

}  // namespace si
