#include "runtime/selftest.h"

#include <algorithm>
#include <cmath>

namespace si {

namespace {

// Calls `visit(value, bytes)` for each golden tensor in the order of the file: inputs, then outputs.
template <class Visit>
si_status visit_golden(const si_model& model, Visit visit) {
  const FileHeader& header = *model.file.header;
  const uint8_t* at = model.file.bytes() + model.file.golden + aligned(header.outputs * sizeof(float));
  for (const Value& value : model.values) {
    if (value.kind != kInput) continue;
    SI_TRY(visit(value, at));
    at += aligned(value.bytes);
  }
  for (uint32_t i = 0; i < header.outputs; ++i) {
    const Value& value = model.value(model.file.outputs[i]);
    SI_TRY(visit(value, at));
    at += aligned(value.bytes);
  }
  return SI_OK;
}

const float* bounds_of(const si_model& model) {
  return reinterpret_cast<const float*>(model.file.bytes() + model.file.golden);
}

// The largest |y - golden| over the bound; infinite where one of them is no number and the other is.
double difference(const float* y, const float* golden, int64_t elements, double bound) {
  double worst = 0.0;
  for (int64_t i = 0; i < elements; ++i) {
    if (y[i] == golden[i] || (std::isnan(y[i]) && std::isnan(golden[i]))) continue;
    const double error = std::fabs(double{y[i]} - double{golden[i]});
    worst = std::max(worst, std::isnan(error) || bound == 0.0 ? HUGE_VAL : error / bound);
  }
  return worst;
}

}  // namespace

si_status check_golden(const si_model& model) {
  const FileHeader& header = *model.file.header;
  if (header.golden_bytes == 0) return SI_OK;
  // Sizes first: no tensor is looked at before all of them are known to be there. Each is below 2^42, so no sum wraps.
  uint64_t bytes = aligned(header.outputs * sizeof(float));
  for (const Value& value : model.values)
    if (value.kind == kInput) bytes += aligned(value.bytes);
  for (uint32_t i = 0; i < header.outputs; ++i) bytes += aligned(model.value(model.file.outputs[i]).bytes);
  if (bytes != header.golden_bytes)
    return bad_model("expected ", bytes, " golden bytes of its inputs and outputs, got ", header.golden_bytes);
  const float* bounds = bounds_of(model);
  for (uint32_t i = 0; i < header.outputs; ++i)
    if (!(bounds[i] >= 0.0f && std::isfinite(bounds[i])))
      return bad_model("expected a finite bound of golden output ", i, ", got ", bounds[i]);
  for (uint64_t i = header.outputs; i < aligned(header.outputs * sizeof(float)) / sizeof(float); ++i)
    if (bounds[i] != 0.0f || std::signbit(bounds[i])) return bad_model("expected zeros after the golden bounds");
  return visit_golden(model, [](const Value& value, const uint8_t* data) {
    for (uint64_t i = value.bytes; i < aligned(value.bytes); ++i)
      if (data[i] != 0) return bad_model("expected zeros after golden '", value.name, "'");
    return SI_OK;
  });
}

si_status selftest(si_context* context, double* worst) {
  const si_model& model = *context->model;
  const FileHeader& header = *model.file.header;
  SI_REQUIRE(header.golden_bytes != 0, SI_ERR_UNSUPPORTED,
             "expected a model file with golden inputs and outputs, got one without; try exporting it with them");
  SI_REQUIRE(model.batch == header.batch, SI_ERR_UNSUPPORTED, "expected the batch of the golden inputs, ", header.batch,
             ", got a model at batch ", model.batch, "; try the model as it was opened");
  Buffer<const void*> inputs;
  Buffer<void*> outputs;
  Buffer<const float*> golden;
  Buffer<uint8_t> memory;
  SI_TRY(inputs.allocate(model.inputs));
  SI_TRY(outputs.allocate(header.outputs));
  SI_TRY(golden.allocate(header.outputs));
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < header.outputs; ++i) bytes += aligned(model.value(model.file.outputs[i]).bytes);
  SI_TRY(memory.allocate(static_cast<int64_t>(bytes)));
  uint8_t* at = memory.data();
  int64_t count = 0;
  SI_TRY(visit_golden(model, [&](const Value& value, const uint8_t* data) {
    if (value.kind == kInput) {
      inputs[static_cast<int64_t>(value.offset)] = data;
      return SI_OK;
    }
    golden[count] = reinterpret_cast<const float*>(data);
    outputs[count++] = at;
    at += aligned(value.bytes);
    return SI_OK;
  }));
  SI_TRY(run_context(context, inputs.data(), outputs.data(), nullptr));
  const float* bounds = bounds_of(model);
  double found = 0.0;
  for (uint32_t i = 0; i < header.outputs; ++i) {
    const Value& value = model.value(model.file.outputs[i]);
    const double error =
        difference(static_cast<const float*>(outputs[i]), golden[i], value.elements(), double{bounds[i]});
    found = std::max(found, error);
    SI_REQUIRE(error <= 1.0, SI_ERR_INTERNAL, "output ", i, " ('", value.name, "') differs from the file's by ", error,
               " times its bound of ", bounds[i], "; try SPARSEINFER_ISA=scalar, and report it where that passes");
  }
  if (worst != nullptr) *worst = found;
  return SI_OK;
}

}  // namespace si
