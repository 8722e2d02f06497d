// Structs that begin with their size: those of callers that were compiled against an older or a newer header.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/error.h"

namespace si {

// Copies an argument struct; fields past the caller's size are zero. `least` is the size of the first version that had
// a size. Fails where the caller has set fields that this library does not know.
template <class Args>
[[nodiscard]] si_status read_args(const char* function, const Args* given, size_t least, Args* out) {
  SI_REQUIRE(given != nullptr, SI_ERR_ARGUMENT, function, ": null arguments");
  size_t size = 0;
  std::memcpy(&size, given, sizeof size);
  SI_REQUIRE(size >= least, SI_ERR_ARGUMENT, function, ": expected struct_size of at least ", least, ", got ", size,
             "; try setting it to the sizeof of the struct");
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  const bool known = size <= sizeof(Args) ||
                     (size <= sizeof(Args) + 4096 &&
                      std::all_of(bytes + sizeof(Args), bytes + size, [](unsigned char byte) { return byte == 0; }));
  SI_REQUIRE(known, SI_ERR_ARGUMENT, function, ": expected zero in the fields past the ", sizeof(Args),
             " bytes that this version knows, got a struct_size of ", size, "; try a newer library");
  *out = {};
  std::memcpy(out, given, std::min(size, sizeof(Args)));
  out->struct_size = sizeof(Args);
  return SI_OK;
}

// Gives a result to the caller: as much of it as his struct holds. His struct_size stays.
template <class Result>
[[nodiscard]] si_status write_result(const char* function, const Result& result, Result* out) {
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, function, ": null result");
  size_t size = 0;
  std::memcpy(&size, out, sizeof size);
  SI_REQUIRE(size > sizeof size, SI_ERR_ARGUMENT, function, ": expected struct_size of the result, got ", size,
             "; try setting it to the sizeof of the struct");
  std::memcpy(reinterpret_cast<unsigned char*>(out) + sizeof size,
              reinterpret_cast<const unsigned char*>(&result) + sizeof size,
              std::min(size, sizeof(Result)) - sizeof size);
  return SI_OK;
}

}  // namespace si
