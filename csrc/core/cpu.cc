#include "core/cpu.h"

#include <sparseinfer.h>
#include <unistd.h>

#include "core/once.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif (defined(__aarch64__) || defined(__ARM_ARCH_7A__)) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace si {

namespace {

#if defined(__x86_64__)

// The register states that the operating system saves: what it does not save, no program may use.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

uint64_t detect() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return 0;
  constexpr uint64_t kAvxStates = 0x06, kAvx512States = 0xe6;
  const uint64_t saved = saved_states();
  if ((saved & kAvxStates) != kAvxStates) return 0;
  uint64_t features = 0;
  const auto add = [&](bool has, uint64_t bits) { features |= has ? bits : 0; };
  add(c & bit_FMA, SI_CPU_FMA);
  add(c & bit_F16C, SI_CPU_F16C);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  const unsigned leaves = a;
  add(b & bit_AVX2, SI_CPU_AVX2);
  add(b & bit_BMI2, SI_CPU_BMI2);
  // Leaf 7.1, whose first register tells of both; older headers do not name its bits.
  constexpr unsigned kAvxVnni = 1u << 4, kAvx512Bf16 = 1u << 5;
  unsigned more = 0, other;
  if (leaves >= 1 && __get_cpuid_count(7, 1, &more, &other, &other, &other) == 0) more = 0;
  add(more & kAvxVnni, SI_CPU_AVX_VNNI);
  if ((saved & kAvx512States) != kAvx512States) return features;
  add(b & bit_AVX512F, SI_CPU_AVX512F);
  add(b & bit_AVX512BW, SI_CPU_AVX512BW);
  add(b & bit_AVX512DQ, SI_CPU_AVX512DQ);
  add(b & bit_AVX512VL, SI_CPU_AVX512VL);
  add(c & bit_AVX512VNNI, SI_CPU_AVX512_VNNI);
  add(more & kAvx512Bf16, SI_CPU_AVX512_BF16);
  return features;
}

#elif defined(__aarch64__)

uint64_t detect() {
  // NEON is part of the base architecture.
  uint64_t features = SI_CPU_NEON;
#if defined(__linux__)
  // The kernel's numbers (asm/hwcap.h), which older headers lack.
  constexpr unsigned long kHalfVectors = 1ul << 10, kDotProduct = 1ul << 20;
  const unsigned long has = getauxval(AT_HWCAP);
  if ((has & kHalfVectors) != 0) features |= SI_CPU_FP16;
  if ((has & kDotProduct) != 0) features |= SI_CPU_DOTPROD;
#endif
  return features;
}

#elif defined(__ARM_ARCH_7A__) && defined(__linux__)

uint64_t detect() {
  // The kernel's numbers (asm/hwcap.h). Fused multiply-adds came with VFPv4: a Cortex-A9 has NEON without them.
  constexpr unsigned long kNeon = 1ul << 12, kVfp4 = 1ul << 16;
  constexpr unsigned long kBoth = kNeon | kVfp4;
  return (getauxval(AT_HWCAP) & kBoth) == kBoth ? SI_CPU_NEON : 0;
}

#else

uint64_t detect() { return 0; }

#endif

int64_t told(int name, int64_t otherwise) {
  const long value = sysconf(name);
  return value > 0 ? value : otherwise;
}

struct Cpu {
  uint64_t features;
  int64_t l1, l2;
  int processors;
};

const Cpu& cpu() {
  static Cpu found;
  static Once once;
  once.run([] {
    found.features = detect();
    found.l1 = int64_t{32} << 10;
    found.l2 = int64_t{1} << 20;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    found.l1 = told(_SC_LEVEL1_DCACHE_SIZE, found.l1);
    found.l2 = told(_SC_LEVEL2_CACHE_SIZE, found.l2);
#endif
    found.processors = static_cast<int>(told(_SC_NPROCESSORS_ONLN, 1));
  });
  return found;
}

}  // namespace

uint64_t cpu_features() { return cpu().features; }
int64_t l1_bytes() { return cpu().l1; }
int64_t l2_bytes() { return cpu().l2; }
int processors() { return cpu().processors; }

}  // namespace si
