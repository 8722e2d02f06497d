// Depthwise convolution of bytes by int8 weights, of each channel K x K taps, stride S in both directions:
//
//   y[r][c] = act(scale (sum_{i,j < K} w[i][j] x[S r + i - top][S c + j - left] - zero point sum w) + bias), requantised
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

// How lines, sums and bytes of a strip lie in the scratch of a job.
template <class V, int K, int S>
struct DepthwiseStrip {
  static constexpr int kRows = S == 1 ? 2 : 1;              // of output, a step
  static constexpr int kQuads = (K + kRows - 1 + 3) / 4;    // that a column of the kernel takes
  static constexpr int64_t kSlack = kDepthwiseSlack;        // written and read past the last line
  static_assert(4 * V::kInts + K + 64 <= kSlack && kQuads <= 2, "byte_depthwise_scratch holds a strip");

  const int64_t pitch, lines, plane, width;
  uint32_t* const quads;  // S planes
  uint8_t* const bytes;   // of each row of a step, [step][pitch]
  uint8_t* const zeros;   // a row of zero points
  uint8_t* const copies;  // of four rows that end at x_end

  explicit DepthwiseStrip(const ByteDepthwiseJob& job)
      : pitch(job.pitch),
        lines(job.strip_steps + 2 * (kQuads - 1)),
        plane(lines * pitch + kSlack),
        width(byte_depthwise_row(job)),
        quads(reinterpret_cast<uint32_t*>(job.scratch)),
        bytes(job.scratch + S * plane * 4),
        zeros(bytes + kRows * byte_plane()),
        copies(zeros + width) {
    std::memset(zeros, job.x_zero_point, static_cast<size_t>(width));
  }
  int64_t byte_plane() const { return lines * pitch + kSlack; }
};

// The quads of four rows of x, the line that begins at row `row` of x.
template <class V, int K, int S>
SI_INLINE void depthwise_line(const ByteDepthwiseJob& job, const DepthwiseStrip<V, K, S>& strip, const uint8_t* x,
                              int64_t row, uint32_t* line) {
  using Int = typename V::Int;
  const int64_t w = job.w;
  const uint8_t* from[4];
  SI_UNROLL for (int i = 0; i < 4; ++i) {
    from[i] = row + i >= 0 && row + i < job.h ? x + (row + i) * w : strip.zeros;
    if (from[i] == strip.zeros || job.x_end - from[i] >= strip.width) continue;
    uint8_t* const copy = strip.copies + i * strip.width;
    std::memcpy(copy, from[i], static_cast<size_t>(w));
    from[i] = copy;
  }
  const uint32_t outside = 0x01010101u * static_cast<uint32_t>(job.x_zero_point);
  // Column 0 of x stands at dword `begin` of plane `own`, column 1 at `next` of the other.
  const int64_t begin = S == 1 ? job.left : job.left / 2, next = (job.left + 1) / 2;
  uint32_t* const own = line + (S == 1 ? 0 : job.left % 2 * strip.plane);
  uint32_t* const other = line + (S == 1 ? 0 : (1 - job.left % 2) * strip.plane);
  for (int s = 0; s < S; ++s)
    for (int64_t i = 0; i < job.left / S + 1; ++i) line[s * strip.plane + i] = outside;
  for (int64_t c = 0; c < w;) {
    if (4 * (w - c) > 3 * V::kBytes || V::kBytes == 16) {
      Int q[4];
      V::interleave(V::load(from[0] + c), V::load(from[1] + c), V::load(from[2] + c), V::load(from[3] + c), q);
      V::natural(q);
      if constexpr (S == 1) {
        SI_UNROLL for (int j = 0; j < 4; ++j) V::store(own + begin + c + j * V::kInts, q[j]);
      } else {
        SI_UNROLL for (int j = 0; j < 4; j += 2) {
          V::store(own + begin + (c + j * V::kInts) / 2, V::even(q[j], q[j + 1]));
          V::store(other + next + (c + j * V::kInts) / 2, V::odd(q[j], q[j + 1]));
        }
      }
      c += V::kBytes;
    } else if constexpr (S == 1) {
      V::quads_16(from[0] + c, from[1] + c, from[2] + c, from[3] + c, own + begin + c);
      c += 16;
    } else {
      alignas(64) uint32_t narrow[16];
      // Vectors of 16 dwords have one to take the even and odd ones from.
      V::quads_16(from[0] + c, from[1] + c, from[2] + c, from[3] + c, narrow);
      const Int a = V::load(narrow), b = V::kInts == 16 ? a : V::load(narrow + V::kInts % 16);
      V::store(own + begin + c / 2, V::even(a, b));
      V::store(other + next + c / 2, V::odd(a, b));
      c += 16;
    }
  }
  if constexpr (S == 1) {
    for (int64_t i = job.left + w; i < strip.pitch; ++i) line[i] = outside;
  } else {
    for (int64_t i = begin + (w + 1) / 2; i < strip.pitch; ++i) own[i] = outside;
    for (int64_t i = next + w / 2; i < strip.pitch; ++i) other[i] = outside;
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
                              int64_t count) {
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
  const int64_t pitch = strip.pitch, plane = strip.plane, byte_plane = strip.byte_plane();
  const uint32_t* const quads = strip.quads;
  uint8_t* const bytes = strip.bytes;
  for (int64_t at = 0; at < count; at += 4 * V::kInts) {
    Int sum[kRows][4];
    SI_UNROLL for (int b = 0; b < kRows; ++b) {
      SI_UNROLL for (int v = 0; v < 4; ++v) sum[b][v] = start;
    }
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
      V::store(bytes + b * byte_plane + at, V::natural_bytes(V::pack_bytes(sum[b], to.zero_point)));
    }
  }
}

// Bytes of a row to y, after which `spill` may be overwritten.
SI_INLINE void move_row(const uint8_t* from, uint8_t* to, int64_t count, int64_t spill) {
  if (count + spill < (count + 15) / 16 * 16) {
    std::memcpy(to, from, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count; i += 16) std::memcpy(to + i, from + i, 16);
}

template <class V, int K, int S>
void depthwise_kind(const ByteDepthwiseJob& given) {
  const ByteDepthwiseJob job = given;
  using Strip = DepthwiseStrip<V, K, S>;
  const Strip strip(job);
  const int64_t steps = (job.oh + Strip::kRows - 1) / Strip::kRows;
  const uint8_t* const y_end = job.y + job.channels * job.oh * job.ow + job.spill;
  for (int64_t channel = 0; channel < job.channels; ++channel) {
    const uint8_t* x = job.x + channel * job.h * job.w;
    uint8_t* y = job.y + channel * job.oh * job.ow;
    for (int64_t first = 0; first < steps; first += job.strip_steps) {
      const int64_t here = first + job.strip_steps < steps ? job.strip_steps : steps - first;
      for (int64_t line = 0; line < here + 2 * (Strip::kQuads - 1); ++line)
        depthwise_line<V, K, S>(job, strip, x, 2 * (first + line) - job.top, strip.quads + line * strip.pitch);
      depthwise_sums<V, K, S>(job, strip, channel, (here - 1) * strip.pitch + job.ow);
      for (int64_t step = 0; step < here; ++step)
        for (int b = 0; b < Strip::kRows; ++b) {
          if ((first + step) * Strip::kRows + b >= job.oh) break;
          move_row(strip.bytes + b * strip.byte_plane() + step * strip.pitch, y, job.ow, y_end - y - job.ow);
          y += job.ow;
        }
    }
  }
}

template <class V>
void depthwise_bytes(const ByteDepthwiseJob& job) {
  const auto run = job.kernel == 3   ? (job.stride == 1 ? depthwise_kind<V, 3, 1> : depthwise_kind<V, 3, 2>)
                   : job.kernel == 5 ? (job.stride == 1 ? depthwise_kind<V, 5, 1> : depthwise_kind<V, 5, 2>)
                                     : (job.stride == 1 ? depthwise_kind<V, 7, 1> : depthwise_kind<V, 7, 2>);
  run(job);
}

}  // namespace
}  // namespace si
