// Memory that kernels copy and pack into: each thread has its own, keeps it from call to call, and can be told to give
// it back.
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

// 64-byte aligned memory of the calling thread, which only grows: no allocation once warm. Contents are unspecified,
// and the buffer lasts until the thread's outermost ScratchUse ends. Null, with a message, when memory ends.
void* thread_scratch_bytes(Scratch slot, int64_t count, size_t element_bytes);

template <class T>
[[nodiscard]] si_status thread_scratch(Scratch slot, int64_t count, T** out) {
  *out = static_cast<T*>(thread_scratch_bytes(slot, count, sizeof(T)));
  return *out != nullptr ? SI_OK : SI_ERR_MEMORY;
}

// While one lives, release_scratch leaves the calling thread's buffers alone: it frees them when the last one ends.
class ScratchUse {
 public:
  ScratchUse();
  ~ScratchUse();
  ScratchUse(const ScratchUse&) = delete;
  ScratchUse& operator=(const ScratchUse&) = delete;
};

// Frees the scratch of every thread: of those at work, when their call ends.
void release_scratch();

// Bytes of scratch that all threads hold.
size_t scratch_bytes();

}  // namespace si
