// A mark that handles carry while they are open, so that a use of one that was closed, or of other memory, is told
// where the memory still shows it.
#pragma once

#include <cstdint>

namespace si {

constexpr uint32_t kOpenHandle = 0x5e1fda7a;

// Before its memory is freed: a compiler leaves out what is written to memory that nobody may read.
template <class Handle>
void forget_handle(Handle* handle) {
  *const_cast<volatile uint32_t*>(&handle->magic) = 0;
}

}  // namespace si
