// The specification of products of bfloat16 pairs. Operands are bfloat16_operand of the weights and of x; products are
// added to the bias one by one, in float32 and in storage order, each sum rounded to the nearest. A kernel may add in
// another order, add a pair in one step, and take sums below 2^-126 for zero: each result is then within
// (K + 2) 2^-23 (|W| |x| + |bias|) + K 2^-126 of the exact sum of products, before the activation. y in bfloat16 is
// bfloat16_operand of the result. Where an x is Inf, results that depend on it are Inf or NaN.
#include "core/scratch.h"
#include "formats/panel/pairs.h"
#include "kernels/conv/geometry.h"
#include "kernels/scalar/scalar.h"

namespace si {

namespace {

float operand_of(const void* x, si_value_type type, int64_t at) {
  return bfloat16_to_float(type == SI_F32 ? bfloat16_operand(static_cast<const float*>(x)[at])
                                          : bfloat16_operand(static_cast<const uint16_t*>(x)[at]));
}

void store(void* y, si_value_type type, int64_t at, float v) {
  if (type == SI_F32)
    static_cast<float*>(y)[at] = v;
  else
    static_cast<uint16_t*>(y)[at] = bfloat16_operand(v);
}

}  // namespace

si_status scalar_linear_bf16(const si_weights& weights, const si_linear_args& args) {
  const bool tokens = args.layout == SI_TOKEN_MAJOR;
  const int64_t x_k = tokens ? 1 : args.ldx, x_n = tokens ? args.ldx : 1;
  const int64_t y_m = tokens ? 1 : args.ldy, y_n = tokens ? args.ldy : 1;
  const int64_t M = weights.shape.M(), K = weights.shape.K();
  float *x = nullptr, *sum = nullptr;
  SI_TRY(thread_scratch(Scratch::kInput, K, &x));
  SI_TRY(thread_scratch(Scratch::kOutput, M, &sum));
  if (measures_scratch()) return SI_OK;
  for (int64_t n = 0; n < args.n; ++n) {
    for (int64_t k = 0; k < K; ++k) x[k] = operand_of(args.x, args.x_type, k * x_k + n * x_n);
    for (int64_t m = 0; m < M; ++m) sum[m] = args.bias != nullptr ? args.bias[m] : 0.0f;
    visit_weights(weights, [&](int64_t m, int64_t k, float value) { sum[m] += value * x[k]; });
    for (int64_t m = 0; m < M; ++m)
      store(args.y, args.y_type, m * y_m + n * y_n, scalar_activation(sum[m], args.activation));
  }
  return SI_OK;
}

si_status scalar_conv_bf16(const si_weights& weights, const si_conv_args& args) {
  ConvGeometry g;
  SI_TRY(conv_geometry(weights.shape, args, &g));
  // The image and the sums as float32, for the kernel of float32.
  const int64_t M = weights.shape.M(), pixels = g.oh * g.ow, image = g.channels * args.h * args.w;
  float *x = nullptr, *y = nullptr;
  SI_TRY(thread_scratch(Scratch::kInput, image, &x));
  SI_TRY(thread_scratch(Scratch::kOutput, M * pixels, &y));
  if (measures_scratch()) return SI_OK;
  si_conv_args one = args;
  one.batch = 1;
  one.x = x;
  one.y = y;
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t i = 0; i < image; ++i) x[i] = operand_of(args.x, args.x_type, b * image + i);
    SI_TRY(scalar_conv(weights, one));
    for (int64_t i = 0; i < M * pixels; ++i) store(args.y, args.y_type, b * M * pixels + i, y[i]);
  }
  return SI_OK;
}

}  // namespace si
