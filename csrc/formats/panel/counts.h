// What validators of panels count: loops without a way out, over whole vectors, which take a fraction of the time of
// those that stop at the first fault.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace si {

// Of elements for which `is` holds. Counters as wide as the elements fill whole vectors of them.
template <class Counter, class T, class Is>
uint64_t count_of(const T* first, uint64_t count, Is is) {
  constexpr uint64_t kMost = std::numeric_limits<Counter>::max();
  uint64_t total = 0;
  for (uint64_t begin = 0; begin < count; begin += kMost) {
    const uint64_t end = std::min(count, begin + kMost);
    Counter found = 0;
    for (uint64_t i = begin; i < end; ++i) found = static_cast<Counter>(found + (is(first[i]) ? 1 : 0));
    total += found;
  }
  return total;
}

// How many of up to 65,536 indices are not larger than the one before them.
inline int64_t count_falls(const uint16_t* index, uint64_t count) {
  uint16_t found = 0;
  for (uint64_t i = 1; i < count; ++i) found = static_cast<uint16_t>(found + (index[i] <= index[i - 1] ? 1 : 0));
  return found;
}

// How many places were marked with 1.
inline uint64_t count_marks(const uint8_t* seen, int64_t count) {
  return count_of<uint8_t>(seen, static_cast<uint64_t>(count), [](uint8_t mark) { return mark != 0; });
}

}  // namespace si
