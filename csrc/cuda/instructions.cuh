// The instructions that C++ has no word for, one function each, and the conversions by value type.
//
// Apart, so that the kernels can be run without a GPU: testing/cuda has a file of this name that does the same on the
// CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace {

template <class T>
__device__ __forceinline__ float widen(uint16_t bits) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(__ushort_as_half(bits));
  else
    return __bfloat162float(__ushort_as_bfloat16(bits));
}

template <class T>
__device__ __forceinline__ uint16_t narrow(float value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half_as_ushort(__float2half_rn(value));
  else
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// PTX ISA 8.5 (CUDA 12.5) brought the form for indices in increasing order; on sm_90 the older one is slower.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define SI_MMA_SP "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define SI_MMA_SP "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif
#define SI_MMA(TYPE)                                                                                                  \
  asm volatile(SI_MMA_SP TYPE "." TYPE ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
               : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata),       \
                 "n"(SELECTOR))

// SELECTOR: 0 takes the metadata of lanes 0 and 1 of each four, 1 that of lanes 2 and 3.
template <class T, int SELECTOR>
__device__ __forceinline__ void mma(float (&d)[4], const uint4& a, const uint4& b, uint32_t metadata) {
  if constexpr (std::is_same_v<T, __half>)
    SI_MMA("f16");
  else
    SI_MMA("bf16");
}

// Read once by one warp: nothing is gained by keeping it in L1.
__device__ __forceinline__ uint4 load_once(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__device__ __forceinline__ uint4 load_matrices(uint32_t address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Copies the first `bytes` of 16 and zeros the rest; of 0 bytes nothing is read.
__device__ __forceinline__ void copy_async(uint32_t address, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for this thread's copies of all groups but the last PENDING.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* at) { return uint32_t(__cvta_generic_to_shared(at)); }

// The block's shared memory, of the size that the launch gave.
__device__ __forceinline__ uint16_t* dynamic_shared() {
  extern __shared__ __align__(16) uint16_t shared[];
  return shared;
}

}  // namespace
