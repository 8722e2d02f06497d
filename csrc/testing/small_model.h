// The small network as an open model, with an input and room for its outputs.
#pragma once

#include <cstdint>
#include <vector>

#include "testing/model_file.h"

namespace si::testing {

// An open model with what it computes of one input.
struct Small {
  explicit Small(const ModelFile& file = small_network()) : bytes(file.bytes()), model(open(bytes)), x(324), y(24) {
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 17) / 8.0f - 1.0f;
  }
  si_status run(si_context* context) {
    const void* const inputs[] = {x.data()};
    void* const outputs[] = {y.data(), y.data() + 12};
    return si_context_run(context, inputs, outputs, nullptr);
  }
  AlignedBytes bytes;
  OpenModel model;
  std::vector<float> x, y;
};

}  // namespace si::testing
