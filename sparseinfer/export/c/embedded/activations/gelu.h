#pragma once

#include <math.h>

static float act_gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.7071067811865476f)); }
