// The instruction sets of isas.inc: which of them this library has, and which run here.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

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
#define SI_FAMILY_ANY(yes, no) yes

// SI_CHOSEN(name, yes, no) is `no` where SI_WITHOUT_name is defined as 1, which leaves a set of the family out: the
// mark then stands for two arguments, which moves `no` to the third place.
#define SI_MARK_1 ~, ~
#define SI_THIRD(first, second, third, ...) third
#define SI_THIRD_OF(...) SI_THIRD(__VA_ARGS__)
#define SI_CHOSEN_BY(flag, yes, no) SI_THIRD_OF(SI_MARK_##flag, no, yes, ~)
#define SI_CHOSEN_IF(flag, yes, no) SI_CHOSEN_BY(flag, yes, no)
#define SI_CHOSEN(name, yes, no) SI_CHOSEN_IF(SI_WITHOUT_##name, yes, no)

namespace si {

enum class Isa {
#define SI_ISA(name, family, features, words) name,
#include "core/isas.inc"
#undef SI_ISA
  kCount
};
constexpr size_t kIsaCount = static_cast<size_t>(Isa::kCount);

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
