#pragma once

#include <math.h>

static float act_tanh(float v) { return tanhf(v); }
