// Failures inside the library: thrown as si::Error, turned into a status and a thread-local message by the C API.
#pragma once

#include <sparseinfer.h>

#include <stdexcept>
#include <string>

namespace si {

struct Error : std::runtime_error {
  Error(si_status code, const std::string& message) : std::runtime_error(message), status(code) {}
  si_status status;
};

[[noreturn]] inline void fail(si_status code, const std::string& message) { throw Error(code, message); }

inline void require(bool ok, si_status code, const char* message) {
  if (!ok) fail(code, message);
}

}  // namespace si
