#include "api/quantization.h"

#include <cstddef>

#include "api/args.h"
#include "formats/panel/quads.h"

namespace si {

namespace {

// Of the first version.
constexpr size_t kQuantizationSize = offsetof(si_quantization, residual_scale);

si_status check_scale(const char* function, const char* name, float scale) {
  SI_REQUIRE(sound_scale(scale), SI_ERR_ARGUMENT, function, ": expected ", name, " from 2^-60 to 2^48, got ", scale,
             "; try the range of the values / 255");
  return SI_OK;
}

si_status check_zero_point(const char* function, const char* name, int32_t zero_point) {
  SI_REQUIRE(zero_point >= 0 && zero_point <= 255, SI_ERR_ARGUMENT, function, ": expected ", name,
             " from 0 to 255, got ", zero_point, "; try 128 for values of either sign");
  return SI_OK;
}

}  // namespace

si_status check_quantization(const char* function, const si_weights& weights, const si_quantization* given,
                             const ByteTypes& types, int64_t tokens, si_quantization* out) {
  if (weights.value_type != SI_I8) {
    SI_REQUIRE(given == nullptr, SI_ERR_ARGUMENT, function, ": expected quantization with int8 weights alone, got it ",
               "with ", type_name(weights.value_type), "; try a null pointer");
    return SI_OK;
  }
  SI_REQUIRE(given != nullptr, SI_ERR_ARGUMENT, function,
             ": expected quantization with int8 weights, got a null pointer; try the scale of x");
  SI_TRY(read_args(function, given, kQuantizationSize, out));
  if (out->x_scales == nullptr) {
    SI_TRY(check_scale(function, "x_scale", out->x_scale));
    SI_TRY(check_zero_point(function, "x_zero_point", out->x_zero_point));
  }
  SI_REQUIRE(out->x_scales == nullptr || tokens >= 0, SI_ERR_ARGUMENT, function,
             ": expected one scale of x for a convolution, got one for each token");
  SI_REQUIRE(out->x_scales != nullptr || out->x_zero_points == nullptr, SI_ERR_ARGUMENT, function,
             ": expected x_scales with x_zero_points, got a null pointer");
  if (out->x_scales != nullptr) {
    if (out->x_zero_points == nullptr) SI_TRY(check_zero_point(function, "x_zero_point", out->x_zero_point));
    for (int64_t n = 0; n < tokens; ++n) {
      SI_TRY(check_scale(function, "x_scales", out->x_scales[n]));
      if (out->x_zero_points != nullptr) SI_TRY(check_zero_point(function, "x_zero_points", out->x_zero_points[n]));
    }
  }
  if (types.y == SI_U8) {
    SI_TRY(check_scale(function, "y_scale", out->y_scale));
    SI_TRY(check_zero_point(function, "y_zero_point", out->y_zero_point));
  }
  if (types.residual != nullptr && *types.residual == SI_U8) {
    SI_TRY(check_scale(function, "residual_scale", out->residual_scale));
    SI_TRY(check_zero_point(function, "residual_zero_point", out->residual_zero_point));
  }
  return SI_OK;
}

si_status check_residual(const char* function, const si_weights& weights, si_op op, si_value_type type) {
  const bool bytes = weights.value_type == SI_I8;
  SI_REQUIRE(bytes || (op == SI_OP_CONV && !weights.panel.pairs()), SI_ERR_UNSUPPORTED, function,
             ": expected no residual with ", weights.panel.pairs() ? "pairs of " : "", type_name(weights.value_type),
             " weights, got one; try adding it afterwards");
  SI_REQUIRE(type == SI_F32 || (bytes && type == SI_U8), SI_ERR_UNSUPPORTED, function,
             ": expected a residual in float32", bytes ? " or uint8" : "", ", got ", type_name(type),
             "; try converting it");
  return SI_OK;
}

}  // namespace si
