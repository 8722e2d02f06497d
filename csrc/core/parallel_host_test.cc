// parallel_for on the OpenMP runtime of the host program: the same team as the host's own regions, whatever is asked
// for, and none of it in a child after fork. Exits with 77 (skipped) where the machine has no such runtime.
// clang-format off: first, because <sys/wait.h> makes a macro of si_status.
#include "core/parallel.h"
// clang-format on

#include <dirent.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <set>
#include <string>

#include "core/parallel_test.h"
#include "testing/check.h"

namespace {

using si::testing::every_item_once;
using si::testing::threads_at_once;

struct Runtime {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  void (*set_threads)(int) = nullptr;

  Runtime() {
    void* handle = nullptr;
    for (const char* name : {"libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"})
      if (handle == nullptr) handle = dlopen(name, RTLD_NOW);
    if (handle == nullptr) return;
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(handle, "GOMP_parallel"));
    set_threads = reinterpret_cast<decltype(set_threads)>(dlsym(handle, "omp_set_num_threads"));
  }
};

std::set<std::string> tasks() {
  std::set<std::string> names;
  DIR* directory = opendir("/proc/self/task");
  for (const dirent* entry = readdir(directory); entry != nullptr; entry = readdir(directory))
    if (entry->d_name[0] != '.') names.insert(entry->d_name);
  closedir(directory);
  return names;
}

}  // namespace

int main() {
  const Runtime runtime;
  if (runtime.parallel == nullptr) {
    std::printf("parallel_host_test: skipped: no OpenMP runtime on this machine, try installing libgomp1\n");
    return 77;
  }
  runtime.set_threads(4);
  const auto host_region = [&] {
    std::atomic<int> ran{0};
    runtime.parallel([](void* data) { ++*static_cast<std::atomic<int>*>(data); }, &ran, 0, 0);
    return ran.load();
  };
  SI_CHECK_EQ(host_region(), 4);

  // The host has used OpenMP and the library nothing yet: a child must not wait for the threads that it has lost.
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(threads_at_once(4) == 4 && std::string(si::parallel_backend()) == "pool" ? 0 : 1);
  }
  int status = 1;
  SI_CHECK_EQ(waitpid(child, &status, 0), child);
  SI_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

  SI_CHECK_EQ(std::string(si::parallel_backend()).substr(0, 6), "gomp (");
  for (int threads : {4, 2, 3, 1, 4}) {
    SI_CHECK_EQ(threads_at_once(threads), threads);
    SI_CHECK(every_item_once(threads, 100));
  }

  // Alternating with the host's regions starts and ends no thread.
  const std::set<std::string> before = tasks();
  for (int threads : {4, 2, 3, 1, 2}) {
    SI_CHECK(every_item_once(threads, 50));
    SI_CHECK(tasks() == before);
    SI_CHECK_EQ(host_region(), 4);
    SI_CHECK(tasks() == before);
  }

  // Inside a region of the host there is one thread to work with.
  std::atomic<int> good{0};
  runtime.parallel([](void* data) { *static_cast<std::atomic<int>*>(data) += every_item_once(4, 20); }, &good, 4, 0);
  SI_CHECK_EQ(good.load(), 4);
  return si::testing::finish("parallel_host_test");
}
