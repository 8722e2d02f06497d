#include "core/parallel.h"

#include <algorithm>

#include "core/call_scope.h"
#include "core/cpu.h"
#include "core/error.h"
#include "core/job.h"
#if SI_THREADS
#include "core/openmp_host.h"
#include "core/pool.h"
#endif

namespace si {

namespace {

// On as many threads as there are to share with.
void run_shared(int threads, Job& job) {
  const CallScope* const scope = call_scope();
  // An item shares nothing further out.
  const bool alone = measures_scratch() || (scope != nullptr && scope->seat >= 0);
  if (!alone && scope != nullptr && scope->run != nullptr)
    scope->run(scope->user, threads, [](void* data) { static_cast<Job*>(data)->drain(); }, &job);
#if SI_THREADS
  else if (!alone)
    return hosted() ? run_on_host(threads, job) : run_on_pool(threads, job);
#endif
  // Where nobody else has called anything, all is still to do.
  job.drain();
}

}  // namespace

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
