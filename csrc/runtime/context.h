// What runs a model: memory of the caller's for everything that a run writes, and the threads. One call at a time.
#pragma once

#include <atomic>

#include "core/parallel.h"
#include "core/scratch.h"
#include "runtime/model.h"

// At most as large as kModelAlign, so that contexts are as large on every processor.
struct si_context {
  const si_model* model;
  int threads;
  uint32_t magic;
  si_parallel_for parallel_for;  // null: the library's threads
  void* user;                    // of parallel_for
  std::atomic<int> busy;         // 1 while a call is under way
  si::CallScratch* scratch;      // null: that of its threads
  uint8_t* arena;
  void** data;  // of every tensor
};
static_assert(sizeof(si_context) <= si::kModelAlign, "context_bytes is a constant of exported models");

namespace si {

// A call of a context, on the context's threads. It is not `alone` where another is under way.
class ContextUse {
 public:
  explicit ContextUse(si_context* context)
      : context_(context),
        alone_(context->busy.exchange(1, std::memory_order_acquire) == 0),
        threads_(context->parallel_for, context->user) {}
  ~ContextUse() {
    if (alone_) context_->busy.store(0, std::memory_order_release);
  }
  ContextUse(const ContextUse&) = delete;
  ContextUse& operator=(const ContextUse&) = delete;
  bool alone() const { return alone_; }

 private:
  si_context* const context_;
  const bool alone_;
  const CallersThreads threads_;
};

// Bytes that a context takes, its arena included, beside scratch of its own.
uint64_t context_bytes(const si_model& model);
// Measures the scratch of all nodes for runs on so many threads.
CallScratch measure_scratch(const si_model& model, int threads);
// Bytes of scratch of its own.
uint64_t scratch_bytes(const CallScratch& measured, int threads);
// In `memory`, of at least so many bytes. `scratch`: as it was measured for `threads` threads; null: it has none.
si_context* place_context(const si_model& model, void* memory, int threads, const CallScratch* scratch);
// `seconds`, where given, are those that each node takes.
[[nodiscard]] si_status run_context(si_context* context, const void* const* inputs, void* const* outputs,
                                    double* seconds);
// `observer` is called after each node.
[[nodiscard]] si_status watch_context(si_context* context, const void* const* inputs, void* const* outputs,
                                      si_observer observer, void* user);

}  // namespace si
