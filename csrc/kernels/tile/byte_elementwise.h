// Bytes of networks element by element, and pooled: see byte_network.h. V is a vector type of the tiles of int8
// weights.
//
//   dequantize  y = (x - zero point) scale
//   add         y = act(a + b), requantised; y may be a or b
//   max_pool    rows of a window first, to one row between paddings, which the columns are then taken from.
//   Its
//               loops are plain: compilers make vectors of maxima of bytes.
//   lookup      y = table[x], by 16 shuffles; y may be x
//   sum         exact in int32
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/byte_network.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

template <class V>
void dequantize_all(const uint8_t* x, int64_t count, float scale, int32_t zero_point, float* y) {
  const auto zero = V::broadcast_int(zero_point);
  const auto factor = V::broadcast(scale);
  int64_t i = 0;
  for (; i + V::kInts <= count; i += V::kInts)
    V::store_floats(y + i, V::mul(V::to_float(V::sub(V::widen(x + i), zero)), factor));
  for (; i < count; ++i) y[i] = dequantize(x[i], scale, zero_point);
}

template <class V>
void add_all(const uint8_t* a, const uint8_t* b, int64_t count, const ByteSum& given, uint8_t* y) {
  const ByteSum sum = given;
  const bool below = saturates(sum.to);
  const auto a_zero = V::broadcast_int(sum.a_zero_point), b_zero = V::broadcast_int(sum.b_zero_point);
  const auto a_scale = V::broadcast(sum.a_scale), b_scale = V::broadcast(sum.b_scale);
  int64_t i = 0;
  for (; i + V::kBytes <= count; i += V::kBytes) {
    typename V::Int v[4];
    SI_UNROLL for (int j = 0; j < 4; ++j) {
      const auto left = V::to_float(V::sub(V::widen(a + i + j * V::kInts), a_zero));
      const auto right = V::to_float(V::sub(V::widen(b + i + j * V::kInts), b_zero));
      const auto both = V::fma(left, a_scale, V::mul(right, b_scale));
      v[j] = below ? V::round_below(both, sum.to) : V::round_to_byte(both, sum.to);
    }
    V::store(y + i, V::natural_bytes(V::pack_bytes(v, sum.to.zero_point)));
  }
  for (; i < count; ++i) y[i] = add(a[i], b[i], sum);
}

SI_INLINE void take_maxima(const uint8_t* __restrict line, int64_t count, uint8_t* __restrict y) {
  for (int64_t c = 0; c < count; ++c) y[c] = line[c] > y[c] ? line[c] : y[c];
}

SI_INLINE void split_in_two(const uint8_t* __restrict line, int64_t count, uint8_t* __restrict even,
                            uint8_t* __restrict odd) {
  for (int64_t c = 0; c < count; ++c) {
    even[c] = line[2 * c];
    odd[c] = line[2 * c + 1];
  }
}

template <class V>
void max_pool_bytes(const PoolJob& given, const uint8_t* x, uint8_t* lines, uint8_t* y) {
  const PoolJob job = given;
  const int64_t stride = job.stride[1], kernel = job.kernel[1], length = pool_line_floats(job);
  std::memset(lines, 0, static_cast<size_t>(3 * kPoolLines * length));
  // Some rows of y at a time, step by step: what was just stored is not loaded at once.
  for (int64_t from = 0; from < job.oh; from += kPoolLines) {
    const int64_t rows = from + kPoolLines < job.oh ? kPoolLines : job.oh - from;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t top = (from + r) * job.stride[0] - job.padding[0];
      std::memcpy(lines + 3 * r * length + job.padding[1], x + (top > 0 ? top : 0) * job.w, static_cast<size_t>(job.w));
    }
    for (int64_t i = 1; i < job.kernel[0]; ++i)
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t top = (from + r) * job.stride[0] - job.padding[0];
        const int64_t row = (top > 0 ? top : 0) + i;
        if (row < top + job.kernel[0] && row < job.h)
          take_maxima(x + row * job.w, job.w, lines + 3 * r * length + job.padding[1]);
      }
    // Columns of each residue by the stride, one after another.
    if (stride == 2)
      for (int64_t r = 0; r < rows; ++r) {
        uint8_t* const line = lines + 3 * r * length;
        split_in_two(line, job.ow + kernel / 2, line + length, line + 2 * length);
      }
    for (int64_t r = 0; r < rows; ++r, y += job.ow) {
      const uint8_t* line = lines + 3 * r * length;
      if (stride <= 2) {
        const auto column = [&](int64_t j) { return stride == 1 ? line + j : line + (1 + j % 2) * length + j / 2; };
        std::memcpy(y, column(0), static_cast<size_t>(job.ow));
        for (int64_t j = 1; j < kernel; ++j) take_maxima(column(j), job.ow, y);
        continue;
      }
      for (int64_t c = 0; c < job.ow; ++c) {
        y[c] = line[c * stride];
        for (int64_t j = 1; j < kernel; ++j)
          if (line[c * stride + j] > y[c]) y[c] = line[c * stride + j];
      }
    }
  }
}

template <class V>
void lookup_all(const uint8_t* given, const uint8_t* x, int64_t count, uint8_t* y) {
  // A copy: a store of bytes may change whatever else is in memory, so that it would be read again.
  uint8_t table[256];
  std::memcpy(table, given, sizeof table);
  int64_t i = 0;
  for (; i + V::kBytes <= count; i += V::kBytes) {
    const auto bytes = V::load(x + i);
    auto found = V::shuffle_below_16(V::lanes_of(table), bytes);
    // Of each row of 16 what is there, and zeros.
    SI_UNROLL for (int row = 1; row < 16; ++row) {
      const auto upper = static_cast<int32_t>(0x10101010u * static_cast<uint32_t>(row));
      const auto in_row = V::exclusive_or(bytes, V::broadcast_int(upper));
      found = V::either(found, V::shuffle_below_16(V::lanes_of(table + 16 * row), in_row));
    }
    V::store(y + i, found);
  }
  for (; i < count; ++i) y[i] = table[x[i]];
}

template <class V>
int32_t sum_bytes(const uint8_t* x, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

}  // namespace
}  // namespace si
