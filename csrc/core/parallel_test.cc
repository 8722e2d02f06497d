// parallel_for on the library's own threads: every item once, as many threads as asked for, failures brought home,
// callers at once, calls inside calls.
#include "core/parallel.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/parallel_test.h"
#include "testing/check.h"

namespace {

using si::testing::every_item_once;
using si::testing::threads_at_once;

bool failure_comes_home(int threads) {
  const si_status status = si::parallel_for(
      threads, 100, [](int64_t item) { return item == 13 ? si::fail(SI_ERR_UNSUPPORTED, "item ", item) : SI_OK; });
  return status == SI_ERR_UNSUPPORTED && std::strcmp(si::last_message(), "item 13") == 0;
}

}  // namespace

int main() {
  // This program loads no OpenMP runtime, so the library's own threads are what is tested.
  SI_CHECK_EQ(std::string(si::parallel_backend()), "pool");
  for (int threads : {1, 2, 3, 8})
    for (int64_t items : {0, 1, 2, 7, 1000}) SI_CHECK(every_item_once(threads, items));

  // The number may change from call to call, up and down.
  for (int threads : {2, 5, 3, 8, 1, 8}) SI_CHECK_EQ(threads_at_once(threads), threads);

  for (int threads : {1, 4}) {
    SI_CHECK(failure_comes_home(threads));
    SI_CHECK(every_item_once(threads, 50));
  }

  std::atomic<int> good{0};
  SI_CHECK_EQ(si::parallel_for(4, 8, [&](int64_t) { good += every_item_once(4, 20); }), SI_OK);
  SI_CHECK_EQ(good.load(), 8);

  good = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i)
    callers.emplace_back([&, i] {
      for (int repeat = 0; repeat < 200; ++repeat) {
        const int threads = 1 + (repeat + i) % 4;
        good += repeat % 8 == 7 ? failure_comes_home(threads) : every_item_once(threads, 20);
      }
    });
  for (std::thread& caller : callers) caller.join();
  SI_CHECK_EQ(good.load(), 6 * 200);
  return si::testing::finish("parallel_test");
}
