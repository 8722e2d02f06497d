#include "core/scratch.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#if SI_THREADS
#include <pthread.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "core/call_scope.h"
#include "core/error.h"
#include "core/once.h"

namespace si {

namespace {

// Idle buffers may be freed by any thread, those in use by their own alone. Doomed: in use, to be freed at its end.
enum class State { kIdle, kInUse, kDoomed, kFreeing };

// On the heap and not in the thread's own storage, which a forked child gives to other threads.
struct ThreadBuffers {
  void* data[kScratchSlots] = {};
  size_t size[kScratchSlots] = {};
  std::atomic<size_t> bytes{0};
  std::atomic<State> state{State::kIdle};
  ThreadBuffers* next = nullptr;

  // Of a buffer, by the one thread that may change them now.
  void add_bytes(size_t more) { bytes.store(bytes.load(std::memory_order_relaxed) + more, std::memory_order_relaxed); }
  void free_all() {
    for (int slot = 0; slot < kScratchSlots; ++slot) {
      std::free(data[slot]);
      data[slot] = nullptr;
      size[slot] = 0;
    }
    bytes.store(0, std::memory_order_relaxed);
  }
};

// Held for a moment while the list changes or is walked, and over a fork, so that a child finds it whole.
class SpinLock {
 public:
  void lock() {
    while (held_.test_and_set(std::memory_order_acquire)) sched_yield();
  }
  void unlock() { held_.clear(std::memory_order_release); }

 private:
  std::atomic_flag held_ = ATOMIC_FLAG_INIT;
};
SpinLock g_lock;
ThreadBuffers* g_all = nullptr;

thread_local ThreadBuffers* t_own = nullptr;
thread_local int t_uses = 0;

#if SI_THREADS

// What a thread had goes when it ends. A thread_local object with a destructor would need the C++ runtime.
void free_ended(void* buffers) {
  auto* const ended = static_cast<ThreadBuffers*>(buffers);
  t_own = nullptr;
  g_lock.lock();
  for (ThreadBuffers** each = &g_all; *each != nullptr; each = &(*each)->next)
    if (*each == ended) {
      *each = ended->next;
      break;
    }
  g_lock.unlock();
  ended->free_all();
  std::free(ended);
}

void free_at_thread_end(ThreadBuffers* own) {
  static pthread_key_t key;
  static Once once;
  once.run([] { pthread_key_create(&key, free_ended); });
  pthread_setspecific(key, own);
}

// A forked child has the buffers of its parent's threads, and not the threads. Those that were in use then are left
// alone, for they may be half changed.
void forget_lost_threads() {
  ThreadBuffers** end = &g_all;
  for (ThreadBuffers* each = g_all; each != nullptr; each = each->next)
    if (each == t_own || each->state.load(std::memory_order_relaxed) == State::kIdle) {
      *end = each;
      end = &each->next;
    }
  *end = nullptr;
}

[[maybe_unused]] const int g_watching_forks = pthread_atfork([] { g_lock.lock(); }, [] { g_lock.unlock(); },
                                                             [] {
                                                               forget_lost_threads();
                                                               g_lock.unlock();
                                                             });

#else

// Without libpthread nothing tells when a thread ends: what it had lasts until release_scratch.
void free_at_thread_end(ThreadBuffers*) {}

#endif

// Null when memory ends.
ThreadBuffers* own_buffers() {
  if (t_own != nullptr) return t_own;
  void* const memory = std::malloc(sizeof(ThreadBuffers));
  if (memory == nullptr) return nullptr;
  auto* const made = new (memory) ThreadBuffers;
  if (t_uses > 0) made->state.store(State::kInUse, std::memory_order_relaxed);
  free_at_thread_end(made);
  g_lock.lock();
  made->next = g_all;
  g_all = made;
  g_lock.unlock();
  t_own = made;
  return made;
}

// Null where the call has brought no such memory.
void* lines_of_call(int slot, uint32_t lines) {
  const CallScope* const scope = call_scope();
  CallScratch* const call = scope != nullptr ? scope->scratch : nullptr;
  if (call == nullptr) return nullptr;
  uint32_t* const ends = call->ends + (scope->seat < 0 ? slot : kScratchSlots + slot);
  if (call->memory == nullptr) {
    ends[1] = std::max(ends[1], lines);
    return call;
  }
  if (ends[1] - ends[0] < lines) return nullptr;
  const size_t seat = scope->seat < 0 ? 0 : static_cast<size_t>(scope->seat);
  return call->memory + 64 * (ends[0] + seat * (call->ends[2 * kScratchSlots] - call->ends[kScratchSlots]));
}

}  // namespace

uint64_t CallScratch::place(uint8_t* at, int threads) {
  memory = at;
  for (int slot = 0; slot < 2 * kScratchSlots; ++slot) ends[slot + 1] += ends[slot];
  const uint64_t outside = ends[kScratchSlots], inside = ends[2 * kScratchSlots] - outside;
  return 64 * (outside + static_cast<uint64_t>(threads) * inside);
}

// Called in many places, of which few are in loops.
__attribute__((noinline)) bool measures_scratch() {
  const CallScope* const scope = call_scope();
  return scope != nullptr && scope->scratch != nullptr && scope->scratch->memory == nullptr;
}

ScratchUse::ScratchUse() {
  ThreadBuffers* const own = t_own;
  if (t_uses++ > 0 || own == nullptr) return;
  // Another thread may be freeing them at this moment.
  for (State idle = State::kIdle;
       !own->state.compare_exchange_weak(idle, State::kInUse, std::memory_order_acquire, std::memory_order_relaxed);
       idle = State::kIdle)
    sched_yield();
}

ScratchUse::~ScratchUse() {
  ThreadBuffers* const own = t_own;
  if (--t_uses > 0 || own == nullptr) return;
  State used = State::kInUse;
  if (own->state.compare_exchange_strong(used, State::kIdle, std::memory_order_release, std::memory_order_relaxed))
    return;
  own->free_all();
  own->state.store(State::kIdle, std::memory_order_release);
}

void* thread_scratch_bytes(Scratch slot, int64_t count, size_t element_bytes) {
  const auto at = static_cast<size_t>(slot);
  bool fits = static_cast<uint64_t>(count) <= (SIZE_MAX - 64) / element_bytes;
  const size_t bytes = fits ? (static_cast<size_t>(count) * element_bytes + 63) / 64 * 64 : 0;
  if (fits)
    if (void* const given = lines_of_call(static_cast<int>(slot), static_cast<uint32_t>(bytes / 64)); given != nullptr)
      return given;
  ThreadBuffers* const own = own_buffers();
  fits = fits && own != nullptr;
  if (fits && own->data[at] != nullptr && own->size[at] >= bytes) return own->data[at];
  if (fits) {
    std::free(own->data[at]);
    own->add_bytes(-own->size[at]);
    own->size[at] = 0;
    own->data[at] = std::aligned_alloc(64, bytes > 0 ? bytes : 64);
  }
  if (!fits || own->data[at] == nullptr) {
    static_cast<void>(
        fail(SI_ERR_MEMORY, "out of memory: ", static_cast<uint64_t>(count) * element_bytes, " bytes of scratch"));
    return nullptr;
  }
  own->size[at] = bytes;
  own->add_bytes(bytes);
  return own->data[at];
}

void release_scratch() {
  g_lock.lock();
  for (ThreadBuffers* each = g_all; each != nullptr; each = each->next) {
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
  g_lock.unlock();
#if defined(__GLIBC__)
  // What was freed may lie in the middle of the allocator's memory, which it gives back only when told.
  malloc_trim(0);
#endif
}

size_t scratch_bytes() {
  g_lock.lock();
  size_t bytes = 0;
  for (const ThreadBuffers* each = g_all; each != nullptr; each = each->next)
    bytes += each->bytes.load(std::memory_order_relaxed);
  g_lock.unlock();
  return bytes;
}

}  // namespace si
