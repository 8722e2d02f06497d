// Work over threads: one entry point, whatever runs the threads.
#pragma once

#include <sparseinfer.h>

#include <cstdint>
#include <memory>
#include <type_traits>

namespace si {

namespace detail {
using ItemFn = si_status (*)(void* context, int64_t item);
[[nodiscard]] si_status parallel_items(int threads, int64_t items, ItemFn fn, void* context);
}  // namespace detail

// Calls fn(item) once for each item of [0, items), on up to `threads` threads, handing items out in order as threads
// come free, and returns when all are done. fn returns nothing or a status: after a failure, items not yet begun are
// dropped, and the first one's status comes back, with its message. With one thread or one item no thread is touched.
template <class Fn>
[[nodiscard]] si_status parallel_for(int threads, int64_t items, Fn&& fn) {
  using Plain = std::remove_reference_t<Fn>;
  return detail::parallel_items(
      threads, items,
      [](void* context, int64_t item) {
        if constexpr (std::is_void_v<decltype(std::declval<Plain&>()(item))>) {
          (*static_cast<Plain*>(context))(item);
          return SI_OK;
        } else {
          return (*static_cast<Plain*>(context))(item);
        }
      },
      const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
}

// Starts the library's own threads, where calls run on those: `threads` of them, and no more than there are processors.
void start_threads(int threads);

// Which runtime the threads come from; decided at the first call that needs more than one thread, or here. "none" where
// the library is built without threads.
const char* parallel_backend();

}  // namespace si
