// The instruction sets of isas.inc: which of them this library has, and which run here.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

#include "core/chosen.h"

// SI_FAMILY_X(yes, no) is `yes` where the library is built for that family of processors.
#if defined(__x86_64__)
#define SI_FAMILY_X86(yes, no) yes
#else
#define SI_FAMILY_X86(yes, no) no
#endif
#if defined(__aarch64__)
#define SI_FAMILY_ARM64(yes, no) yes
#else
#define SI_FAMILY_ARM64(yes, no) no
#endif
// 64-bit ARM, and 32-bit ARM of version 7.
#if defined(__aarch64__) || defined(__ARM_ARCH_7A__)
#define SI_FAMILY_ARM(yes, no) yes
#else
#define SI_FAMILY_ARM(yes, no) no
#endif
#define SI_FAMILY_ANY(yes, no) yes

namespace si {

enum class Isa {
#define SI_ISA(name, family, features, words) name,
#include "core/isas.inc"
#undef SI_ISA
  kCount
};
constexpr size_t kIsaCount = static_cast<size_t>(Isa::kCount);

// Which of them have kernels in this library.
constexpr bool kIsaBuilt[] = {
#define SI_ISA(name, family, features, words) SI_FAMILY_##family(SI_HAS(name), false),
#include "core/isas.inc"
#undef SI_ISA
};
// Whether there are others than the scalar ones. Where the scalar ones are left out, every machine runs some other.
constexpr bool kTilesBuilt = [] {
  for (size_t i = 0; i < kIsaCount; ++i)
    if (i != static_cast<size_t>(Isa::scalar) && kIsaBuilt[i]) return true;
  return false;
}();
constexpr bool kScalarBuilt = kIsaBuilt[static_cast<size_t>(Isa::scalar)];
static_assert(kTilesBuilt || kScalarBuilt, "a library has kernels of some instruction set");

struct IsaState {
  const char* name;
  uint64_t features;  // what it needs, of the bits SI_CPU_...
  const char* words;  // what it needs, for people
  bool compiled;
  bool supported;    // runs here and is allowed
  char reason[160];  // why not; "" if it is
};

// Decided once, at first use. SPARSEINFER_ISA names an instruction set: none runs that needs a feature which that one
// does not.
const IsaState& isa_state(Isa isa);

// What an instruction set needs.
constexpr uint64_t isa_features(Isa isa) {
  constexpr uint64_t all[] = {
#define SI_ISA(name, family, features, words) features,
#include "core/isas.inc"
#undef SI_ISA
  };
  return all[static_cast<size_t>(isa)];
}

}  // namespace si
