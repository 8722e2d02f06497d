#pragma once

#include "activations/hardsigmoid.h"

static float act_hardswish(float v) { return v * act_hardsigmoid(v); }
