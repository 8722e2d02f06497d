// Scratch: how much is held, and giving it back from any thread, while others are at work, and in a forked child.
// clang-format off: first, because <sys/wait.h> makes a macro of si_status.
#include "core/scratch.h"
#include "core/parallel.h"
// clang-format on

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "testing/check.h"

// Read by LeakSanitizer: a forked child leaves the buffers of threads that it does not have.
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off() { return 1; }

namespace {

using si::Scratch;

float* scratch_floats(Scratch slot, int64_t floats) {
  return static_cast<float*>(si::thread_scratch_bytes(slot, floats, sizeof(float)));
}

// Writes all of a buffer and finds it so after others had time to free it.
bool keeps(Scratch slot, int64_t floats, float mark) {
  const si::ScratchUse use;
  float* data = scratch_floats(slot, floats);
  for (int64_t i = 0; i < floats; ++i) data[i] = mark;
  std::this_thread::yield();
  bool same = scratch_floats(slot, floats) == data && reinterpret_cast<uintptr_t>(data) % 64 == 0;
  for (int64_t i = 0; i < floats; ++i) same = same && data[i] == mark;
  return same;
}

}  // namespace

int main() {
  SI_CHECK_EQ(si_scratch_bytes(), 0u);
  SI_CHECK(keeps(Scratch::kInput, 1000, 1.0f));
  SI_CHECK(keeps(Scratch::kOutput, 16, 2.0f));
  SI_CHECK_EQ(si_scratch_bytes(), 4032u + 64u);
  SI_CHECK(keeps(Scratch::kInput, 10, 3.0f));
  SI_CHECK_EQ(si_scratch_bytes(), 4032u + 64u);
  SI_CHECK(keeps(Scratch::kInput, 2000, 4.0f));
  SI_CHECK_EQ(si_scratch_bytes(), 8000u + 64u);
  si_release_scratch();
  SI_CHECK_EQ(si_scratch_bytes(), 0u);

  // In use, and in a use inside it: given back when the outer one ends.
  {
    const si::ScratchUse outer;
    float* data = scratch_floats(Scratch::kInput, 100);
    data[99] = 5.0f;
    {
      const si::ScratchUse inner;
      std::thread([] { si_release_scratch(); }).join();
    }
    SI_CHECK_EQ(data[99], 5.0f);
    SI_CHECK(si_scratch_bytes() > 0);
  }
  SI_CHECK_EQ(si_scratch_bytes(), 0u);

  // Another thread's, idle; and what it held when it ended.
  std::atomic<int> step{0};
  std::thread other([&] {
    keeps(Scratch::kInput, 5000, 6.0f);
    step = 1;
    while (step < 2) std::this_thread::yield();
    keeps(Scratch::kInput, 5000, 7.0f);
  });
  while (step < 1) std::this_thread::yield();
  SI_CHECK(si_scratch_bytes() >= 20000);
  si_release_scratch();
  SI_CHECK_EQ(si_scratch_bytes(), 0u);
  step = 2;
  other.join();
  SI_CHECK_EQ(si_scratch_bytes(), 0u);

  // Several threads that work, and several that give back what they find.
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int id = 0; id < 3; ++id)
    threads.emplace_back([&, id] {
      for (int repeat = 0; repeat < 300; ++repeat)
        wrong += si::parallel_for(2, 4, [&](int64_t item) {
                   wrong += !keeps(Scratch::kInput, 100 + repeat, static_cast<float>(id * 10 + item));
                 }) != SI_OK;
    });
  for (int id = 0; id < 2; ++id)
    threads.emplace_back([&] {
      while (!stop) {
        si_release_scratch();
        std::this_thread::yield();
      }
    });
  for (int id = 0; id < 3; ++id) threads[static_cast<size_t>(id)].join();
  stop = true;
  for (int id = 3; id < 5; ++id) threads[static_cast<size_t>(id)].join();
  SI_CHECK_EQ(wrong.load(), 0);

  // A child gives back its own buffers and those of its parent's idle threads, and works on.
  std::atomic<bool> leave{false}, busy{false};
  std::thread idle([&] {
    keeps(Scratch::kInput, 3000, 8.0f);
    step = 3;
    while (!leave) std::this_thread::yield();
  });
  std::thread working([&] {
    const si::ScratchUse use;
    scratch_floats(Scratch::kInput, 3000);
    busy = true;
    while (!leave) std::this_thread::yield();
  });
  while (step < 3 || !busy) std::this_thread::yield();
  SI_CHECK(keeps(Scratch::kInput, 3000, 9.0f));
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    bool good = si_scratch_bytes() >= 2 * 12000;
    si_release_scratch();
    good = good && si_scratch_bytes() == 0 && keeps(Scratch::kInput, 3000, 10.0f) && si_scratch_bytes() >= 12000;
    std::thread([&] { good = good && keeps(Scratch::kInput, 3000, 11.0f); }).join();
    si_release_scratch();
    _exit(good && si_scratch_bytes() == 0 ? 0 : 1);
  }
  int status = 1;
  SI_CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  leave = true;
  idle.join();
  working.join();
  return si::testing::finish("scratch_test");
}
