// How a weight falls into units of output rows (a panel, a row) that kernels run in any range.
#pragma once

#include <cstdint>

namespace si {

struct Units {
  int64_t per_group;      // units of one group
  int64_t rows;           // of a unit; the last of a group may have fewer
  const uint32_t* order;  // [M]: the output row at each position; null where every row stands at its own
  int64_t kblock;         // columns of a K block, each of which kernels can run for all units; 0: K is one block
  int64_t kblocks;
  // Loads of a vector of x that one token takes where units share none, and the values that are multiplied with them.
  uint64_t loads, values;
};

}  // namespace si
