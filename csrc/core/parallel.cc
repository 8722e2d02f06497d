#include "core/parallel.h"

#include <algorithm>

#include "core/cpu.h"
#include "core/error.h"
#include "core/job.h"
#if SI_THREADS
#include "core/openmp_host.h"
#include "core/pool.h"
#endif

namespace si {

namespace {

thread_local const CallersThreads* t_callers = nullptr;

// On as many threads as there are to share with.
void run_shared([[maybe_unused]] int threads, Job& job) {
  if (scratch_alone()) return job.drain();
  if (t_callers != nullptr && t_callers->run != nullptr) {
    t_callers->run(t_callers->user, threads, [](void* data) { static_cast<Job*>(data)->drain(); }, &job);
    // Where it has called nothing, all is still to do.
    return job.drain();
  }
#if SI_THREADS
  if (hosted())
    run_on_host(threads, job);
  else
    run_on_pool(threads, job);
#else
  job.drain();
#endif
}

}  // namespace

CallersThreads::CallersThreads(si_parallel_for call, void* data) : run(call), user(data), before_(t_callers) {
  t_callers = this;
}

CallersThreads::~CallersThreads() { t_callers = before_; }

namespace detail {

si_status parallel_items(int threads, int64_t items, ItemFn fn, void* context) {
  if (items < threads) threads = static_cast<int>(items);
  if (threads > 1) {
    Job job(threads, items, fn, context);
    run_shared(threads, job);
    return job.status == SI_OK ? SI_OK : keep_message(job.status, job.message);
  }
  for (int64_t item = 0; item < items; ++item) SI_TRY(fn(context, item));
  return SI_OK;
}

}  // namespace detail

void start_threads([[maybe_unused]] int threads) {
#if SI_THREADS
  if (threads > 1 && !hosted()) start_pool(std::min(threads, processors()));
#endif
}

const char* parallel_backend() {
#if SI_THREADS
  return hosted() ? host_name() : "pool";
#else
  return "none";
#endif
}

}  // namespace si
