// Instruction sets: which are compiled in, which this CPU runs, which SPARSEINFER_ISA allows; and its cache.
#pragma once

#include <cstdint>
#include <string>

namespace si {

enum class Isa { kScalar = 0, kNeon = 1, kAvx2 = 2, kAvx512 = 3 };
constexpr int kIsaCount = 4;

struct IsaState {
  Isa isa;
  const char* name;
  bool compiled;
  bool supported;      // runs here and is allowed
  std::string reason;  // why not
};

// Decided once, at first use. SPARSEINFER_ISA = scalar | neon | avx2 | avx512 caps the choice: nothing wider is used.
const IsaState& isa_state(Isa isa);

// Bytes of the cache that a core has to itself beside the nearest; 1 MiB where the system does not tell.
int64_t l2_bytes();

}  // namespace si
