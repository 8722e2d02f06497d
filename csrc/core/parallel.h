// Work over threads: one entry point, whatever runs the threads.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace si {

namespace detail {
using ItemFn = void (*)(void* context, int64_t item);
void parallel_items(int threads, int64_t items, ItemFn fn, void* context);
}  // namespace detail

// Calls fn(item) once for each item of [0, items), on up to `threads` threads, handing items out in order as threads
// come free, and returns when all are done. If an fn throws, items not yet begun are dropped and the first exception is
// thrown here. With one thread or one item no thread is touched.
template <class Fn>
void parallel_for(int threads, int64_t items, Fn&& fn) {
  using Plain = std::remove_reference_t<Fn>;
  detail::parallel_items(
      threads, items, [](void* context, int64_t item) { (*static_cast<Plain*>(context))(item); },
      const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
}

// Which runtime the threads come from; decided at the first call that needs more than one thread, or here.
const char* parallel_backend();

}  // namespace si
