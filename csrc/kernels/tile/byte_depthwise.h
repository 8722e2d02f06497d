// Depthwise convolution of bytes by int8 weights, of each channel K x K taps, stride S in both directions:
//
//   y[r][c] = act(scale (sum_{i,j < K} w[i][j] x[S r + i - top][S c + j - left] - zero point sum w) + bias),
//   requantised
//
// Outside of x stands the zero point. Sums are exact in int32; what follows is that of quads_tile.h.
//
// A dword is one output: a shuffle brings the bytes of its taps in a row of x side by side, and one product by the
// row's weights, four to a dword, sums them. Each row of x is loaded once, and goes to all rows of y that it reaches:
// their sums roll through registers. A shuffle gives zeros for columns outside of x; the sums begin with what is then
// missing. The last vectors of a row overlap those before, and vectors of rows narrower than they are spill into what
// is written next, up to `spill` bytes after y. x must not alias y.
// Source: measured here; a dword an output is the prototype's. Copying rows between paddings first, and quads of four
// rows, took twice as long.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "kernels/tile/byte_network.h"
#include "kernels/tile/quads_tile.h"

namespace si {
namespace {

// How the outputs of a row lie in NV vectors, and from where in x a vector is loaded: `first` is the column of x that
// the first tap of the first output takes.
//   NV = 4   Lane L of vector v has from its own 16 bytes of x four outputs of those that begin at 16 L (S = 1: 16
//            outputs, a quarter a vector) or at 8 L (S = 2: half of them are in two vectors). Packing makes the row of
//            it, but for an exchange of halves of lanes at S = 2.
//   NV < 4   Of one row after another, and lanes overlap (V::windows).
//   NV = 0   Likewise one vector, of a row that 16 bytes hold with what is left of it: each lane has all of it.
template <class V, int K, int S, int NV>
struct TapLayout {
  static constexpr bool kQuarters = NV == 4, kWhole = NV == 0;
  static constexpr int kVectors = kWhole ? 1 : NV;
  static constexpr int kReach =
      kQuarters ? (S - 1) * V::kBytes + 8 + V::kBytes : S * (kVectors - 1) * V::kInts + V::kBytes;

  static constexpr int load_at(int v) {
    return !kQuarters ? S * v * V::kInts : S == 1 ? 8 * (v / 2) : V::kBytes * (v / 2) + 8 * (v % 2);
  }
  // The byte of its lane that goes to byte i, for the four taps from 4 d on, and its column, from `first` on. A tap
  // past the last one is multiplied by zero.
  static constexpr int source(int v, int d, int i) {
    const int tap = S * (i % 16 / 4) + 4 * d + i % 4;
    return kWhole ? 4 * S * (i / 16) + tap : kQuarters && S == 1 ? 4 * (v % 2) + tap : tap;
  }
  static constexpr int column(int v, int d, int i) {
    return load_at(v) + (kWhole ? 0 : kQuarters ? 16 : 4 * S) * (i / 16) + source(v, d, i);
  }
  static SI_INLINE typename V::Int load(const uint8_t* x, int v) {
    if constexpr (kWhole)
      return V::lanes_of(x);
    else if constexpr (kQuarters)
      return V::load(x + load_at(v));
    else
      return V::template windows<S>(x + load_at(v));
  }
  static SI_INLINE typename V::Int row_of(typename V::Int packed) {
    if constexpr (!kQuarters)
      return V::natural_bytes(packed);
    else if constexpr (S == 2)
      return V::even_halves_first(packed);
    else
      return packed;
  }
};

// Which bytes the shuffles of a vector take, and what column each is.
template <class Layout, int kBytes>
struct TapBytes {
  uint8_t source[4][2][kBytes], column[4][2][kBytes];

  constexpr TapBytes() : source(), column() {
    for (int v = 0; v < 4; ++v)
      for (int d = 0; d < 2; ++d)
        for (int i = 0; i < kBytes; ++i) {
          source[v][d][i] = static_cast<uint8_t>(Layout::source(v, d, i));
          column[v][d][i] = static_cast<uint8_t>(Layout::column(v, d, i));
        }
  }
};

// A shuffle that gives zero where a column of x is none of its w.
template <class V, class Layout>
SI_INLINE typename V::Int tap_shuffle(int v, int d, int64_t first, int64_t w) {
  static constexpr TapBytes<Layout, V::kBytes> kTaps;
  const auto bound = [](int64_t column) SI_INLINE_LAMBDA {
    return static_cast<uint8_t>(column < 0 ? 0 : column < 255 ? column : 255);
  };
  const uint8_t from = bound(-first), to = bound(w - first);
  uint8_t bytes[V::kBytes];
  for (int i = 0; i < V::kBytes; ++i)
    bytes[i] = kTaps.column[v][d][i] >= from && kTaps.column[v][d][i] < to ? kTaps.source[v][d][i] : 0x80;
  return V::load(bytes);
}

// The kernel's rows as dwords of four taps, zero past the last one.
template <class V, int K, int D>
SI_INLINE void tap_weights(const int8_t* weights, typename V::Int (&w)[K][D]) {
  constexpr int kLast = K * K - 8;  // from where eight weights can be read
  SI_UNROLL for (int i = 0; i < K; ++i) {
    const int from = i * K < kLast ? i * K : kLast;
    uint64_t row;
    std::memcpy(&row, weights + from, sizeof row);
    row = row >> (8 * (i * K - from)) & ((uint64_t{1} << (8 * K)) - 1);
    SI_UNROLL for (int d = 0; d < D; ++d) w[i][d] = V::broadcast_int(static_cast<int32_t>(row >> (32 * d)));
  }
}

// Bytes [left, right) of a row from `x` on, which must not be read before and after, to the same places of `to`.
__attribute__((noinline)) inline void copy_some_bytes(const uint8_t* x, int64_t left, int64_t right, uint8_t* to) {
  if (right > left) std::memcpy(to + left, x + left, static_cast<size_t>(right - left));
}

// Bytes that stay in the nearest cache beside what is computed of them.
constexpr int64_t kNearBytes = 16384;

// NV vectors of columns, so many rows at a time that four vectors become bytes together.
template <class V, int K, int S, int kLayout>
void byte_columns(const ByteDepthwiseJob& given) {
  using Int = typename V::Int;
  using Layout = TapLayout<V, K, S, kLayout>;
  constexpr int NV = Layout::kVectors;
  constexpr int kDwords = (K + 3) / 4;    // of a row of the kernel
  constexpr int kOpen = (K + S - 1) / S;  // rows of y that a row of x reaches
  constexpr int kRows = 4 / NV;           // of y that are stored together
  constexpr int kWidth = NV * V::kInts;   // columns of y
  constexpr int kReach = Layout::kReach;  // bytes of a row of x
  const ByteDepthwiseJob job = given;
  const int64_t w = job.w, h = job.h, ow = job.ow, oh = job.oh, stored = ow < kWidth ? ow : int64_t{kWidth};
  uint8_t* const y_last = job.y + job.channels * oh * ow + job.spill - ((kRows - 1) * ow + kWidth);
  // Where packing saturates both ways, and no sum is beyond what it takes, bounds need no instructions.
  const ToByte to = job.to;
  const bool below = saturates(to), both = below && to.high > static_cast<float>(254 - to.zero_point) + 0.5f;
  uint8_t outside[kReach], edge[kReach] = {}, some[V::kBytes];
  std::memset(outside, job.x_zero_point, sizeof outside);
  const int64_t image = h * w, x_before = job.x - job.x_begin, x_after = job.x_end - job.x - kReach;
  // Channels whose planes are near when the next columns of them are computed.
  const int64_t group = ow <= kWidth ? job.channels : image < kNearBytes ? kNearBytes / image : 1;
  const int64_t columns = (ow + kWidth - 1) / kWidth, groups = (job.channels + group - 1) / group;
  Int shuffle[NV][kDwords] = {};
  for (int64_t part = 0; part < columns * groups; ++part) {
    const int64_t column = part % columns * kWidth, channel0 = part / columns * group;
    const int64_t channel1 = channel0 + group < job.channels ? channel0 + group : job.channels;
    const int64_t c = column + kWidth <= ow || ow < kWidth ? column : ow - kWidth;
    const int64_t first = S * c - job.left, left = first < 0 ? -first : 0,
                  right = w - first < kReach ? w - first : kReach;
    SI_UNROLL for (int v = 0; v < NV; ++v) {
      SI_UNROLL for (int d = 0; d < kDwords; ++d) shuffle[v][d] = tap_shuffle<V, Layout>(v, d, first, w);
    }
    const uint8_t* x = job.x + channel0 * image + first;
    uint8_t* y = job.y + channel0 * oh * ow + c;
    for (int64_t channel = channel0; channel < channel1; ++channel, x += image, y += oh * ow) {
      const float row_scale = job.scales[channel] * job.x_scale;
      const float row_bias = job.bias != nullptr ? job.bias[channel] : 0.0f;
      const auto scale = V::broadcast(row_scale), bias = V::broadcast(row_bias);
      constexpr auto kMostSum = static_cast<float>(K * K * 128 * 255);
      const bool alone = both && (kMostSum * row_scale + __builtin_fabsf(row_bias)) * to.inverse < 0x1p30f;
      // Which rows can be read with what is before and after them: all, but for the first and the last channels.
      const int64_t before = x_before + channel * image + first, after = x_after - channel * image - first;
      const int64_t readable_first = before < 0 ? (w - 1 - before) / w : 0;
      const int64_t readable_last = after < h * w ? (after + w) / w : h;
      const bool at_an_end = before < 0 || after < h * w;
      Int weights[K][kDwords];
      tap_weights<V, K, kDwords>(job.weights + channel * K * K, weights);
      Int start[NV], sum[kOpen][NV];
      SI_UNROLL for (int v = 0; v < NV; ++v) {
        const Int zero_point = V::load(outside);
        Int all = V::broadcast_int(0);
        SI_UNROLL for (int i = 0; i < K; ++i) {
          SI_UNROLL for (int d = 0; d < kDwords; ++d) all =
              V::dot(all, V::shuffle(zero_point, shuffle[v][d]), weights[i][d]);
        }
        start[v] = V::sub(V::broadcast_int(0), all);
        SI_UNROLL for (int m = 0; m < kOpen; ++m) sum[m][v] = start[v];
      }
      // The last S rows of x that row `row` of y takes; they go to those after it, too. `g`: how many rows ago `sum`
      // began with the row at work.
      const auto step = [&](int64_t row, int g, Int(&result)[NV]) SI_INLINE_LAMBDA {
        SI_UNROLL for (int j = 0; j < S; ++j) {
          const int64_t from = S * row + K - S + j - job.top;
          const bool inside = static_cast<uint64_t>(from) < static_cast<uint64_t>(h);
          const uint8_t* p = inside ? x + from * w : outside;
          if (__builtin_expect(at_an_end && inside && (from < readable_first || from >= readable_last), 0)) {
            copy_some_bytes(p, left, right, edge);
            p = edge;
          }
          SI_UNROLL for (int v = 0; v < NV; ++v) {
            const Int bytes = Layout::load(p, v);
            SI_UNROLL for (int d = 0; d < kDwords; ++d) {
              const Int taps = V::shuffle(bytes, shuffle[v][d]);
              SI_UNROLL for (int m = 0; m < kOpen; ++m) {
                const int i = K - S + j - S * m;
                if (i >= 0) sum[(g + m) % kOpen][v] = V::dot(sum[(g + m) % kOpen][v], taps, weights[i][d]);
              }
            }
          }
        }
        SI_UNROLL for (int v = 0; v < NV; ++v) {
          result[v] = sum[g % kOpen][v];
          sum[g % kOpen][v] = start[v];
        }
      };
      const auto roll = [&](int by) SI_INLINE_LAMBDA {
        Int old[kOpen][NV];
        SI_UNROLL for (int m = 0; m < kOpen; ++m) { SI_UNROLL for (int v = 0; v < NV; ++v) old[m][v] = sum[m][v]; }
        SI_UNROLL for (int m = 0; m < kOpen; ++m) {
          SI_UNROLL for (int v = 0; v < NV; ++v) sum[m][v] = old[(m + by) % kOpen][v];
        }
      };
      for (int64_t row = 1 - kOpen; row < 0; ++row) {
        Int none[NV];
        step(row, 0, none);
        roll(1);
      }
      for (int64_t row = 0; row < oh; row += kRows) {
        Int done[kRows][NV];
        // Rows past the last one, too, so that nothing branches.
        SI_UNROLL for (int g = 0; g < kRows; ++g) step(row + g, g, done[g]);
        roll(kRows);
        Int bytes[4];
        SI_UNROLL for (int i = 0; i < 4; ++i) {
          const auto v = V::fma(V::to_float(done[i / NV][i % NV]), scale, bias);
          bytes[i] = alone ? V::round(v, to) : below ? V::round_below(v, to) : V::round_to_byte(v, to);
        }
        const Int line = Layout::row_of(V::pack_bytes(bytes, to.zero_point));
        uint8_t* const at = y + row * ow;
        if (at <= y_last) {
          // What lies past the last row is written after this.
          V::template store_pieces<kRows>(line, at, ow);
          continue;
        }
        V::store(some, line);
        for (int64_t g = 0; g < kRows && row + g < oh; ++g)
          std::memcpy(at + g * ow, some + g * kWidth, static_cast<size_t>(stored));
      }
    }
  }
}

// By the width of y: whole vectors of bytes, half of one, or rows that a vector of sums holds.
template <class V, int K, int S>
void byte_kind(const ByteDepthwiseJob& job) {
  using Half = typename V::Half;
  const bool whole = job.left + job.w <= 16;
  if (job.ow > 2 * V::kInts)
    byte_columns<V, K, S, 4>(job);
  else if (job.ow > V::kInts && Half::kInts < V::kInts)
    byte_columns<Half, K, S, 4>(job);
  else if (job.ow > V::kInts)
    byte_columns<V, K, S, 2>(job);
  else if (job.ow > Half::kInts)
    whole ? byte_columns<V, K, S, 0>(job) : byte_columns<V, K, S, 1>(job);
  else
    whole ? byte_columns<Half, K, S, 0>(job) : byte_columns<Half, K, S, 1>(job);
}

template <class V>
void depthwise_bytes(const ByteDepthwiseJob& job) {
  if constexpr (kSmall) return job.stride == 1 ? byte_kind<V, 3, 1>(job) : byte_kind<V, 3, 2>(job);
  const auto run = job.kernel == 3   ? (job.stride == 1 ? byte_kind<V, 3, 1> : byte_kind<V, 3, 2>)
                   : job.kernel == 5 ? (job.stride == 1 ? byte_kind<V, 5, 1> : byte_kind<V, 5, 2>)
                                     : (job.stride == 1 ? byte_kind<V, 7, 1> : byte_kind<V, 7, 2>);
  run(job);
}

}  // namespace
}  // namespace si
