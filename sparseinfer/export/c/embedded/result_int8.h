/* What an exact sum of int8 products becomes: the output of a linear layer or of a convolution. */
#pragma once

#include <stdint.h>

#include "bytes.h"
#include "fused.h"

struct result_int8 {
  const float* scale;         /* by position: of the row times that of x */
  const float* bias;          /* by position, or NULL */
  float (*activation)(float); /* NULL: none, or the clamp of `to` */
  struct to_byte to;          /* of bytes */
  int32_t is_float;           /* whether the output is of float32 */
  float residual_scale;
  int32_t residual_zero_point;
};

/* Element `at` of y; the residual, where it is not NULL, is added before the activation. */
static void store_int8(const struct result_int8* result, int32_t position, int32_t sum, int32_t at,
                       const uint8_t* residual, void* y) {
  float v = fused_multiply_add((float)sum, result->scale[position], result->bias ? result->bias[position] : 0.0f);
  if (residual) v = fused_multiply_add((float)(residual[at] - result->residual_zero_point), result->residual_scale, v);
  if (result->activation) v = result->activation(v);
  if (result->is_float)
    ((float*)y)[at] = v;
  else
    ((uint8_t*)y)[at] = byte_of(v, &result->to);
}
