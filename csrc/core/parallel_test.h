// What the tests of parallel_for share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <set>
#include <thread>
#include <vector>

#include "core/parallel.h"

namespace si::testing {

inline bool every_item_once(int threads, int64_t items) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
  if (parallel_for(threads, items, [&](int64_t item) { ++seen[static_cast<size_t>(item)]; }) != SI_OK) return false;
  for (const auto& count : seen)
    if (count != 1) return false;
  return true;
}

// How many different threads ran `threads` items, each of which waits for all the others to begin (or for a minute).
inline int threads_at_once(int threads) {
  std::vector<std::thread::id> ids(static_cast<size_t>(threads));
  std::atomic<int> begun{0};
  const auto status = parallel_for(threads, threads, [&](int64_t item) {
    ids[static_cast<size_t>(item)] = std::this_thread::get_id();
    ++begun;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (begun < threads && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
  });
  if (status != SI_OK) return 0;
  return static_cast<int>(std::set<std::thread::id>(ids.begin(), ids.end()).size());
}

}  // namespace si::testing
