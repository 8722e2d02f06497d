// The specification of the products of int8 weights with bytes: every other kernel gives the same int32 sums, and with
// an activation that is a clamp the same results bit for bit.
#include <algorithm>
#include <cmath>

#include "core/scratch.h"
#include "kernels/conv/geometry.h"
#include "kernels/quantized.h"
#include "kernels/scalar/scalar.h"

namespace si {

namespace {

// Calls visit(m, k, value) for every value that is not zero, with m in the order of output rows.
template <class Visit>
void visit_int8(const PanelView& view, Visit&& visit) {
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    const int64_t row = view.row_of(panel);
    dwords_visit<Quad>(view, panel,
                       [&](int64_t k, int r, int8_t value) { visit(view.output_row(row + r), k, int32_t{value}); });
  }
}

// The byte of an element of x, which is one or becomes one.
uint8_t byte_of(const void* x, int64_t at, si_value_type type, const ToByte& to) {
  return type == SI_U8 ? static_cast<const uint8_t*>(x)[at] : quantize(static_cast<const float*>(x)[at], to);
}

struct Outputs {
  const PanelView& view;
  const float* bias;
  void* y;
  si_value_type type;
  si_activation activation;
  const ToByte to;
  const Residual residual;

  // The result at `position` for the sum of its products, stored as element `at` of y.
  void store(int64_t position, int32_t sum, float scale, int32_t zero_point, int64_t at) const {
    const int64_t m = view.output_row(position);
    const auto centred = static_cast<float>(sum - zero_point * view.row_sum[position]);
    float v = std::fma(centred, view.scale[position] * scale, bias != nullptr ? bias[m] : 0.0f);
    v = residual.add(v, at);
    if (type == SI_F32)
      static_cast<float*>(y)[at] = scalar_activation(v, activation);
    else
      static_cast<uint8_t*>(y)[at] = quantize(is_clamp(activation) ? v : scalar_activation(v, activation), to);
  }
};

}  // namespace

si_status scalar_linear_int8(const si_weights& weights, const si_linear_args& args) {
  const PanelView& view = weights.panel;
  const si_quantization& q = *args.quantization;
  const int64_t M = weights.shape.M(), K = weights.shape.K();
  const bool tokens = args.layout == SI_TOKEN_MAJOR;
  const int64_t x_k = tokens ? 1 : args.ldx, x_n = tokens ? args.ldx : 1;
  const int64_t y_m = tokens ? 1 : args.ldy, y_n = tokens ? args.ldy : 1;
  const Outputs out{
      view, args.bias, args.y, args.y_type, args.activation, y_to_byte(q, args.activation), residual_of(args)};
  uint8_t* x = nullptr;
  int32_t* sum = nullptr;
  SI_TRY(thread_scratch(Scratch::kInput, K, &x));
  SI_TRY(thread_scratch(Scratch::kOutput, M, &sum));
  if (measures_scratch()) return SI_OK;
  for (int64_t n = 0; n < args.n; ++n) {
    const ToByte to = x_to_byte(q, n);
    for (int64_t k = 0; k < K; ++k) x[k] = byte_of(args.x, k * x_k + n * x_n, args.x_type, to);
    std::fill(sum, sum + M, 0);
    visit_int8(view, [&](int64_t m, int64_t k, int32_t value) { sum[m] += value * x[k]; });
    for (int64_t position = 0; position < M; ++position) {
      const int64_t m = view.output_row(position);
      out.store(position, sum[m], x_scale(q, n), x_zero_point(q, n), m * y_m + n * y_n);
    }
  }
  return SI_OK;
}

si_status scalar_conv_int8(const si_weights& weights, const si_conv_args& args) {
  ConvGeometry g;
  SI_TRY(conv_geometry(weights.shape, args, &g));
  const PanelView& view = weights.panel;
  const si_quantization& q = *args.quantization;
  const int64_t M = weights.shape.M(), group_rows = M / weights.shape.groups;
  const int64_t image = args.h * args.w, pixels = g.oh * g.ow;
  const ToByte to = x_to_byte(q, 0);
  const Outputs out{
      view, args.bias, args.y, args.y_type, args.activation, y_to_byte(q, args.activation), residual_of(args)};
  int32_t* sum = nullptr;
  SI_TRY(thread_scratch(Scratch::kOutput, M * g.ow, &sum));
  if (measures_scratch()) return SI_OK;
  // An output row at a time, so that little is kept of sums.
  for (int64_t b = 0; b < args.batch; ++b)
    for (int64_t r = 0; r < g.oh; ++r) {
      std::fill(sum, sum + M * g.ow, 0);
      visit_int8(view, [&](int64_t m, int64_t k, int32_t value) {
        const int64_t channel = b * g.channels + m / group_rows * g.group_channels + k / (g.kh * g.kw);
        const int64_t kr = k / g.kw % g.kh, kc = k % g.kw;
        const int64_t row =
            padded_source(r * args.stride[0] + kr * args.dilation[0] - args.padding[0], args.h, args.padding_mode);
        for (int64_t c = 0; c < g.ow; ++c) {
          const int64_t column =
              padded_source(c * args.stride[1] + kc * args.dilation[1] - args.padding[2], args.w, args.padding_mode);
          const bool inside = row >= 0 && column >= 0;
          const int64_t at = channel * image + row * args.w + column;
          sum[m * g.ow + c] += value * (inside ? int32_t{byte_of(args.x, at, args.x_type, to)} : q.x_zero_point);
        }
      });
      for (int64_t position = 0; position < M; ++position) {
        const int64_t m = view.output_row(position);
        for (int64_t c = 0; c < g.ow; ++c)
          out.store(position, sum[m * g.ow + c], q.x_scale, q.x_zero_point, (b * M + m) * pixels + r * g.ow + c);
      }
    }
  return SI_OK;
}

}  // namespace si
