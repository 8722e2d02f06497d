#include "core/pool.h"

#include <pthread.h>
#include <sched.h>

#include <cstdlib>
#include <new>

namespace si {

namespace {

class Lock {
 public:
  explicit Lock(pthread_mutex_t& mutex) : mutex_(mutex) { pthread_mutex_lock(&mutex_); }
  ~Lock() { pthread_mutex_unlock(&mutex_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  pthread_mutex_t& mutex_;
};

// One job at a time; a second caller, or one inside a job, works alone.
class Pool {
 public:
  void run(int threads, Job& job) {
    if (busy_.exchange(1, std::memory_order_acquire) != 0) {
      job.drain();
      return;
    }
    offer(threads - 1, job);
    job.drain();
    withdraw();
    busy_.store(0, std::memory_order_release);
  }

  // Where the system gives no more threads or memory, fewer do the same work.
  void start(int helpers) {
    const Lock lock(mutex_);
    start_locked(helpers);
  }

 private:
  void start_locked(int helpers) {
    while (workers_ < helpers && start_one()) ++workers_;
  }

  void offer(int helpers, Job& job) {
    {
      const Lock lock(mutex_);
      start_locked(helpers);
      job_ = &job;
      wanted_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    pthread_cond_broadcast(&wake_);
  }

  // Detached, because a forked child that exits may join threads that only its parent had (torch does), and one of ours
  // may have got the number of such a thread.
  bool start_one() {
    pthread_t thread;
    const auto body = [](void* pool) -> void* {
      static_cast<Pool*>(pool)->work();
      return nullptr;
    };
    if (pthread_create(&thread, nullptr, body, this) != 0) return false;
    pthread_detach(thread);
    return true;
  }

  // Nothing is left to hand out: waits for those at work, and not for those that have yet to wake.
  void withdraw() {
    const Lock lock(mutex_);
    job_ = nullptr;
    while (working_ != 0) pthread_cond_wait(&done_, &mutex_);
  }

  void work() {
    const int id = begun_.fetch_add(1, std::memory_order_relaxed);
    uint64_t seen = 0;
    while (true) {
      // A layer follows a layer within microseconds: spin a little before sleeping.
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) sched_yield();
      Job* job = nullptr;
      {
        const Lock lock(mutex_);
        while (generation_.load(std::memory_order_relaxed) == seen) pthread_cond_wait(&wake_, &mutex_);
        seen = generation_.load(std::memory_order_relaxed);
        if (job_ == nullptr || id >= wanted_) continue;
        job = job_;
        ++working_;
      }
      job->drain();
      const Lock lock(mutex_);
      if (--working_ == 0) pthread_cond_signal(&done_);
    }
  }

  static constexpr int kSpins = 200;
  std::atomic<int> busy_{0};  // not bool: some processors have no exchange of a byte
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER, done_ = PTHREAD_COND_INITIALIZER;
  int workers_ = 0;
  std::atomic<int> begun_{0};
  std::atomic<uint64_t> generation_{0};
  Job* job_ = nullptr;
  int wanted_ = 0;
  int working_ = 0;
};

// Never destroyed: its threads may be at work while the process exits.
Pool* g_pool = nullptr;
// Held while the pool is made, and over a fork, so that a child finds it whole.
pthread_mutex_t g_mutex = PTHREAD_MUTEX_INITIALIZER;

// A forked child has none of the threads that its parent started: it gets a new pool.
[[maybe_unused]] const int g_watching_forks =
    pthread_atfork([] { pthread_mutex_lock(&g_mutex); }, [] { pthread_mutex_unlock(&g_mutex); },
                   [] {
                     g_pool = nullptr;
                     pthread_mutex_unlock(&g_mutex);
                   });

Pool* pool() {
  const Lock lock(g_mutex);
  if (g_pool == nullptr) {
    void* const memory = std::malloc(sizeof(Pool));
    if (memory != nullptr) g_pool = new (memory) Pool;
  }
  return g_pool;
}

}  // namespace

void start_pool(int threads) {
  if (Pool* const own = pool(); own != nullptr) own->start(threads - 1);
}

void run_on_pool(int threads, Job& job) {
  if (Pool* const own = pool(); own != nullptr)
    own->run(threads, job);
  else
    job.drain();
}

}  // namespace si
