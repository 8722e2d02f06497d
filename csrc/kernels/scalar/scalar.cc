#include "kernels/scalar/scalar.h"

#include "core/scratch.h"
#include "kernels/conv/geometry.h"

namespace si {

si_status scalar_linear(const si_weights& weights, const si_linear_args& args) {
  const auto* x = static_cast<const float*>(args.x);
  auto* y = static_cast<float*>(args.y);
  const bool tokens = args.layout == SI_TOKEN_MAJOR;
  const int64_t x_k = tokens ? 1 : args.ldx, x_n = tokens ? args.ldx : 1;
  const int64_t y_m = tokens ? 1 : args.ldy, y_n = tokens ? args.ldy : 1;
  const int64_t M = weights.shape.M();
  if (measures_scratch()) return SI_OK;
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < args.n; ++n) y[m * y_m + n * y_n] = args.bias != nullptr ? args.bias[m] : 0.0f;
  visit_weights(weights, [&](int64_t m, int64_t k, float value) {
    for (int64_t n = 0; n < args.n; ++n) y[m * y_m + n * y_n] += value * x[k * x_k + n * x_n];
  });
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < args.n; ++n) {
      float& result = y[m * y_m + n * y_n];
      result = scalar_activation(result, args.activation);
    }
  return SI_OK;
}

si_status scalar_conv(const si_weights& weights, const si_conv_args& args) {
  ConvGeometry g;
  SI_TRY(conv_geometry(weights.shape, args, &g));
  const int64_t M = weights.shape.M(), group_rows = M / weights.shape.groups;
  const int64_t image = args.h * args.w, pixels = g.oh * g.ow;
  if (measures_scratch()) return SI_OK;
  for (int64_t b = 0; b < args.batch; ++b) {
    const float* x = static_cast<const float*>(args.x) + b * g.channels * image;
    float* y = static_cast<float*>(args.y) + b * M * pixels;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t p = 0; p < pixels; ++p) y[m * pixels + p] = args.bias != nullptr ? args.bias[m] : 0.0f;
    visit_weights(weights, [&](int64_t m, int64_t k, float value) {
      const int64_t channel = m / group_rows * g.group_channels + k / (g.kh * g.kw);
      const int64_t kr = k / g.kw % g.kh, kc = k % g.kw;
      for (int64_t r = 0; r < g.oh; ++r) {
        const int64_t row =
            padded_source(r * args.stride[0] + kr * args.dilation[0] - args.padding[0], args.h, args.padding_mode);
        if (row < 0) continue;
        for (int64_t c = 0; c < g.ow; ++c) {
          const int64_t column =
              padded_source(c * args.stride[1] + kc * args.dilation[1] - args.padding[2], args.w, args.padding_mode);
          if (column >= 0) y[m * pixels + r * g.ow + c] += value * x[channel * image + row * args.w + column];
        }
      }
    });
    const float* residual =
        args.residual == nullptr ? nullptr : static_cast<const float*>(args.residual) + b * M * pixels;
    for (int64_t i = 0; i < M * pixels; ++i)
      y[i] = scalar_activation(residual == nullptr ? y[i] : y[i] + residual[i], args.activation);
  }
  return SI_OK;
}

}  // namespace si
