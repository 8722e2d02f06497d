// Threads of the library's own, for a process without OpenMP and for a forked child.
#pragma once

#include "core/job.h"

namespace si {

// Runs the job on `threads` threads, this one among them: fewer where the system gives no more, this one alone where
// another job is running.
void run_on_pool(int threads, Job& job);

}  // namespace si
