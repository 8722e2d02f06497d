#include "core/parallel.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/scratch.h"

namespace si {

namespace {

struct Job {
  const detail::ItemFn fn;
  void* const context;
  const int64_t items;
  std::atomic<int> seats;  // threads that may still join in
  std::atomic<int64_t> next{0};
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr error;

  Job(int threads, int64_t count, detail::ItemFn call, void* data)
      : fn(call), context(data), items(count), seats(threads) {}

  // An exception must not leave a thread that a C runtime started.
  void drain() noexcept {
    if (seats.fetch_sub(1, std::memory_order_relaxed) <= 0) return;
    try {
      const ScratchUse use;
      for (int64_t item = next.fetch_add(1, std::memory_order_relaxed); item < items;
           item = next.fetch_add(1, std::memory_order_relaxed))
        fn(context, item);
    } catch (...) {
      next.store(items, std::memory_order_relaxed);
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
};

const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

struct Loaded {
  std::string torch;
  std::vector<std::string> openmp;
};

int list_loaded(dl_phdr_info* info, size_t, void* out) {
  if (info->dlpi_name == nullptr) return 0;
  auto& loaded = *static_cast<Loaded*>(out);
  const char* base = file_name(info->dlpi_name);
  if (std::strncmp(base, "libtorch_cpu.", 13) == 0) loaded.torch = info->dlpi_name;
  // Intel's and LLVM's runtimes export GNU's entry point as well.
  if (std::strncmp(base, "libgomp", 7) == 0 || std::strncmp(base, "libiomp5", 8) == 0 ||
      std::strncmp(base, "libomp", 6) == 0)
    loaded.openmp.emplace_back(info->dlpi_name);
  return 0;
}

// Threads of our own, for a process without OpenMP. One job at a time; a second caller, or one inside a job, works
// alone.
class Pool {
 public:
  void run(int threads, Job& job) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      job.drain();
      return;
    }
    offer(threads - 1, job);
    job.drain();
    withdraw();
    busy_.store(false, std::memory_order_release);
  }

 private:
  void offer(int helpers, Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      // Detached, because a forked child that exits may join threads that only its parent had (torch does), and one of
      // ours may have got the number of such a thread.
      try {
        for (; workers_ < helpers; ++workers_) std::thread([this, id = workers_] { work(id); }).detach();
      } catch (const std::exception&) {
        // The system gives no more threads or memory: fewer do the same work.
      }
      job_ = &job;
      wanted_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  // Nothing is left to hand out: waits for those at work, and not for those that have yet to wake.
  void withdraw() {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [this] { return working_ == 0; });
  }

  void work(int id) {
    uint64_t seen = 0;
    while (true) {
      // A layer follows a layer within microseconds: spin a little before sleeping.
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) std::this_thread::yield();
      Job* job = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (job_ == nullptr || id >= wanted_) continue;
        job = job_;
        ++working_;
      }
      job->drain();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--working_ == 0) done_.notify_one();
    }
  }

  static constexpr int kSpins = 200;
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  int workers_ = 0;
  std::atomic<uint64_t> generation_{0};
  Job* job_ = nullptr;
  int wanted_ = 0;
  int working_ = 0;
};

// The OpenMP runtime that the host program already uses, called through its stable entry point. Linking one ourselves
// could bring a second runtime into the process: two sets of spinning threads on the same cores.
struct Backend {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // null: the pool
  int (*max_threads)() = nullptr;
  std::string name = "pool";

  Backend() {
    // Opened only after the walk: it holds a lock that a dlopen on another thread takes in the opposite order.
    Loaded loaded;
    dl_iterate_phdr(list_loaded, &loaded);
    // Other packages bring runtimes of their own (scikit-learn does). The one to share is torch's: what the entry point
    // means to its library.
    if (!loaded.torch.empty() && bind(loaded.torch)) return;
    for (const std::string& path : loaded.openmp)
      if (bind(path)) return;
  }

  // libgomp ends the threads that a team leaves over, and starts them again for the next team that is larger. So the
  // team is always as large as the ones that the host's own operators make, and those too many take no work.
  void run(int threads, Job& job) const {
    parallel([](void* data) { static_cast<Job*>(data)->drain(); }, &job,
             static_cast<unsigned>(std::max(threads, max_threads())), 0);
  }

 private:
  bool bind(const std::string& path) {
    // Never closed, so that the runtime cannot be unloaded while we call it.
    void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle == nullptr) return false;
    auto* const entry = dlsym(handle, "GOMP_parallel");
    auto* const count = dlsym(handle, "omp_get_max_threads");
    if (entry == nullptr || count == nullptr) return false;
    parallel = reinterpret_cast<decltype(parallel)>(entry);
    max_threads = reinterpret_cast<decltype(max_threads)>(count);
    Dl_info info{};
    const bool known = dladdr(entry, &info) != 0 && info.dli_fname != nullptr;
    name = std::string("gomp (") + file_name(known ? info.dli_fname : path.c_str()) + " of the host)";
    return true;
  }
};

// Both are never destroyed: threads of the pool, or of the host, may be at work while the process exits.
std::atomic<const Backend*> g_backend{nullptr};
Pool* g_pool = nullptr;
// Held while either is made, and over a fork, so that a child finds them whole.
std::mutex g_mutex;
std::atomic<bool> g_forked{false};

// A forked child has none of the threads that its parent started: it gets a new pool, and leaves OpenMP alone, which
// would wait for threads that are not there. Registered when the library is loaded: the parent may never have called a
// kernel, and still have used OpenMP.
[[maybe_unused]] const int g_watching_forks = pthread_atfork([] { g_mutex.lock(); }, [] { g_mutex.unlock(); },
                                                             [] {
                                                               g_pool = nullptr;
                                                               g_forked.store(true, std::memory_order_relaxed);
                                                               g_mutex.unlock();
                                                             });

const Backend& backend() {
  const Backend* chosen = g_backend.load(std::memory_order_acquire);
  if (chosen != nullptr) return *chosen;
  std::lock_guard<std::mutex> lock(g_mutex);
  chosen = g_backend.load(std::memory_order_relaxed);
  if (chosen == nullptr) {
    chosen = new Backend;
    g_backend.store(chosen, std::memory_order_release);
  }
  return *chosen;
}

Pool& pool() {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_pool == nullptr) g_pool = new Pool;
  return *g_pool;
}

bool hosted() { return backend().parallel != nullptr && !g_forked.load(std::memory_order_relaxed); }

}  // namespace

namespace detail {

void parallel_items(int threads, int64_t items, ItemFn fn, void* context) {
  if (items < threads) threads = static_cast<int>(items);
  if (threads <= 1) {
    for (int64_t item = 0; item < items; ++item) fn(context, item);
    return;
  }
  Job job(threads, items, fn, context);
  if (hosted())
    backend().run(threads, job);
  else
    pool().run(threads, job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace detail

const char* parallel_backend() { return hosted() ? backend().name.c_str() : "pool"; }

}  // namespace si
