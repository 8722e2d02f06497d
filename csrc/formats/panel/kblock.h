// The choice of K blocks for a weight that is packed with SI_KBLOCK_AUTO or SI_KBLOCK_MANY_TOKENS.
#pragma once

#include "core/tuning.h"
#include "formats/blob.h"

namespace si {

// Columns of a block, 0 for one block, by what was fastest on the machines that `tuning` speaks for.
int32_t choose_kblock(const KBlockTuning& tuning, const WeightShape& shape, uint64_t values, bool many_tokens);

}  // namespace si
