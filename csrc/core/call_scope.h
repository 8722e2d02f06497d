// What a caller brings to the calls of a thread: threads to share work with, and memory in place of scratch.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

namespace si {

struct CallScratch;

// While one lives, the calling thread runs with what it has. The items of work that is shared out have scopes of their
// own, with the same scratch.
class CallScope {
 public:
  // `run` null: the library's own threads. `scratch` null: that of each thread. `seat` of an item is that of its thread
  // among those at work, and -1 outside of items.
  CallScope(si_parallel_for run, void* user, CallScratch* scratch, int seat = -1);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  const si_parallel_for run;
  void* const user;
  CallScratch* const scratch;
  const int seat;

 private:
  const CallScope* const before_;
};

// That of the calling thread; null: there is none.
const CallScope* call_scope();

}  // namespace si
