#pragma once

#include <math.h>

static float act_sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }
