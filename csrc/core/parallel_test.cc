// parallel_for: every item once, exceptions brought home, callers at once, a child after fork.
#include "core/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "testing/check.h"

namespace {

bool every_item_once(int threads, int64_t items) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
  si::parallel_for(threads, items, [&](int64_t item) { ++seen[static_cast<size_t>(item)]; });
  for (const auto& count : seen)
    if (count != 1) return false;
  return true;
}

}  // namespace

int main() {
  // This program loads no OpenMP runtime, so the library's own threads are what is tested.
  SI_CHECK_EQ(std::string(si::parallel_backend()), "pool");
  for (int threads : {1, 2, 3, 8})
    for (int64_t items : {0, 1, 2, 7, 1000}) SI_CHECK(every_item_once(threads, items));

  for (int threads : {1, 4}) {
    bool caught = false;
    try {
      si::parallel_for(threads, 100, [](int64_t item) {
        if (item == 13) throw std::runtime_error("thirteen");
      });
    } catch (const std::runtime_error& error) {
      caught = std::strcmp(error.what(), "thirteen") == 0;
    }
    SI_CHECK(caught);
    SI_CHECK(every_item_once(threads, 50));
  }

  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i)
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 200; ++repeat) good += every_item_once(4, 20);
    });
  for (std::thread& caller : callers) caller.join();
  SI_CHECK_EQ(good.load(), 6 * 200);

  // The parent's threads do not exist in a child.
  const pid_t child = fork();
  if (child == 0) _exit(every_item_once(4, 100) ? 0 : 1);
  int status = 1;
  SI_CHECK_EQ(waitpid(child, &status, 0), child);
  SI_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return si::testing::finish("parallel_test");
}
