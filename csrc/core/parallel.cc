#include "core/parallel.h"

#include "core/error.h"
#if SI_THREADS
#include "core/job.h"
#include "core/openmp_host.h"
#include "core/pool.h"
#endif

namespace si {

namespace detail {

si_status parallel_items([[maybe_unused]] int threads, int64_t items, ItemFn fn, void* context) {
#if SI_THREADS
  if (items < threads) threads = static_cast<int>(items);
  if (threads > 1) {
    Job job(threads, items, fn, context);
    if (hosted())
      run_on_host(threads, job);
    else
      run_on_pool(threads, job);
    return job.status == SI_OK ? SI_OK : keep_message(job.status, job.message);
  }
#endif
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
