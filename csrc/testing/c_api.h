// What tests of the C API share.
#pragma once

#include <sparseinfer.h>

#include <cstring>

namespace si::testing {

// A struct of the C API that gives its size.
template <class Sized>
Sized sized() {
  Sized out{};
  out.struct_size = sizeof out;
  return out;
}

// Whether the last failure has this in its message.
inline bool says(const char* part) { return std::strstr(si_last_error(), part) != nullptr; }

}  // namespace si::testing
