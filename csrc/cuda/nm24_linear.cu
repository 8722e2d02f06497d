// y[N, M] = act(x[N, K] W[M, K]^T + bias) on the sparse tensor cores: W 2:4 in float16 or bfloat16, N = 1 to 64.
//
// A decode is bound by reading W once. W is packed (LAYOUT.md) in the order in which the lanes of a warp need it,
// values and metadata in one stream: a warp copies 16 bytes a lane from memory to registers and multiplies, with no
// shared memory, shuffle or unpacking between; 1.125 bytes a weight against dense's 2. Rows of W are the M of
// mma.sp.m16n8k32, so that a few tokens pad only its side of 8.
//
// A warp owns 32 rows (two MMA tiles, whose metadata share a register) and takes chunks of 128 columns. A block of 8
// warps is ROW_WARPS x K_WARPS of them, and blockIdx.y cuts K again where rows alone would not fill the device. x comes
// through shared memory, double-buffered by cp.async, and becomes B fragments by ldmatrix. The sums of K_WARPS meet in
// shared memory, those of blocks in the workspace, where the last warp to arrive adds all of them in the order of the
// splits: which one is last changes nothing, so a result is the same at every call. There are no float atomics.
//
// x has unit stride along K and any pitch; y is contiguous and aliases nothing. The bytes of the stream are values and
// 2-bit indices only, so no address depends on them.
//
// Sources: PTX ISA, "mma.sp" and "Matrix fragments for sparse mma.m16n8k32"; Mishra et al., "Accelerating Sparse Deep
// Neural Networks", 2021. Weights straight to registers in fragment order: Frantar et al., "MARLIN", 2024.
//
// Compiled and never run on a GPU so far: sparseinfer.cuda keeps its row disabled.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/instructions.cuh"

namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kTokens = 8;        // N of the MMA
constexpr int kMaxTokens = 64;    // of a call
constexpr int kRows = 32;         // of a warp
constexpr int kChunk = 128;       // columns of a unit of the stream
constexpr int kSteps = 4;         // MMAs along K in a chunk
constexpr int kUnit = 9 * kWarp;  // 16-byte vectors of a unit: 8 a lane of values, 1 of metadata
constexpr int kVector = 8;        // elements in 16 bytes
constexpr int kMaxColumns = 1 << 30;

enum Activation { kNone, kRelu, kRelu6, kGelu, kGeluTanh, kSilu, kSigmoid, kTanh, kActivations };
enum Status { kOk, kInvalid = -1 };  // a positive status is a cudaError_t

struct Args {
  const uint4* stream;
  const uint16_t* x;
  const uint16_t* bias;
  uint16_t* y;
  uint32_t* tickets;  // one for each 32 rows; zero between calls
  float* partials;    // [row tiles][splits][accumulators of a lane][32]
  int m, n, k;
  int64_t x_pitch;
  int chunks, row_tiles, splits, chunks_per_split, activation;
  bool aligned;  // every row of x starts at a multiple of 16 bytes
};

__device__ __forceinline__ float sigmoid(float y) {
  const float e = expf(-fabsf(y));
  return (y < 0 ? e : 1.0f) / (1.0f + e);
}

// Comparisons are written so that NaN passes through.
__device__ float activate(float y, int activation) {
  switch (activation) {
    case kRelu:
      return y < 0 ? 0.0f : y;
    case kRelu6:
      return y < 0 ? 0.0f : y > 6 ? 6.0f : y;
    case kGelu:
      return 0.5f * y * (1.0f + erff(y * 0.707106781186547524f));
    case kGeluTanh:
      return y * sigmoid(1.59576912160573071f * (y + 0.044715f * y * y * y));
    case kSilu:
      return y * sigmoid(y);
    case kSigmoid:
      return sigmoid(y);
    case kTanh:
      return tanhf(y);
    default:
      return y;
  }
}

// Blocks on a multiprocessor: what the registers of the accumulators leave room for.
constexpr int resident_blocks(int n_tiles) { return n_tiles <= 2 ? 2 : 1; }

// N_TILES: tiles of 8 tokens. The 8 warps of a block are ROW_WARPS x K_WARPS.
template <class T, int N_TILES, int ROW_WARPS, int K_WARPS>
struct Kernel {
  static_assert(ROW_WARPS * K_WARPS * kWarp == kThreads);
  static constexpr int kStageColumns = kChunk * K_WARPS;
  static constexpr int kPitch = kStageColumns + kVector;  // the 16 bytes more spread ldmatrix's 8 rows over all banks
  static constexpr int kStage = N_TILES * kTokens * kPitch;
  static constexpr int kSums = 2 * N_TILES * 4;  // accumulators of a lane
  static constexpr int kSharedBytes = 2 * kStage * int(sizeof(uint16_t));
  static_assert((K_WARPS - 1) * ROW_WARPS * kSums * kWarp * int(sizeof(float)) <= kSharedBytes);

  // Brings columns [first, first + kStageColumns) of all tokens to `stage`, zeros past K and past N.
  static __device__ __forceinline__ void stage_x(const Args& args, uint16_t* stage, int first) {
    constexpr int kVectors = kStageColumns / kVector;
#pragma unroll
    for (int i = 0; i < N_TILES * kTokens * kVectors / kThreads; ++i) {
      const int at = i * kThreads + int(threadIdx.x);
      const int token = at / kVectors, column = first + at % kVectors * kVector;
      uint16_t* to = stage + token * kPitch + at % kVectors * kVector;
      const int count = token < args.n ? max(0, min(kVector, args.k - column)) : 0;
      const uint16_t* from = args.x + (count ? token * args.x_pitch + column : 0);
      if (args.aligned) {
        copy_async(shared_address(to), from, count * int(sizeof(uint16_t)));
      } else {
#pragma unroll
        for (int j = 0; j < kVector; ++j) to[j] = j < count ? __ldg(from + j) : uint16_t(0);
      }
    }
    end_copies();
  }

  struct Unit {
    uint4 values[2 * kSteps];  // [step][tile]
    uint4 metadata;            // one word a step
  };

  static __device__ __forceinline__ void load(Unit& unit, const uint4* at) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) unit.values[i] = load_once(at + i * kWarp);
    unit.metadata = load_once(at + 2 * kSteps * kWarp);
  }

  static __device__ __forceinline__ void multiply(float (&sums)[N_TILES][2][4], const Unit& unit, uint32_t b_address) {
    const uint32_t metadata[kSteps] = {unit.metadata.x, unit.metadata.y, unit.metadata.z, unit.metadata.w};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int tile = 0; tile < N_TILES; ++tile) {
        const int offset = (tile * kTokens * kPitch + step * kWarp) * int(sizeof(uint16_t));
        const uint4 b = load_matrices(b_address + offset);
        mma<T, 0>(sums[tile][0], unit.values[2 * step], b, metadata[step]);
        mma<T, 1>(sums[tile][1], unit.values[2 * step + 1], b, metadata[step]);
      }
    }
  }

  static __device__ __forceinline__ void store(const Args& args, const float (&sums)[N_TILES][2][4], int row_tile) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 4; ++half) {  // MMA tile, then its rows 0-7 or 8-15
      const int row = row_tile * kRows + half * 8 + lane / 4;
      if (row >= args.m) continue;
      const float bias = args.bias ? widen<T>(args.bias[row]) : 0.0f;
#pragma unroll
      for (int tile = 0; tile < N_TILES; ++tile) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int token = tile * kTokens + lane % 4 * 2 + j;
          const float sum = sums[tile][half / 2][half % 2 * 2 + j] + bias;
          if (token < args.n) args.y[int64_t(token) * args.m + row] = narrow<T>(activate(sum, args.activation));
        }
      }
    }
  }

  // Leaves in warps of k_warp 0 the sums over all K warps, added in their order.
  static __device__ __forceinline__ void add_k_warps(float (&sums)[N_TILES][2][4], float* shared, int row_warp,
                                                     int k_warp) {
    const int lane = threadIdx.x % kWarp;
    float* flat = &sums[0][0][0];
    if (k_warp > 0) {
#pragma unroll
      for (int i = 0; i < kSums; ++i)
        shared[(((k_warp - 1) * ROW_WARPS + row_warp) * kSums + i) * kWarp + lane] = flat[i];
    }
    __syncthreads();
    if (k_warp > 0) return;
#pragma unroll
    for (int other = 0; other < K_WARPS - 1; ++other) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) flat[i] += shared[((other * ROW_WARPS + row_warp) * kSums + i) * kWarp + lane];
    }
  }

  // Whether this warp came last; then `sums` are those of all splits, added in their order.
  static __device__ __forceinline__ bool add_splits(const Args& args, float (&sums)[N_TILES][2][4], int row_tile) {
    const int lane = threadIdx.x % kWarp;
    float* flat = &sums[0][0][0];
    float* tile = args.partials + int64_t(row_tile) * args.splits * kSums * kWarp + lane;
#pragma unroll
    for (int i = 0; i < kSums; ++i) __stcg(tile + (blockIdx.y * kSums + i) * kWarp, flat[i]);
    __threadfence();
    __syncwarp();
    uint32_t ticket = 0;
    if (lane == 0) ticket = atomicAdd(args.tickets + row_tile, 1u);
    if (__shfl_sync(0xffffffffu, ticket, 0) != uint32_t(args.splits - 1)) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < kSums; ++i) flat[i] = 0.0f;
    for (int split = 0; split < args.splits; ++split) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) flat[i] += __ldcg(tile + (split * kSums + i) * kWarp);
    }
    if (lane == 0) args.tickets[row_tile] = 0;
    return true;
  }

  static __device__ __forceinline__ void run(const Args& args, uint16_t* shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int row_warp = warp % ROW_WARPS, k_warp = warp / ROW_WARPS;
    const int row_tile = blockIdx.x * ROW_WARPS + row_warp;
    const int begin = blockIdx.y * args.chunks_per_split;
    const int end = row_tile < args.row_tiles ? min(args.chunks, begin + args.chunks_per_split) : 0;
    const int stages = (min(args.chunks, begin + args.chunks_per_split) - begin + K_WARPS - 1) / K_WARPS;
    const uint4* stream = args.stream + int64_t(row_tile) * args.chunks * kUnit + lane;

    float sums[N_TILES][2][4] = {};
    Unit units[2];
    // ldmatrix: lane l gives the address of row l % 8 of matrix l / 8, of 8 tokens by 8 columns.
    const uint32_t b_address = shared_address(shared + lane % 8 * kPitch + lane / 8 * kVector + k_warp * kChunk);

    if (stages > 0) stage_x(args, shared, begin * kChunk);
    if (begin + k_warp < end) load(units[0], stream + int64_t(begin + k_warp) * kUnit);
    // Two stages an iteration, so that which buffer is which is known when compiling.
    for (int first = 0; first < stages; first += 2) {
#pragma unroll
      for (int parity = 0; parity < 2; ++parity) {
        const int stage = first + parity;
        if (stage >= stages) break;
        const int chunk = begin + stage * K_WARPS + k_warp;
        if (stage + 1 < stages) {
          stage_x(args, shared + (1 - parity) * kStage, (begin + (stage + 1) * K_WARPS) * kChunk);
          if (chunk + K_WARPS < end) load(units[1 - parity], stream + int64_t(chunk + K_WARPS) * kUnit);
          wait_copies<1>();
        } else {
          wait_copies<0>();
        }
        __syncthreads();
        if (chunk < end) multiply(sums, units[parity], b_address + parity * kStage * int(sizeof(uint16_t)));
        __syncthreads();
      }
    }

    if constexpr (K_WARPS > 1) add_k_warps(sums, reinterpret_cast<float*>(shared), row_warp, k_warp);
    if (k_warp > 0 || row_tile >= args.row_tiles) return;
    if (args.splits == 1 || add_splits(args, sums, row_tile)) store(args, sums, row_tile);
  }
};

template <class T, int N_TILES, int ROW_WARPS, int K_WARPS>
__global__ void __launch_bounds__(kThreads, resident_blocks(N_TILES)) nm24_linear(const Args args) {
  Kernel<T, N_TILES, ROW_WARPS, K_WARPS>::run(args, dynamic_shared());
}

// How a call is cut; everything follows from the shape and the device's multiprocessors.
struct Plan {
  int n_tiles, row_warps, k_warps, row_tiles, chunks, splits, chunks_per_split;
  size_t ticket_bytes, bytes;
};

int divide_up(int a, int b) { return a / b + (a % b != 0); }

bool make_plan(Plan& plan, int m, int n, int k, int multiprocessors) {
  if (m < 1 || k < 1 || k > kMaxColumns || n < 1 || n > kMaxTokens || multiprocessors < 1) return false;
  plan.n_tiles = n <= 8 ? 1 : n <= 16 ? 2 : n <= 32 ? 4 : 8;
  // Many tokens: more rows share a block's x. Few: more of K meets in shared memory and not in the workspace.
  plan.row_warps = plan.n_tiles <= 2 ? 2 : 4;
  plan.k_warps = kThreads / kWarp / plan.row_warps;
  plan.row_tiles = divide_up(m, kRows);
  plan.chunks = divide_up(k, kChunk);
  const int blocks = divide_up(plan.row_tiles, plan.row_warps);
  const int resident = multiprocessors * resident_blocks(plan.n_tiles);
  const int stages = divide_up(plan.chunks, plan.k_warps);
  // The fewest splits that leave the last wave of blocks about as full as any number does.
  int wanted = 1;
  double fullest = 0;
  for (int splits = 1; splits <= std::min(stages, std::max(8, resident / blocks)); ++splits) {
    const double waves = double(blocks) * splits / resident;
    const double full = waves / std::ceil(waves);
    if (full > fullest + 0.05) {
      fullest = full;
      wanted = splits;
    }
  }
  plan.chunks_per_split = divide_up(stages, wanted) * plan.k_warps;
  plan.splits = divide_up(plan.chunks, plan.chunks_per_split);
  plan.ticket_bytes = (size_t(plan.row_tiles) * sizeof(uint32_t) + 255) / 256 * 256;
  const size_t sums = size_t(2 * plan.n_tiles * 4) * kWarp;
  plan.bytes = plan.splits == 1 ? 0 : plan.ticket_bytes + size_t(plan.row_tiles) * plan.splits * sums * sizeof(float);
  return true;
}

template <class T, int N_TILES, int ROW_WARPS, int K_WARPS>
int launch(const Args& args, const Plan& plan, cudaStream_t stream) {
  constexpr int kShared = Kernel<T, N_TILES, ROW_WARPS, K_WARPS>::kSharedBytes;
  const auto kernel = nm24_linear<T, N_TILES, ROW_WARPS, K_WARPS>;
  if constexpr (kShared > 48 * 1024) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    if (status != cudaSuccess) return status;
  }
  const dim3 grid(divide_up(plan.row_tiles, ROW_WARPS), plan.splits);
  void* arguments[] = {const_cast<Args*>(&args)};
  return cudaLaunchKernel(kernel, grid, dim3(kThreads), arguments, kShared, stream);
}

template <class T>
int launch_for(const Args& args, const Plan& plan, cudaStream_t stream) {
  switch (plan.n_tiles) {
    case 1:
      return launch<T, 1, 2, 4>(args, plan, stream);
    case 2:
      return launch<T, 2, 2, 4>(args, plan, stream);
    case 4:
      return launch<T, 4, 4, 2>(args, plan, stream);
    default:
      return launch<T, 8, 4, 2>(args, plan, stream);
  }
}

}  // namespace

#define SI_CUDA_API extern "C" __attribute__((visibility("default")))

// Raised with every change of the functions below or of LAYOUT.md.
SI_CUDA_API int si_cuda_version() { return 1; }

SI_CUDA_API const char* si_cuda_error_string(int status) {
  return status == kInvalid ? "invalid argument" : cudaGetErrorString(cudaError_t(status));
}

// Bytes of the workspace of a call, 0 where it needs none; -1 where the arguments are out of range. `splits`, where not
// null, gets the blocks that share a row. Needs no device.
SI_CUDA_API int64_t si_cuda_nm24_workspace(int m, int n, int k, int multiprocessors, int* splits) {
  Plan plan;
  if (!make_plan(plan, m, n, k, multiprocessors)) return kInvalid;
  if (splits) *splits = plan.splits;
  return int64_t(plan.bytes);
}

// Launches on `stream` of the current device and returns at once: 0, or a status for si_cuda_error_string. Allocates
// nothing and synchronises nothing, so a CUDA graph can capture it.
//
// value_type: 1 float16, 2 bfloat16, of the weights, x, bias and y. activation: its place in
// sparseinfer.activations.ACTIVATIONS. weights: the stream, at a multiple of 16 bytes. x: [n][k] of pitch x_pitch
// elements. bias: [m] or null. y: [n][m]. workspace: at a multiple of 256 bytes, its first 4 bytes for each 32 rows
// zero before the first call and left zero by each; null where none is needed. Calls that may run at the same time, and
// layers of different m, need workspaces of their own.
SI_CUDA_API int si_cuda_nm24_linear(int value_type, const void* weights, const void* x, int64_t x_pitch,
                                    const void* bias, void* y, int m, int n, int k, int activation, void* workspace,
                                    int64_t workspace_bytes, int multiprocessors, void* stream) {
  Plan plan;
  if (!make_plan(plan, m, n, k, multiprocessors) || !weights || !x || !y || (n > 1 && x_pitch < k) || activation < 0 ||
      activation >= kActivations || (value_type != 1 && value_type != 2) || reinterpret_cast<uintptr_t>(weights) % 16 ||
      workspace_bytes < int64_t(plan.bytes) ||
      (plan.bytes && (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256))) {
    return kInvalid;
  }
  Args args = {};
  args.stream = static_cast<const uint4*>(weights);
  args.x = static_cast<const uint16_t*>(x);
  args.bias = static_cast<const uint16_t*>(bias);
  args.y = static_cast<uint16_t*>(y);
  if (plan.bytes) {
    args.tickets = static_cast<uint32_t*>(workspace);
    args.partials = reinterpret_cast<float*>(static_cast<char*>(workspace) + plan.ticket_bytes);
  }
  args.m = m;
  args.n = n;
  args.k = k;
  args.x_pitch = x_pitch;
  args.chunks = plan.chunks;
  args.row_tiles = plan.row_tiles;
  args.splits = plan.splits;
  args.chunks_per_split = plan.chunks_per_split;
  args.activation = activation;
  args.aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 && (n == 1 || x_pitch % kVector == 0);
  const auto on = static_cast<cudaStream_t>(stream);
  return value_type == 1 ? launch_for<__half>(args, plan, on) : launch_for<__nv_bfloat16>(args, plan, on);
}
