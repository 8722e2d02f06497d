#include "core/scratch.h"

#include <cstdlib>
#if SI_THREADS
#include <pthread.h>
#endif

#include "core/error.h"
#include "core/once.h"

namespace si {

namespace {

constexpr int kSlots = static_cast<int>(Scratch::kCount);

struct Buffers {
  void* data[kSlots];
  size_t size[kSlots];
};

thread_local Buffers t_buffers;

#if SI_THREADS

// Frees what a thread has when it ends. A thread_local object with a destructor would need the C++ runtime.
pthread_key_t g_key;
Once g_once;

void free_at_thread_end() {
  g_once.run([] {
    pthread_key_create(&g_key, [](void* buffers) {
      auto& ended = *static_cast<Buffers*>(buffers);
      for (void*& data : ended.data) std::free(data);
      ended = {};
    });
  });
  pthread_setspecific(g_key, &t_buffers);
}

#else

// Without threads the buffers last as long as the process.
void free_at_thread_end() {}

#endif

}  // namespace

void* thread_scratch_bytes(Scratch slot, int64_t count, size_t element_bytes) {
  const auto at = static_cast<size_t>(slot);
  Buffers& own = t_buffers;
  const bool fits = static_cast<uint64_t>(count) <= (SIZE_MAX - 64) / element_bytes;
  const size_t bytes = fits ? (static_cast<size_t>(count) * element_bytes + 63) / 64 * 64 : 0;
  if (fits && own.data[at] != nullptr && own.size[at] >= bytes) return own.data[at];
  std::free(own.data[at]);
  own.size[at] = 0;
  own.data[at] = fits ? std::aligned_alloc(64, bytes > 0 ? bytes : 64) : nullptr;
  if (own.data[at] == nullptr) {
    const auto told = static_cast<uint64_t>(count) * element_bytes;
    static_cast<void>(fail(SI_ERR_MEMORY, "out of memory: ", told, " bytes of scratch"));
    return nullptr;
  }
  own.size[at] = bytes;
  free_at_thread_end();
  return own.data[at];
}

}  // namespace si
