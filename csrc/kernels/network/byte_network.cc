#include "kernels/network/byte_network.h"

#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Bytes of a part of an element-wise operation, of which threads take one after another.
constexpr int64_t kPart = 32768;
// About as many bytes are computed in the time of one multiply-add of floats.
constexpr int64_t kBytesAtOnce = 4;
// A float that bytes are made of, or that is made of bytes, takes as long as so many bytes.
constexpr int64_t kFloats = 8;
// And a byte of a table.
constexpr int64_t kLookups = 2;

int threads_for(const TileKernels* isa, int threads, int64_t work) {
  return !has_tiles(isa) ? threads : useful_threads(isa->tuning.threads, threads, work / kBytesAtOnce);
}

// Calls fn(first, count) for parts of [0, count).
template <class Fn>
si_status for_parts(const TileKernels* isa, int threads, int64_t count, int64_t work, const Fn& fn) {
  return parallel_for(threads_for(isa, threads, work), (count + kPart - 1) / kPart,
                      [&](int64_t part) { fn(part * kPart, std::min(kPart, count - part * kPart)); });
}

}  // namespace

si_status quantize_floats(const TileKernels* isa, const ToByte& to, const float* x, uint8_t* y, int64_t count,
                          int threads) {
  return for_parts(isa, threads, count, kFloats * count, [&](int64_t first, int64_t part) {
    if (has_tiles(isa)) return isa->bytes->quantize(x + first, part, to, y + first);
    for (int64_t i = first; i < first + part; ++i) y[i] = quantize(x[i], to);
  });
}

si_status dequantize_bytes(const TileKernels* isa, float scale, int32_t zero_point, const uint8_t* x, float* y,
                           int64_t count, int threads) {
  return for_parts(isa, threads, count, kFloats * count, [&](int64_t first, int64_t part) {
    if (has_tiles(isa)) return isa->byte_network->dequantize(x + first, part, scale, zero_point, y + first);
    for (int64_t i = first; i < first + part; ++i) y[i] = dequantize(x[i], scale, zero_point);
  });
}

si_status add_bytes(const TileKernels* isa, const ByteSum& sum, const uint8_t* a, const uint8_t* b, uint8_t* y,
                    int64_t count, int threads) {
  return for_parts(isa, threads, count, count, [&](int64_t first, int64_t part) {
    if (has_tiles(isa)) return isa->byte_network->add(a + first, b + first, part, sum, y + first);
    for (int64_t i = first; i < first + part; ++i) y[i] = add(a[i], b[i], sum);
  });
}

si_status max_pool_bytes(const TileKernels* isa, const PoolJob& job, const uint8_t* x, uint8_t* y, int64_t planes,
                         int threads) {
  const int64_t work = planes * job.oh * job.ow * (job.kernel[0] + job.kernel[1]);
  return parallel_for(threads_for(isa, threads, work), planes, [&](int64_t plane) -> si_status {
    const uint8_t* from = x + plane * job.h * job.w;
    uint8_t* const to = y + plane * job.oh * job.ow;
    uint8_t* lines = nullptr;
    if (has_tiles(isa)) SI_TRY(thread_scratch(Scratch::kInput, 3 * kPoolLines * pool_line_floats(job), &lines));
    if (measures_scratch()) return SI_OK;
    if (!has_tiles(isa)) {
      scalar_max_pool_bytes(job, from, to);
      return SI_OK;
    }
    isa->byte_network->max_pool(job, from, lines, to);
    return SI_OK;
  });
}

si_status average_bytes(const TileKernels* isa, const si_quantization& q, const uint8_t* x, uint8_t* y, int64_t planes,
                        int64_t pixels, int threads) {
  constexpr int64_t kPlanes = 256;  // of a part
  const ToByte to = y_to_byte(q, SI_ACT_NONE);
  const float scale = q.x_scale / static_cast<float>(pixels);
  const auto zero = static_cast<int32_t>(pixels * q.x_zero_point);
  return parallel_for(threads_for(isa, threads, planes * pixels), (planes + kPlanes - 1) / kPlanes, [&](int64_t part) {
    for (int64_t plane = part * kPlanes; plane < std::min(planes, (part + 1) * kPlanes); ++plane) {
      const uint8_t* from = x + plane * pixels;
      int32_t sum = 0;
      if (has_tiles(isa))
        sum = isa->byte_network->sum(from, pixels);
      else
        for (int64_t i = 0; i < pixels; ++i) sum += from[i];
      y[plane] = quantize(static_cast<float>(sum - zero) * scale, to);
    }
  });
}

si_status lookup_bytes(const TileKernels* isa, const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count,
                       int threads) {
  return for_parts(isa, threads, count, kLookups * count, [&](int64_t first, int64_t part) {
    if (isa != nullptr) return isa->byte_network->lookup(table, x + first, part, y + first);
    for (int64_t i = first; i < first + part; ++i) y[i] = table[x[i]];
  });
}

si_status average_pool_bytes(const TileKernels* isa, const PoolJob& job, const si_quantization& q, const uint8_t* x,
                             uint8_t* y, int64_t planes, int threads) {
  if (measures_scratch()) return SI_OK;
  const ToByte to = y_to_byte(q, SI_ACT_NONE);
  const int64_t work = planes * job.oh * job.ow * job.kernel[0] * job.kernel[1];
  return parallel_for(threads_for(isa, threads, work), planes, [&](int64_t plane) {
    const uint8_t* const from = x + plane * job.h * job.w;
    for (int64_t r = 0; r < job.oh; ++r) {
      const int64_t top = r * job.stride[0] - job.padding[0];
      const int64_t first_row = std::max<int64_t>(top, 0), last_row = std::min(top + job.kernel[0], job.h);
      for (int64_t c = 0; c < job.ow; ++c) {
        const int64_t left = c * job.stride[1] - job.padding[1];
        const int64_t first = std::max<int64_t>(left, 0), last = std::min(left + job.kernel[1], job.w);
        int32_t sum = 0;
        for (int64_t row = first_row; row < last_row; ++row)
          for (int64_t column = first; column < last; ++column) sum += from[row * job.w + column];
        const int64_t covered = (last_row - first_row) * (last - first);
        const auto whole = static_cast<float>(sum - static_cast<int32_t>(covered * q.x_zero_point));
        y[(plane * job.oh + r) * job.ow + c] =
            quantize(whole * (q.x_scale / static_cast<float>(pool_divisor(job, r, c))), to);
      }
    }
  });
}

}  // namespace si
