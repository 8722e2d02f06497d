// Memory that kernels copy and pack into: each thread has its own, keeps it from call to call, and can be told to give
// it back. A call may bring memory instead, of a size that the same call was asked for before.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

namespace si {

// What a driver plans with: no buffer is larger, unless one column of vectors (or one row of a weight) takes more.
constexpr int64_t kScratchFloats = int64_t{1} << 22;

// `slot` tells apart buffers that one thread uses at the same time.
enum class Scratch {
  kInput = 0,
  kOutput = 1,
  kTaps = 2,
  kBias = 3,
  kGates = 4,
  kRuns = 5,
  kColumns = 6,
  kNamed = 7,
  kTile = 8,
  kCount = 9
};

// 64-byte aligned memory of the call's, where it has so much, or of the calling thread, which only grows: no allocation
// once warm. Contents are unspecified, and the buffer lasts until the thread's outermost ScratchUse ends. Null, with a
// message, when memory ends.
void* thread_scratch_bytes(Scratch slot, int64_t count, size_t element_bytes);

template <class T>
[[nodiscard]] si_status thread_scratch(Scratch slot, int64_t count, T** out) {
  *out = static_cast<T*>(thread_scratch_bytes(slot, count, sizeof(T)));
  return *out != nullptr ? SI_OK : SI_ERR_MEMORY;
}

// While one lives, release_scratch leaves the calling thread's buffers alone: it frees them when the last one ends.
// Each call of the API that computes has one, and each thread that works on items.
class ScratchUse {
 public:
  ScratchUse();
  ~ScratchUse();
  ScratchUse(const ScratchUse&) = delete;
  ScratchUse& operator=(const ScratchUse&) = delete;
};

constexpr int kScratchSlots = static_cast<int>(Scratch::kCount);

// The scratch of a call, by slot: what its thread takes, and then what each thread takes that works on an item of those
// that it shares out (parallel_for).
struct CallScratch {
  uint32_t ends[2 * kScratchSlots + 1];  // the first line of 64 bytes of each slot, and one past the last
  uint8_t* memory;                       // null while slots are measured: then each end is the lines of a slot

  // Ends the measuring: gives the bytes of memory for items on up to `threads` threads at once.
  uint64_t place(uint8_t* at, int threads);
};

// Whether the calls of this thread are measured, by a CallScope with scratch that has no memory: thread_scratch notes
// what it is asked for, what it gives must not be written to, and nothing else is.
bool measures_scratch();

// Frees the scratch of every thread: of those at work, when their call ends.
void release_scratch();

// Bytes of scratch that all threads hold.
size_t scratch_bytes();

}  // namespace si
