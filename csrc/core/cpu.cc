#include "core/cpu.h"

#include <unistd.h>

#include <array>
#include <cstdlib>

namespace si {

namespace {

#if defined(__x86_64__)
constexpr bool kX86 = true;
bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
constexpr bool kX86 = false;
bool cpu_has_avx2() { return false; }
bool cpu_has_avx512() { return false; }
#endif

#if defined(__aarch64__)
constexpr bool kArm64 = true;  // NEON is part of the base architecture
#else
constexpr bool kArm64 = false;
#endif

// How far a cap reaches: avx2 and neon are the same step of two different ladders.
int step(Isa isa) {
  if (isa == Isa::kScalar) return 0;
  return isa == Isa::kAvx512 ? 2 : 1;
}

std::array<IsaState, kIsaCount> detect() {
  std::array<IsaState, kIsaCount> states{{{Isa::kScalar, "scalar", true, true, ""},
                                          {Isa::kNeon, "neon", kArm64, kArm64, ""},
                                          {Isa::kAvx2, "avx2", kX86, cpu_has_avx2(), ""},
                                          {Isa::kAvx512, "avx512", kX86, cpu_has_avx512(), ""}}};
  for (IsaState& state : states) {
    if (!state.compiled)
      state.reason = std::string("not built: this library is for another processor family than ") + state.name;
    else if (!state.supported)
      state.reason = std::string("this CPU has no ") +
                     (state.isa == Isa::kAvx2 ? "AVX2 with FMA and BMI2" : "AVX-512 F, BW, DQ and VL");
  }
  const char* cap = std::getenv("SPARSEINFER_ISA");
  if (cap == nullptr || *cap == '\0') return states;
  const IsaState* named = nullptr;
  for (const IsaState& state : states)
    if (cap == std::string(state.name)) named = &state;
  for (IsaState& state : states) {
    if (!state.supported || state.isa == Isa::kScalar) continue;
    if (named == nullptr || !named->compiled)
      state.reason = std::string("SPARSEINFER_ISA: expected an instruction set of this library, got '") + cap + "'";
    else if (step(state.isa) > step(named->isa))
      state.reason = std::string("SPARSEINFER_ISA=") + cap + " forbids it";
    else
      continue;
    state.supported = false;
  }
  return states;
}

}  // namespace

const IsaState& isa_state(Isa isa) {
  // Never destroyed: a thread of the host may call a kernel while the process exits.
  static const auto& states = *new std::array<IsaState, kIsaCount>(detect());
  return states[static_cast<size_t>(isa)];
}

int64_t l2_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long told = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (told > 0) return static_cast<int64_t>(told);
#endif
    return int64_t{1} << 20;
  }();
  return bytes;
}

}  // namespace si
