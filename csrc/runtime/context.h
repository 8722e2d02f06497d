// What runs a model: memory of the caller's for everything that a run writes, and the threads. One call at a time.
#pragma once

#include <atomic>

#include "core/call_scope.h"
#include "core/scratch.h"
#include "runtime/model.h"

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

namespace si {

// A call of a context, on its threads and with its scratch. It is not `alone` where another is under way.
class ContextUse {
 public:
  explicit ContextUse(si_context* context)
      : context_(context),
        alone_(context->busy.exchange(1, std::memory_order_acquire) == 0),
        scope_(context->parallel_for, context->user, context->scratch) {}
  ~ContextUse() {
    if (alone_) context_->busy.store(0, std::memory_order_release);
  }
  ContextUse(const ContextUse&) = delete;
  ContextUse& operator=(const ContextUse&) = delete;
  bool alone() const { return alone_; }

 private:
  si_context* const context_;
  const bool alone_;
  const CallScope scope_;
};

// Bytes that a context takes, its arena included, beside scratch of its own.
uint64_t context_bytes(const si_model& model);
// In `memory`, of at least so many bytes, of which the arena stays as it is. It has no scratch of its own.
si_context* place_context(const si_model& model, void* memory, int threads);
// Gives a context that was placed scratch of its own, after its arena: the bytes that runs on its threads take.
uint64_t add_scratch(si_context* context);
// `seconds`, where given, are those that each node takes.
[[nodiscard]] si_status run_context(si_context* context, const void* const* inputs, void* const* outputs,
                                    double* seconds);
// `observer` is called after each node.
[[nodiscard]] si_status watch_context(si_context* context, const void* const* inputs, void* const* outputs,
                                      si_observer observer, void* user);

}  // namespace si
