// Memory that kernels copy and pack into: each thread has its own, keeps it from call to call, and can be told to give
// it back.
#pragma once

#include <cstddef>
#include <cstdint>

namespace si {

// What a driver plans with: no buffer is larger, unless one column of vectors (or one row of a weight) takes more.
constexpr int64_t kScratchFloats = int64_t{1} << 22;

// 64-byte aligned floats of the calling thread, which only grow: no allocation once warm. `slot` tells apart buffers
// that one thread uses at the same time. Contents are unspecified, and the buffer lasts until the thread's outermost
// ScratchUse ends. Throws si::Error when memory ends.
enum class Scratch { kInput = 0, kOutput = 1, kTaps = 2, kBias = 3, kGates = 4, kCount = 5 };
float* thread_scratch(Scratch slot, int64_t floats);

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
