// Depthwise convolution of bytes by int8 weights, of each channel K x K taps, stride S in both directions:
//
//   y[r][c] = act(scale (sum_{i,j < K} w[i][j] x[S r + i - top][S c + j - left] - zero point sum w) + bias),
//   requantised
//
// Outside of x stands the zero point. Sums are exact in int32; what follows is that of quads_tile.h.
//
// A line of quads holds of four rows of x that follow one another, between paddings, the four bytes of each column as
// one dword: one product by four weights of a column of the kernel sums four taps of it. Lines begin at every second
// row, so that one serves two rows of output (S = 1), or one (S = 2, whose even and odd columns are two lines). A step
// is a line's rows of output. Lines of a strip stand one after another, and products run over them as over one long
// line: what they compute between two rows of output is left out when bytes are moved to y.
// Source: measured here, against the prototype whose lanes hold the taps of a row. x must not alias y.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "kernels/tile/byte_network.h"
#include "kernels/tile/quads_tile.h"

namespace si {
namespace {

// How lines, sums and bytes lie in the scratch of a job: channel after channel of a group, of each line after line.
// Between the columns of one line and those of the next stand zero points, which are the padding of both.
template <class V, int K, int S>
struct DepthwiseStrip {
  static constexpr int kRows = S == 1 ? 2 : 1;            // of output, a step
  static constexpr int kQuads = (K + kRows - 1 + 3) / 4;  // that a column of the kernel takes
  static_assert(4 * V::kInts + K + 64 <= kDepthwiseSlack && kQuads <= 2, "byte_depthwise_scratch holds a group");

  const int64_t channel;  // from one to the next
  const int64_t plane;    // of all lines; S = 2 has one of even columns and one of odd
  const int64_t width;    // of a row of x with what is read past it
  uint32_t* const quads;
  uint8_t* const bytes;   // a plane of each row of a step
  uint8_t* const zeros;   // a row of zero points
  uint8_t* const copies;  // of four rows that end at x_end

  explicit DepthwiseStrip(const ByteDepthwiseJob& job)
      : channel((job.strip_steps + 2 * (kQuads - 1)) * job.pitch),
        plane(job.group * channel + kDepthwiseSlack),
        width(byte_depthwise_row(job)),
        quads(reinterpret_cast<uint32_t*>(job.scratch)),
        bytes(job.scratch + 4 * S * plane),
        zeros(bytes + kRows * plane),
        copies(zeros + width) {
    std::memset(quads, job.x_zero_point, static_cast<size_t>(4 * S * plane));
    std::memset(zeros, job.x_zero_point, static_cast<size_t>(width));
  }
};

// The quads of four rows of x, the line that begins at row `row` of x. Past the last column zero points are written.
template <class V, int K, int S>
SI_INLINE void depthwise_line(const ByteDepthwiseJob& job, const DepthwiseStrip<V, K, S>& strip, const uint8_t* x,
                              int64_t row, uint32_t* line) {
  using Int = typename V::Int;
  const int64_t w = job.w;
  const uint8_t* from[4] = {x + row * w, x + (row + 1) * w, x + (row + 2) * w, x + (row + 3) * w};
  if (row < 0 || row + 4 > job.h || job.x_end - from[3] < strip.width) {
    for (int i = 0; i < 4; ++i) {
      if (row + i < 0 || row + i >= job.h) {
        from[i] = strip.zeros;
      } else if (job.x_end - from[i] < strip.width) {
        uint8_t* const copy = strip.copies + i * strip.width;
        std::memcpy(copy, from[i], static_cast<size_t>(w));
        from[i] = copy;
      }
    }
  }
  // Column 0 of x stands at `own`, and column 1, of S = 2, at `other`.
  uint32_t* own = line + (S == 1 ? job.left : job.left % 2 * strip.plane + job.left / 2);
  uint32_t* other = line + (S == 1 ? 0 : (1 - job.left % 2) * strip.plane + (job.left + 1) / 2);
  const Int outside = V::broadcast_int(static_cast<int32_t>(0x01010101u * static_cast<uint32_t>(job.x_zero_point)));
  // Dwords from `column` on, those of `count` columns.
  const auto store = [&](uint32_t* to, Int q, int64_t column, int64_t count) SI_INLINE_LAMBDA {
    V::store(to + column, count - column >= V::kInts ? q : V::first(q, count - column, outside));
  };
  const auto store_halves = [&](Int a, Int b, int64_t column) SI_INLINE_LAMBDA {
    store(own, V::even(a, b), column / 2, (w + 1) / 2);
    store(other, V::odd(a, b), column / 2, w / 2);
  };
  for (int64_t c = 0; c < w;) {
    Int q[4];
    if (V::kBytes == 16 || 2 * (w - c) > V::kBytes) {
      V::interleave(V::load(from[0] + c), V::load(from[1] + c), V::load(from[2] + c), V::load(from[3] + c), q);
      V::natural(q);
      SI_UNROLL for (int j = 0; j < 4; j += S) {
        if constexpr (S == 1)
          store(own, q[j], c + j * V::kInts, w);
        else
          store_halves(q[j], q[j + 1], c + j * V::kInts);
      }
      c += V::kBytes;
      continue;
    }
    if constexpr (V::kBytes > 16) {
      constexpr int kVectors = 16 / V::kInts;
      V::quads_16(from[0] + c, from[1] + c, from[2] + c, from[3] + c, q);
      // Vectors of 16 dwords have one to take the even and odd ones from.
      if constexpr (S == 2)
        store_halves(q[0], q[kVectors - 1], c);
      else
        SI_UNROLL for (int j = 0; j < kVectors; ++j) store(own, q[j], c + j * V::kInts, w);
      c += 16;
    }
  }
}

// The kernel's columns as dwords of four taps: [row of a step][quad][column].
template <int K, int kRows, int kQuads>
SI_INLINE int32_t depthwise_taps(const int8_t* weights, Quad (&taps)[kRows][kQuads][K]) {
  int32_t sum = 0;
  SI_UNROLL for (int j = 0; j < K; ++j) {
    uint64_t column = 0;
    SI_UNROLL for (int i = 0; i < K; ++i) {
      column |= static_cast<uint64_t>(static_cast<uint8_t>(weights[i * K + j])) << (8 * i);
      sum += weights[i * K + j];
    }
    SI_UNROLL for (int b = 0; b < kRows; ++b) {
      SI_UNROLL for (int q = 0; q < kQuads; ++q) {
        const auto dword = static_cast<uint32_t>(column << (8 * b) >> (32 * q));
        std::memcpy(&taps[b][q][j], &dword, sizeof dword);
      }
    }
  }
  return sum;
}

// The bytes of `count` dwords of the lines, of each row of a step.
template <class V, int K, int S>
SI_INLINE void depthwise_sums(const ByteDepthwiseJob& job, const DepthwiseStrip<V, K, S>& strip, int64_t channel,
                              const uint32_t* quads, uint8_t* bytes, int64_t count) {
  using Int = typename V::Int;
  using Strip = DepthwiseStrip<V, K, S>;
  constexpr int kRows = Strip::kRows, kQuads = Strip::kQuads;
  Quad taps[kRows][kQuads][K];
  const int32_t row_sum = depthwise_taps<K, kRows, kQuads>(job.weights + channel * K * K, taps);
  const auto start = V::broadcast_int(first_sum(row_sum, job.x_zero_point - V::kOffset));
  const auto scale = V::broadcast(job.scales[channel] * job.x_scale);
  const auto bias = V::broadcast(job.bias != nullptr ? job.bias[channel] : 0.0f);
  const ToByte to = job.to;
  const bool below = saturates(to);
  const int64_t pitch = job.pitch, plane = strip.plane;
  for (int64_t at = 0; at < count; at += 4 * V::kInts) {
    Int sum[kRows][4];
    SI_UNROLL for (int b = 0; b < kRows; ++b) { SI_UNROLL for (int v = 0; v < 4; ++v) sum[b][v] = start; }
    SI_UNROLL for (int q = 0; q < kQuads; ++q) {
      SI_UNROLL for (int j = 0; j < K; ++j) {
        const uint32_t* from = quads + (S == 1 ? 0 : j % 2 * plane) + at + 2 * q * pitch + (S == 1 ? j : j / 2);
        Int w[kRows];
        SI_UNROLL for (int b = 0; b < kRows; ++b) w[b] = V::spread(&taps[b][q][j]);
        SI_UNROLL for (int v = 0; v < 4; ++v) {
          const Int x = V::load(from + v * V::kInts);
          SI_UNROLL for (int b = 0; b < kRows; ++b) sum[b][v] = V::dot(sum[b][v], x, w[b]);
        }
      }
    }
    SI_UNROLL for (int b = 0; b < kRows; ++b) {
      SI_UNROLL for (int v = 0; v < 4; ++v) {
        const auto y = V::fma(V::to_float(sum[b][v]), scale, bias);
        sum[b][v] = below ? V::round_below(y, to) : V::round_to_byte(y, to);
      }
      V::store(bytes + b * plane + at, V::natural_bytes(V::pack_bytes(sum[b], to.zero_point)));
    }
  }
}

// Bytes of a row to y, in pieces, the last of which may overwrite `spill` bytes more.
template <int kPiece>
SI_INLINE void move_row(const uint8_t* from, uint8_t* to, int64_t count, int64_t spill) {
  if (count + spill < (count + kPiece - 1) / kPiece * kPiece) {
    std::memcpy(to, from, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count; i += kPiece) std::memcpy(to + i, from + i, kPiece);
}

// Lines of all channels of a group, then their sums, then their bytes: what was just stored is not loaded at once.
template <class V, int K, int S>
void depthwise_kind(const ByteDepthwiseJob& given) {
  const ByteDepthwiseJob job = given;
  using Strip = DepthwiseStrip<V, K, S>;
  const Strip strip(job);
  const int64_t steps = (job.oh + Strip::kRows - 1) / Strip::kRows;
  const uint8_t* const y_end = job.y + job.channels * job.oh * job.ow + job.spill;
  for (int64_t channel = 0; channel < job.channels; channel += job.group) {
    const int64_t group = channel + job.group < job.channels ? job.group : job.channels - channel;
    for (int64_t first = 0; first < steps; first += job.strip_steps) {
      const int64_t here = first + job.strip_steps < steps ? job.strip_steps : steps - first;
      for (int64_t i = 0; i < group; ++i) {
        const uint8_t* x = job.x + (channel + i) * job.h * job.w;
        uint32_t* const lines = strip.quads + i * strip.channel;
        for (int64_t line = 0; line < here + 2 * (Strip::kQuads - 1); ++line)
          depthwise_line<V, K, S>(job, strip, x, 2 * (first + line) - job.top, lines + line * job.pitch);
      }
      for (int64_t i = 0; i < group; ++i)
        depthwise_sums<V, K, S>(job, strip, channel + i, strip.quads + i * strip.channel,
                                strip.bytes + i * strip.channel, (here - 1) * job.pitch + job.ow);
      for (int64_t i = 0; i < group; ++i) {
        const int64_t begin = first * Strip::kRows;
        const int64_t end = begin + here * Strip::kRows < job.oh ? begin + here * Strip::kRows : job.oh;
        uint8_t* y = job.y + ((channel + i) * job.oh + begin) * job.ow;
        for (int64_t r = 0; r < end - begin; ++r, y += job.ow) {
          const uint8_t* from =
              strip.bytes + r % Strip::kRows * strip.plane + i * strip.channel + r / Strip::kRows * job.pitch;
          job.ow > 32 ? move_row<64>(from, y, job.ow, y_end - y - job.ow)
                      : move_row<16>(from, y, job.ow, y_end - y - job.ow);
        }
      }
    }
  }
}

template <class V>
void depthwise_bytes(const ByteDepthwiseJob& job) {
  if constexpr (kSmall) return job.stride == 1 ? depthwise_kind<V, 3, 1>(job) : depthwise_kind<V, 3, 2>(job);
  const auto run = job.kernel == 3   ? (job.stride == 1 ? depthwise_kind<V, 3, 1> : depthwise_kind<V, 3, 2>)
                   : job.kernel == 5 ? (job.stride == 1 ? depthwise_kind<V, 5, 1> : depthwise_kind<V, 5, 2>)
                                     : (job.stride == 1 ? depthwise_kind<V, 7, 1> : depthwise_kind<V, 7, 2>);
  run(job);
}

}  // namespace
}  // namespace si
