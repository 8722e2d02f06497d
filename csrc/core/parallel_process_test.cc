// parallel_for where processes begin and end: a child after fork, and an exit while work goes on. Apart from
// parallel_test because ThreadSanitizer follows no threads into a forked child.
// clang-format off: first, because <sys/wait.h> makes a macro of si_status.
#include "core/parallel.h"
// clang-format on

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "core/parallel_test.h"
#include "testing/check.h"

// Read by LeakSanitizer, which looks for leaks at exit and may see false ones while threads are at work.
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off() { return 1; }

namespace {

using si::testing::every_item_once;
using si::testing::threads_at_once;

// `child` runs in a forked process; whether that exits with status 0, in time.
template <class Fn>
bool in_child(Fn child) {
  const pid_t id = fork();
  if (id == 0) {
    alarm(60);
    child();
  }
  int status = 1;
  return waitpid(id, &status, 0) == id && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  // The parent's threads do not exist in a child, whether it forks before or after the first call.
  for (int parent = 0; parent < 2; ++parent) {
    SI_CHECK(in_child([] { _exit(threads_at_once(4) == 4 ? 0 : 1); }));
    SI_CHECK_EQ(threads_at_once(3), 3);
  }

  // A fork while other threads are in the middle of calls.
  std::atomic<bool> stop{false};
  std::atomic<int> calls{0};
  std::thread caller([&] {
    while (!stop) calls += every_item_once(3, 50);
  });
  for (int repeat = 0; repeat < 10; ++repeat) {
    for (const int seen = calls; calls < seen + 5;) std::this_thread::yield();
    SI_CHECK(in_child([] { _exit(every_item_once(4, 100) ? 0 : 1); }));
  }
  stop = true;
  caller.join();

  // Static objects go while threads of the pool and of the host are in the middle of calls.
  SI_CHECK(in_child([] {
    std::atomic<int> done{0};
    for (int i = 0; i < 2; ++i)
      std::thread([&done] {
        while (true) done += every_item_once(3, 50);
      }).detach();
    while (done < 20) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::exit(0);
  }));
  return si::testing::finish("parallel_process_test");
}
