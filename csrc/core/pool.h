// Threads of the library's own, for a process without OpenMP and for a forked child.
#pragma once

#include "core/job.h"

namespace si {

// Starts what `threads` threads lack, the calling one among them.
void start_pool(int threads);

// Runs the job on `threads` threads, this one among them: fewer where the system gives no more, this one alone where
// another job is running.
void run_on_pool(int threads, Job& job);

}  // namespace si
