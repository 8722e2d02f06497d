#include "core/target.h"

#include <cstring>

#include "core/cpu.h"
#include "core/once.h"

namespace si {

namespace {

#define SI_TARGET_AVX2 (SI_CPU_AVX2 | SI_CPU_FMA | SI_CPU_F16C | SI_CPU_BMI2)
#define SI_TARGET_AVX512 (SI_TARGET_AVX2 | SI_CPU_AVX512F | SI_CPU_AVX512BW | SI_CPU_AVX512DQ | SI_CPU_AVX512VL)

constexpr si_target kNamed[] = {
#define SI_TARGET(name, features, l1, l2, threads) {sizeof(si_target), name, features, l1, l2, threads},
#include "core/targets.inc"
#undef SI_TARGET
};

}  // namespace

const si_target& host_target() {
  static si_target host;
  static Once once;
  once.run([] { host = {sizeof(si_target), "host", cpu_features(), l1_bytes(), l2_bytes(), processors()}; });
  return host;
}

size_t target_count() { return 1 + sizeof kNamed / sizeof kNamed[0]; }

const si_target& target_at(size_t index) { return index == 0 ? host_target() : kNamed[index - 1]; }

const si_target* target_named(const char* name) {
  for (size_t i = 0; i < target_count(); ++i)
    if (std::strcmp(target_at(i).name, name) == 0) return &target_at(i);
  return nullptr;
}

}  // namespace si
