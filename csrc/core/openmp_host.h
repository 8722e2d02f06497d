// The OpenMP runtime that the host program already uses, called through its stable entry point. Linking one ourselves
// could bring a second runtime into the process: two sets of spinning threads on the same cores.
#pragma once

#include "core/job.h"

namespace si {

// Whether there is one, and this process may use it. Decided at the first call.
bool hosted();

// "gomp (libgomp.so.1 of the host)"; only where hosted().
const char* host_name();

// libgomp ends the threads that a team leaves over, and starts them again for the next team that is larger. So the team
// is always as large as the ones that the host's own operators make, and those too many take no work.
void run_on_host(int threads, Job& job);

}  // namespace si
