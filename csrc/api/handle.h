// The check of the handles that callers bring.
#pragma once

#include "core/error.h"
#include "core/handle.h"

namespace si {

template <class Handle>
[[nodiscard]] si_status check_handle(const char* function, const char* kind, const Handle* handle) {
  SI_REQUIRE(handle != nullptr, SI_ERR_ARGUMENT, function, ": expected a ", kind, ", got a null handle");
  SI_REQUIRE(handle->magic == kOpenHandle, SI_ERR_ARGUMENT, function, ": expected an open ", kind,
             ", got one that is closed, or other memory; try opening it anew");
  return SI_OK;
}

}  // namespace si
