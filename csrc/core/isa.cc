#include "core/isa.h"

#include <cstdlib>
#include <cstring>

#include "core/cpu.h"
#include "core/error.h"
#include "core/once.h"

namespace si {

namespace {

template <class... Parts>
void set_reason(IsaState& state, Parts... parts) {
  if constexpr (kMessages) {
    Message message;
    (message.add(parts), ...);
    message.copy_to(state.reason, sizeof state.reason);
  } else {
    state.reason[0] = '-';
  }
}

constexpr bool kOfThisFamily[kIsaCount] = {
#define SI_ISA(name, family, features, words) SI_FAMILY_##family(true, false),
#include "core/isas.inc"
#undef SI_ISA
};

struct IsaLine {
  const char* name;
  uint64_t features;
  const char* words;
};
constexpr IsaLine kIsas[kIsaCount] = {
#define SI_ISA(name, family, features, words) {#name, features, kMessages ? words : ""},
#include "core/isas.inc"
#undef SI_ISA
};
IsaState g_states[kIsaCount];

// Sets whose kernels no machine has run yet, whatever tests have: on where SPARSEINFER_ISA names one, and nowhere else.
constexpr Isa kNotRunYet[] = {Isa::avxvnni};

void decide() {
  const uint64_t here = cpu_features();
  for (size_t i = 0; i < kIsaCount; ++i) {
    IsaState& state = g_states[i];
    state.name = kIsas[i].name;
    state.features = kIsas[i].features;
    state.words = kIsas[i].words;
    state.compiled = kIsaBuilt[i];
    state.supported = state.compiled && (state.features & ~here) == 0;
    if (!state.compiled && kOfThisFamily[i])
      set_reason(state, "not built: this library was configured without ", state.name);
    else if (!state.compiled)
      set_reason(state, "not built: this library is for another processor family than ", state.name);
    else if (!state.supported)
      set_reason(state, "this CPU has no ", state.words);
  }
  // Nothing can be forbidden where nothing else would be left.
  const char* cap = kScalarBuilt ? std::getenv("SPARSEINFER_ISA") : nullptr;
  for (const Isa isa : kNotRunYet) {
    IsaState& state = g_states[static_cast<size_t>(isa)];
    if (!state.supported || (cap != nullptr && std::strcmp(cap, state.name) == 0)) continue;
    set_reason(state, "not yet run on any machine: SPARSEINFER_ISA=", state.name, " turns it on");
    state.supported = false;
  }
  if (cap == nullptr || *cap == '\0') return;
  const IsaState* named = nullptr;
  for (const IsaState& state : g_states)
    if (std::strcmp(cap, state.name) == 0) named = &state;
  const bool known = named != nullptr && named->compiled;
  for (IsaState& state : g_states) {
    // What needs no feature, the scalar kernels, runs anywhere.
    if (!state.supported || state.features == 0 || (known && (state.features & ~named->features) == 0)) continue;
    if (known)
      set_reason(state, "SPARSEINFER_ISA=", cap, " forbids it");
    else
      set_reason(state, "SPARSEINFER_ISA: expected an instruction set of this library, got '", cap, "'");
    state.supported = false;
  }
}

Once g_once;

}  // namespace

const IsaState& isa_state(Isa isa) {
  g_once.run(decide);
  return g_states[static_cast<size_t>(isa)];
}

}  // namespace si
