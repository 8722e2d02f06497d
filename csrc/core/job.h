// The items of one parallel_for, and the threads that take them.
#pragma once

#include <atomic>
#include <cstring>

#include "core/call_scope.h"
#include "core/error.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace si {

struct Job {
  const detail::ItemFn fn;
  void* const context;
  const int64_t items;
  const int threads;
  CallScratch* const scratch;
  std::atomic<int> seats;  // threads that may still join in
  std::atomic<int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  si_status status = SI_OK;  // of the first item that failed, and its message
  char message[Message::kBytes];

  Job(int most, int64_t count, detail::ItemFn call, void* data)
      : fn(call), context(data), items(count), threads(most), scratch(own_scratch()), seats(most) {}

  static CallScratch* own_scratch() { return call_scope() != nullptr ? call_scope()->scratch : nullptr; }

  void drain() {
    const int left = seats.fetch_sub(1, std::memory_order_relaxed);
    if (left <= 0) return;
    const CallScope scope(nullptr, nullptr, scratch, threads - left);
    const ScratchUse use;
    for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
         item = next.fetch_add(1, std::memory_order_relaxed)) {
      const si_status done = fn(context, item);
      if (done == SI_OK) continue;
      next.store(items, std::memory_order_relaxed);
      if (failed.test_and_set()) return;
      status = done;
      std::memcpy(message, last_message(), std::strlen(last_message()) + 1);
      return;
    }
  }
};

}  // namespace si
