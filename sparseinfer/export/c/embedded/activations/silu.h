#pragma once

#include <math.h>

static float act_silu(float v) { return v / (1.0f + expf(-v)); }
