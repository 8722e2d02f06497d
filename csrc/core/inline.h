// Attributes that the inner kernels lean on.
#pragma once

#include "core/chosen.h"

// Every function of an instruction-set translation unit is in an anonymous namespace or static: an inline function
// compiled for AVX-512 and merged by the linker with one compiled for the baseline would crash older CPUs.
#define SI_INLINE inline __attribute__((always_inline))

// Of a function whose copies would make a small library larger (SPARSEINFER_OPTIMIZE_SIZE).
#if SI_SMALL
#define SI_INLINE_UNLESS_SMALL __attribute__((noinline))
#else
#define SI_INLINE_UNLESS_SMALL SI_INLINE
#endif

#if defined(__clang__)
#define SI_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SI_UNROLL _Pragma("GCC unroll 16")
#endif

// After the parameters of a lambda that holds an inner loop's accumulators: called, it would keep them in memory.
#define SI_INLINE_LAMBDA __attribute__((always_inline))
