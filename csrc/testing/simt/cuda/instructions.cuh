// What csrc/cuda/instructions.cuh offers, on the CPU: with -I csrc/testing/simt before -I csrc a kernel becomes plain
// C++.
//
// Blocks run one after the other. A thread of a block is a fiber that runs until it waits for the others of its warp or
// block, so that a missing barrier or a thread that takes another way shows. The tensor core's tables (which lane holds
// which element) are those of the PTX ISA. Products are exact and summed in double, then rounded to float once an
// instruction.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "formats/half.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDACC_VER_MAJOR__ 13

struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_, unsigned y_ = 1) : x(x_), y(y_) {}
};
struct __half {};
struct __nv_bfloat16 {};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
inline const char* cudaGetErrorString(cudaError_t) { return "error"; }
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}

using std::max;
using std::min;

namespace {

struct Barrier {
  int arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};

struct Warp {
  Barrier barrier;
  uint4 a[32], b[32];
  uint32_t word[32];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint4> shared;
  Barrier barrier;
  ucontext_t scheduler;
  unsigned current = 0;
};

Block block;
bool last_block_first = false;

struct Index {
  unsigned x, y;
} blockIdx;

struct ThreadIndex {
  struct X {
    operator unsigned() const { return block.current; }
  } x;
} threadIdx;

void wait(Barrier& barrier, int count) {
  const int generation = barrier.generation;
  if (++barrier.arrived == count) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

Warp& warp() { return block.warps[block.current / 32]; }
int lane_id() { return int(block.current % 32); }

void __syncthreads() { wait(block.barrier, int(block.fibers.size())); }
void __syncwarp() { wait(warp().barrier, 32); }
void __threadfence() {}
void __stcg(float* at, float value) { *at = value; }
float __ldcg(const float* at) { return *at; }
uint16_t __ldg(const uint16_t* at) { return *at; }
uint32_t atomicAdd(uint32_t* at, uint32_t value) { return (*at += value) - value; }

uint32_t __shfl_sync(uint32_t, uint32_t value, int lane) {
  warp().word[lane_id()] = value;
  __syncwarp();
  const uint32_t got = warp().word[lane];
  __syncwarp();
  return got;
}

template <class T>
float widen(uint16_t bits) {
  return std::is_same_v<T, __half> ? si::half_to_float(bits) : si::bfloat16_to_float(bits);
}

template <class T>
uint16_t narrow(float value) {
  return std::is_same_v<T, __half> ? si::float_to_half(value) : si::float_to_bfloat16(value);
}

uint4 load_once(const uint4* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16) std::abort();
  return *at;
}

uint32_t shared_address(const void* at) {
  return uint32_t(static_cast<const char*>(at) - reinterpret_cast<const char*>(block.shared.data()));
}

char* shared_at(uint32_t address, size_t bytes) {
  if (address % 16 || address + bytes > block.shared.size() * sizeof(uint4)) std::abort();
  return reinterpret_cast<char*>(block.shared.data()) + address;
}

uint16_t* dynamic_shared() { return reinterpret_cast<uint16_t*>(block.shared.data()); }

void copy_async(uint32_t address, const void* from, int bytes) {
  if (bytes && reinterpret_cast<uintptr_t>(from) % 16) std::abort();
  char* to = shared_at(address, 16);
  std::memset(to, 0, 16);
  if (bytes) std::memcpy(to, from, size_t(bytes));
}
void end_copies() {}
template <int PENDING>
void wait_copies() {}

uint32_t& word(uint4& v, int i) { return (&v.x)[i]; }
uint16_t half_of(uint4& v, int i, int half) { return uint16_t(word(v, i) >> (16 * half)); }

uint4 load_matrices(uint32_t address) {
  const int lane = lane_id();
  warp().word[lane] = address;
  __syncwarp();
  uint4 v;
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&word(v, i), shared_at(warp().word[8 * i + lane / 4], 16) + lane % 4 * 4, 4);
  }
  __syncwarp();
  return v;
}

template <class T, int SELECTOR>
void mma(float (&d)[4], const uint4& a, const uint4& b, uint32_t metadata) {
  Warp& w = warp();
  const int lane = lane_id();
  w.a[lane] = a;
  w.b[lane] = b;
  w.word[lane] = metadata;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int g = lane / 4, high = i / 2, token = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int group = 0; group < 8; ++group) {
      const uint32_t indices = w.word[4 * g + 2 * SELECTOR + group / 4] >> (16 * high + 4 * (group % 4)) & 15;
      if ((indices & 3) >= indices >> 2) std::abort();  // undefined on the device
      for (int half = 0; half < 2; ++half) {
        const int column = 4 * group + int(indices >> (2 * half) & 3);
        const float value = widen<T>(half_of(w.a[4 * g + group % 4], high + 2 * (group / 4), half));
        sum += double(value) * widen<T>(half_of(w.b[4 * token + column % 8 / 2], column / 8, column % 2));
      }
    }
    d[i] = float(sum);
  }
  __syncwarp();
}

template <class Args>
struct Launch {
  static inline void (*kernel)(Args);
  static inline Args* args;

  static void fiber() {
    kernel(*args);
    block.fibers[block.current].done = true;
  }
};

template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 threads, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  using Plain = std::remove_const_t<Args>;
  Launch<Plain>::kernel = kernel;
  Launch<Plain>::args = static_cast<Plain*>(arguments[0]);
  constexpr size_t kStack = 64 * 1024;
  for (unsigned i = 0; i < grid.x * grid.y; ++i) {
    const unsigned at = last_block_first ? grid.x * grid.y - 1 - i : i;
    blockIdx = {at % grid.x, at / grid.x};
    block.fibers.resize(threads.x);
    block.warps.assign(threads.x / 32, Warp{});
    // What an earlier block left there must not matter: NaN in both types.
    block.shared.assign(shared_bytes / sizeof(uint4), uint4{~0u, ~0u, ~0u, ~0u});
    block.barrier = {};
    for (Fiber& fiber : block.fibers) {
      fiber.done = false;
      fiber.stack.resize(kStack);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &block.scheduler;
      makecontext(&fiber.context, Launch<Plain>::fiber, 0);
    }
    for (bool running = true; running;) {
      running = false;
      for (block.current = 0; block.current < threads.x; ++block.current) {
        Fiber& fiber = block.fibers[block.current];
        if (fiber.done) continue;
        swapcontext(&block.scheduler, &fiber.context);
        running = true;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace

// Runs the blocks of later launches from the last to the first.
extern "C" __attribute__((visibility("default"))) void si_simt_last_block_first(int on) { last_block_first = on != 0; }
