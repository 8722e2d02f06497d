// What networks of bytes compute between their packed weights, over threads: each gives the same bytes on every
// instruction set. isa null: the scalar loops. Arguments have been checked.
#pragma once

#include "kernels/quantized.h"
#include "kernels/tile/tile.h"

namespace si {

// Bytes whose sum stays in int32.
constexpr int64_t kMostByteSums = INT32_MAX / 255;

// y = rint(x / scale) + zero point, as ToByte says.
[[nodiscard]] si_status quantize_floats(const TileKernels* isa, const ToByte& to, const float* x, uint8_t* y,
                                        int64_t count, int threads);
// y = (x - zero point) scale.
[[nodiscard]] si_status dequantize_bytes(const TileKernels* isa, float scale, int32_t zero_point, const uint8_t* x,
                                         float* y, int64_t count, int threads);
// y = act(a + b), as ByteSum says; y may be a or b.
[[nodiscard]] si_status add_bytes(const TileKernels* isa, const ByteSum& sum, const uint8_t* a, const uint8_t* b,
                                  uint8_t* y, int64_t count, int threads);
// The maxima of each of `planes` channels, of which `job` describes one but for its pointers. Bytes outside of x are
// none.
[[nodiscard]] si_status max_pool_bytes(const TileKernels* isa, const PoolJob& job, const uint8_t* x, uint8_t* y,
                                       int64_t planes, int threads);
// Of a table of bytes.
constexpr int64_t kBytesInTable = 256;

// y = table[x]; y may be x.
[[nodiscard]] si_status lookup_bytes(const TileKernels* isa, const uint8_t* table, const uint8_t* x, uint8_t* y,
                                     int64_t count, int threads);
// The mean of each window, of those of its bytes that are in x: (sum - count zero point) (scale of x / divisor),
// requantised.
[[nodiscard]] si_status average_pool_bytes(const TileKernels* isa, const PoolJob& job, const si_quantization& q,
                                           const uint8_t* x, uint8_t* y, int64_t planes, int threads);
// The mean of each of `planes` channels of `pixels` bytes: (sum - pixels zero point) (scale of x / pixels),
// requantised.
[[nodiscard]] si_status average_bytes(const TileKernels* isa, const si_quantization& q, const uint8_t* x, uint8_t* y,
                                      int64_t planes, int64_t pixels, int threads);

}  // namespace si
