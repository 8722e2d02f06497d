// What is made at first use, by one thread, and never again: a function's static object would need the C++ runtime.
#pragma once

#include <sched.h>

#include <atomic>

namespace si {

class Once {
 public:
  template <class Make>
  void run(Make&& make) {
    if (state_.load(std::memory_order_acquire) == kMade) return;
    int expected = kNotMade;
    if (state_.compare_exchange_strong(expected, kAtWork, std::memory_order_acquire)) {
      make();
      state_.store(kMade, std::memory_order_release);
      return;
    }
    while (state_.load(std::memory_order_acquire) != kMade) sched_yield();
  }

 private:
  enum { kNotMade, kAtWork, kMade };
  std::atomic<int> state_{kNotMade};
};

}  // namespace si
