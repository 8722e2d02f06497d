#include "core/openmp_host.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace si {

namespace {

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

// Paths of the libraries in the process, copies that are freed by the destructor.
struct Loaded {
  static constexpr int kMost = 16;
  char* torch = nullptr;
  char* openmp[kMost] = {};
  int count = 0;

  ~Loaded() {
    std::free(torch);
    for (char* path : openmp) std::free(path);
  }
};

int list_loaded(dl_phdr_info* info, size_t, void* out) {
  if (info->dlpi_name == nullptr) return 0;
  auto& loaded = *static_cast<Loaded*>(out);
  const char* base = file_name(info->dlpi_name);
  if (std::strncmp(base, "libtorch_cpu.", 13) == 0 && loaded.torch == nullptr) loaded.torch = strdup(info->dlpi_name);
  // Intel's and LLVM's runtimes export GNU's entry point as well.
  if ((std::strncmp(base, "libgomp", 7) == 0 || std::strncmp(base, "libiomp5", 8) == 0 ||
       std::strncmp(base, "libomp", 6) == 0) &&
      loaded.count < Loaded::kMost)
    loaded.openmp[loaded.count++] = strdup(info->dlpi_name);
  return 0;
}

struct Host {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // null: there is none
  int (*max_threads)() = nullptr;
  char name[256] = "";

  void find() {
    // Opened only after the walk: it holds a lock that a dlopen on another thread takes in the opposite order.
    Loaded loaded;
    dl_iterate_phdr(list_loaded, &loaded);
    // Other packages bring runtimes of their own (scikit-learn does). The one to share is torch's: what the entry point
    // means to its library.
    if (bind(loaded.torch)) return;
    for (const char* path : loaded.openmp)
      if (bind(path)) return;
  }

  bool bind(const char* path) {
    if (path == nullptr) return false;
    // Never closed, so that the runtime cannot be unloaded while we call it.
    void* handle = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) return false;
    auto* const entry = dlsym(handle, "GOMP_parallel");
    auto* const count = dlsym(handle, "omp_get_max_threads");
    if (entry == nullptr || count == nullptr) return false;
    parallel = reinterpret_cast<decltype(parallel)>(entry);
    max_threads = reinterpret_cast<decltype(max_threads)>(count);
    Dl_info info{};
    const bool known = dladdr(entry, &info) != 0 && info.dli_fname != nullptr;
    std::snprintf(name, sizeof name, "gomp (%s of the host)", file_name(known ? info.dli_fname : path));
    return true;
  }
};

Host g_host;
// Held while the host is looked for, and over a fork, so that a child finds the answer whole.
pthread_mutex_t g_mutex = PTHREAD_MUTEX_INITIALIZER;
std::atomic<bool> g_found{false};
std::atomic<bool> g_forked{false};

// A forked child leaves OpenMP alone, which would wait for threads that are not there. Registered when the library is
// loaded: the parent may never have called a kernel, and still have used OpenMP.
[[maybe_unused]] const int g_watching_forks =
    pthread_atfork([] { pthread_mutex_lock(&g_mutex); }, [] { pthread_mutex_unlock(&g_mutex); },
                   [] {
                     g_forked.store(true, std::memory_order_relaxed);
                     pthread_mutex_unlock(&g_mutex);
                   });

const Host& host() {
  if (g_found.load(std::memory_order_acquire)) return g_host;
  pthread_mutex_lock(&g_mutex);
  if (!g_found.load(std::memory_order_relaxed)) {
    g_host.find();
    g_found.store(true, std::memory_order_release);
  }
  pthread_mutex_unlock(&g_mutex);
  return g_host;
}

}  // namespace

bool hosted() { return host().parallel != nullptr && !g_forked.load(std::memory_order_relaxed); }

const char* host_name() { return host().name; }

void run_on_host(int threads, Job& job) {
  const Host& found = host();
  found.parallel([](void* data) { static_cast<Job*>(data)->drain(); }, &job,
                 static_cast<unsigned>(std::max(threads, found.max_threads())), 0);
}

}  // namespace si
