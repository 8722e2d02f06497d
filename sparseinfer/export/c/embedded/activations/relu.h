#pragma once

static float act_relu(float v) { return v < 0.0f ? 0.0f : v; }
