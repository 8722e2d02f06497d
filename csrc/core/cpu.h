// What the CPU that runs this has.
#pragma once

#include <cstdint>

namespace si {

// The bits SI_CPU_... that the CPU and the operating system offer. Found once, at first use.
uint64_t cpu_features();

// Bytes of the nearest cache, and of the one that a core has to itself beside it: 32 KiB and 1 MiB where the system
// does not tell.
int64_t l1_bytes();
int64_t l2_bytes();

// Processors that are online, at least 1.
int processors();

}  // namespace si
