#pragma once

static float act_hardsigmoid(float v) {
  const float t = v + 3.0f;
  return (t < 0.0f ? 0.0f : t > 6.0f ? 6.0f : t) / 6.0f;
}
