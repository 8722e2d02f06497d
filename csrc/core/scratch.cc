#include "core/scratch.h"

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "core/error.h"

namespace si {

namespace {

// Idle buffers may be freed by any thread, those in use by their own alone. Doomed: in use, to be freed at its end.
enum class State { kIdle, kInUse, kDoomed, kFreeing };

// On the heap and not in the thread's own storage, which a forked child gives to other threads.
struct ThreadBuffers {
  float* data[static_cast<int>(Scratch::kCount)] = {};
  int64_t size[static_cast<int>(Scratch::kCount)] = {};
  std::atomic<size_t> bytes{0};
  std::atomic<State> state{State::kIdle};
  int depth = 0;  // of uses; only the thread itself reads it

  ~ThreadBuffers() { free_all(); }
  void free_all() {
    for (int slot = 0; slot < static_cast<int>(Scratch::kCount); ++slot) {
      std::free(data[slot]);
      data[slot] = nullptr;
      size[slot] = 0;
    }
    bytes.store(0, std::memory_order_relaxed);
  }
};

// Held while the list changes or is walked, and over a fork, so that a child finds it whole.
std::mutex g_mutex;
// Never destroyed: threads may end after static objects have gone.
std::vector<ThreadBuffers*>& all_buffers() {
  static auto* const all = new std::vector<ThreadBuffers*>;
  return *all;
}

struct Owner {
  ThreadBuffers* buffers = nullptr;
  ~Owner() {
    if (buffers == nullptr) return;
    {
      std::lock_guard<std::mutex> lock(g_mutex);
      auto& all = all_buffers();
      for (ThreadBuffers*& each : all)
        if (each == buffers) {
          each = all.back();
          all.pop_back();
          break;
        }
    }
    delete buffers;
    buffers = nullptr;
  }
};

thread_local Owner t_owner;

ThreadBuffers* own_buffers() {
  if (t_owner.buffers != nullptr) return t_owner.buffers;
  auto* made = new ThreadBuffers;
  std::lock_guard<std::mutex> lock(g_mutex);
  all_buffers().push_back(made);
  t_owner.buffers = made;
  return made;
}

// A forked child has the buffers of its parent's threads, and not the threads. Those that were in use then are left
// alone, for they may be half changed.
void forget_lost_threads() {
  auto& all = all_buffers();
  size_t kept = 0;
  for (ThreadBuffers* each : all)
    if (each == t_owner.buffers || each->state.load(std::memory_order_relaxed) == State::kIdle) all[kept++] = each;
  all.resize(kept);
}

[[maybe_unused]] const int g_watching_forks = pthread_atfork([] { g_mutex.lock(); }, [] { g_mutex.unlock(); },
                                                             [] {
                                                               forget_lost_threads();
                                                               g_mutex.unlock();
                                                             });

}  // namespace

ScratchUse::ScratchUse() {
  ThreadBuffers* const own = own_buffers();
  if (own->depth++ > 0) return;
  // Another thread may be freeing them at this moment.
  for (State idle = State::kIdle;
       !own->state.compare_exchange_weak(idle, State::kInUse, std::memory_order_acquire, std::memory_order_relaxed);
       idle = State::kIdle)
    std::this_thread::yield();
}

ScratchUse::~ScratchUse() {
  ThreadBuffers* const own = t_owner.buffers;
  if (--own->depth > 0) return;
  State used = State::kInUse;
  if (own->state.compare_exchange_strong(used, State::kIdle, std::memory_order_release, std::memory_order_relaxed))
    return;
  own->free_all();
  own->state.store(State::kIdle, std::memory_order_release);
}

float* thread_scratch(Scratch slot, int64_t floats) {
  ThreadBuffers& own = *own_buffers();
  const auto at = static_cast<size_t>(slot);
  if (own.size[at] < floats) {
    std::free(own.data[at]);
    own.data[at] = nullptr;
    const auto bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
    own.bytes.fetch_sub(static_cast<size_t>(own.size[at]) * sizeof(float), std::memory_order_relaxed);
    own.size[at] = 0;
    own.data[at] = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (own.data[at] == nullptr) fail(SI_ERR_MEMORY, "out of memory: " + std::to_string(bytes) + " bytes of scratch");
    own.size[at] = static_cast<int64_t>(bytes / sizeof(float));
    own.bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
  return own.data[at];
}

void release_scratch() {
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    for (ThreadBuffers* each : all_buffers()) {
      State state = State::kIdle;
      while (state == State::kIdle || state == State::kInUse) {
        const State next = state == State::kIdle ? State::kFreeing : State::kDoomed;
        if (!each->state.compare_exchange_strong(state, next, std::memory_order_acquire)) continue;
        if (next == State::kFreeing) {
          each->free_all();
          each->state.store(State::kIdle, std::memory_order_release);
        }
        break;
      }
    }
  }
#if defined(__GLIBC__)
  // What was freed may lie in the middle of the allocator's memory, which it gives back only when told.
  malloc_trim(0);
#endif
}

size_t scratch_bytes() {
  std::lock_guard<std::mutex> lock(g_mutex);
  size_t bytes = 0;
  for (const ThreadBuffers* each : all_buffers()) bytes += each->bytes.load(std::memory_order_relaxed);
  return bytes;
}

}  // namespace si
