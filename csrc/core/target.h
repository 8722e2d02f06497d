// The machine that a choice is made for, as a value: what is packed follows from it, and not from who packs.
#pragma once

#include <sparseinfer.h>

#include <cstddef>

#include "core/isa.h"

namespace si {

// The machine that runs this. SPARSEINFER_ISA, which limits the kernels of one process, does not change it.
const si_target& host_target();

size_t target_count();                     // the host among them
const si_target& target_at(size_t index);  // index < target_count(); 0 is the host
// Null where no target has the name.
const si_target* target_named(const char* name);

inline bool target_runs(const si_target& target, Isa isa) { return (isa_features(isa) & ~target.features) == 0; }

}  // namespace si
