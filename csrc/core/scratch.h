// Memory that kernels copy and pack into: each thread has its own and keeps it from call to call.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

namespace si {

// `slot` tells apart buffers that one thread uses at the same time.
enum class Scratch { kInput = 0, kOutput = 1, kTaps = 2, kBias = 3, kGates = 4, kRuns = 5, kCount = 6 };

// 64-byte aligned memory that lives as long as the calling thread and only grows: no allocation once warm. Contents are
// unspecified. Null, with a message, when memory ends.
void* thread_scratch_bytes(Scratch slot, int64_t count, size_t element_bytes);

template <class T>
[[nodiscard]] si_status thread_scratch(Scratch slot, int64_t count, T** out) {
  *out = static_cast<T*>(thread_scratch_bytes(slot, count, sizeof(T)));
  return *out != nullptr ? SI_OK : SI_ERR_MEMORY;
}

}  // namespace si
