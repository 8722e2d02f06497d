#include "core/parallel.h"

#include "core/error.h"
#include "core/job.h"
#if SI_THREADS
#include "core/openmp_host.h"
#include "core/pool.h"
#endif

namespace si {

namespace {

thread_local const CallersThreads* t_callers = nullptr;

// Whether there are threads to share with, on which it has then run.
bool run_shared([[maybe_unused]] int threads, [[maybe_unused]] Job& job) {
  if (t_callers != nullptr && t_callers->run != nullptr) {
    t_callers->run(t_callers->user, threads, [](void* data) { static_cast<Job*>(data)->drain(); }, &job);
    // Where it has called nothing, all is still to do.
    job.drain();
    return true;
  }
#if SI_THREADS
  if (hosted())
    run_on_host(threads, job);
  else
    run_on_pool(threads, job);
  return true;
#else
  return false;
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
    if (run_shared(threads, job)) return job.status == SI_OK ? SI_OK : keep_message(job.status, job.message);
  }
  for (int64_t item = 0; item < items; ++item) SI_TRY(fn(context, item));
  return SI_OK;
}

}  // namespace detail

const char* parallel_backend() {
#if SI_THREADS
  return hosted() ? host_name() : "pool";
#else
  return "none";
#endif
}

}  // namespace si
