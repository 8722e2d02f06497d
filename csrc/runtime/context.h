// What runs a model: memory of the caller's for everything that a run writes, and the threads. One call at a time.
#pragma once

#include "runtime/model.h"

struct si_context {
  const si_model* model;
  int threads;
  uint8_t* arena;
  void** data;  // of every tensor
};

namespace si {

// Bytes that a context takes, its arena included.
uint64_t context_bytes(const si_model& model);
// In `memory`, of at least so many bytes.
si_context* place_context(const si_model& model, void* memory, int threads);
// `seconds`, where given, are those that each node takes.
[[nodiscard]] si_status run_context(si_context* context, const void* const* inputs, void* const* outputs,
                                    double* seconds);
// `observer` is called after each node.
[[nodiscard]] si_status watch_context(si_context* context, const void* const* inputs, void* const* outputs,
                                      si_observer observer, void* user);

}  // namespace si
