// Norms and attention over threads. isa null: the scalar loops. Arguments have been checked.
#pragma once

#include "kernels/tile/tile.h"

namespace si {

// All heads of a batch, whose features stand side by side in a token; the first one's `job` but for scratch, queries
// and the mask, of all queries.
struct Attention {
  AttentionJob job;
  int64_t batch, heads;
  // From sequence to sequence, and of the mask from head to head too.
  int64_t q_step, k_step, v_step, y_step, mask_step, mask_head;
};

// Features of a head: more would take more scratch than a thread plans with.
constexpr int64_t kMostHeadFeatures = 1024;

[[nodiscard]] si_status norm(const TileKernels* isa, const NormJob& job, int threads);
// The kernels of attention: with `rounds` those that multiply bfloat16, where they run.
const TileKernels* attention_kernels(bool rounds);

[[nodiscard]] si_status attend(const TileKernels* isa, const Attention& call, int threads);

}  // namespace si
