// Depthwise convolution, of each channel K x K taps, stride S in both directions, zero outside of x:
//
//   y[r][c] = clamp(bias + sum_{i,j < K} w[i][j] x[S r + i - top][S c + j - left])
//
// By strips: rows of x are copied between the zeros of a scratch strip, so that no tap meets an edge. A copy ends
// exactly where a row does, so that zeros between rows are written once for all channels. A block of R output rows by
// NV vectors reads each of its (R - 1) S + K input rows once and uses it for every output row that it reaches. The last
// blocks of rows and columns overlap those before. Stores of rows narrower than a vector spill into what is written
// next; past `spill` floats after y nothing is written. x must not alias y. Idea: rows that stay in registers while a
// kernel passes, as in direct convolutions (Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on
// mobile devices", AAAI 2020).
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/elementwise.h"
#include "kernels/tile/move.h"

namespace si {
namespace {

// The K taps of a vector of outputs, of a row that begins at its first.
template <class V, int K, int S>
SI_INLINE void depthwise_taps(const float* from, typename V::Reg (&taps)[K]) {
  constexpr int W = V::kWidth;
  if constexpr (S == 1) {
    SI_UNROLL for (int j = 0; j < K; ++j) {
      taps[j] = V::load(from + j);
      V::keep(taps[j]);
    }
  } else {
    SI_UNROLL for (int j = 0; j < K; j += 2) {
      typename V::Reg a = V::load(from + j), b = V::load(from + j + W);
      V::keep(a);
      V::keep(b);
      taps[j] = V::even(a, b);
      if (j + 1 < K) taps[j + 1] = V::odd(a, b);
    }
  }
}

// One channel at work.
template <class V, int K>
struct DepthwiseChannel {
  float* y;
  int64_t spill;  // floats after y that may be overwritten
  typename V::Reg bias;
  typename V::Reg w[K * K];

  SI_INLINE DepthwiseChannel(const DepthwiseJob& job, int64_t channel)
      : y(job.y + channel * job.oh * job.ow),
        spill((job.channels - channel - 1) * job.oh * job.ow + job.spill),
        bias(V::broadcast(job.bias != nullptr ? job.bias[channel] : 0.0f)) {
    SI_UNROLL for (int i = 0; i < K * K; ++i) w[i] = V::broadcast(job.weights[channel * K * K + i]);
  }
};

template <class V, int K, int S, int R, int NV>
SI_INLINE void depthwise_block(const DepthwiseJob& job, const DepthwiseChannel<V, K>& channel, const float* strip,
                               float* y, int64_t column, int64_t room) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  Reg acc[R][NV];
  SI_UNROLL for (int r = 0; r < R; ++r) { SI_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = channel.bias; }
  const float* from = strip + S * column;
  SI_UNROLL for (int in = 0; in < (R - 1) * S + K; ++in) {
    SI_UNROLL for (int v = 0; v < NV; ++v) {
      Reg taps[K];
      depthwise_taps<V, K, S>(from + S * v * W, taps);
      SI_UNROLL for (int r = 0; r < R; ++r) {
        const int i = in - S * r;
        if (i < 0 || i >= K) continue;
        SI_UNROLL for (int j = 0; j < K; ++j) acc[r][v] = V::fma(channel.w[i * K + j], taps[j], acc[r][v]);
      }
    }
    from += job.pitch;
  }
  const Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
  SI_UNROLL for (int r = 0; r < R; ++r) {
    SI_UNROLL for (int v = 0; v < NV; ++v) {
      const int64_t at = r * job.ow + column + v * W;
      store_part<V>(y + at, V::min(high, V::max(low, acc[r][v])), room - at);
    }
  }
}

// R rows of y from row `row` on, of which `strip` holds the first tap's row.
template <class V, int K, int S, int R>
SI_INLINE void depthwise_rows(const DepthwiseJob& job, const DepthwiseChannel<V, K>& channel, const float* strip,
                              int64_t row) {
  constexpr int W = V::kWidth;
  float* const y = channel.y + row * job.ow;
  const int64_t room = (job.oh - row) * job.ow + channel.spill;
  for (int64_t c = 0; c < job.ow;) {
    const int64_t left = job.ow - c;
    if (!kSmall && left > W && job.ow >= 2 * W) {
      depthwise_block<V, K, S, R, 2>(job, channel, strip, y, left >= 2 * W ? c : job.ow - 2 * W, room);
      c += 2 * W;
    } else {
      depthwise_block<V, K, S, R, 1>(job, channel, strip, y, left >= W || job.ow < W ? c : job.ow - W, room);
      c += W;
    }
  }
}

// Rows [top, top + rows) of a channel of x, or of the zeros around it, to a strip.
template <class V>
SI_INLINE void depthwise_copy(const DepthwiseJob& job, int64_t channel, int64_t top, int64_t rows, float* strip) {
  const float* const x = job.x + channel * job.h * job.w;
  for (int64_t row = top; row < top + rows; ++row) {
    float* const dst = strip + (row - top) * job.pitch + job.left;
    const float* const src = x + row * job.w;
    if (row < 0 || row >= job.h) {
      std::memset(dst, 0, static_cast<size_t>(job.w) * sizeof(float));
    } else if (!copy_pieces<V::kWidth>(src, dst, job.w) && !copy_pieces<8>(src, dst, job.w) &&
               !copy_pieces<4>(src, dst, job.w)) {
      for (int64_t c = 0; c < job.w; ++c) dst[c] = src[c];
    }
  }
}

// Rows [first, first + rows) of y from their strip.
template <class V, int K, int S>
SI_INLINE void depthwise_strip(const DepthwiseJob& job, const DepthwiseChannel<V, K>& channel, const float* strip,
                               int64_t first, int64_t rows) {
  constexpr int R = kSmall ? 1 : 4;
  if (rows < R) {
    for (int64_t r = 0; r < rows; ++r) depthwise_rows<V, K, S, 1>(job, channel, strip + S * r * job.pitch, first + r);
    return;
  }
  for (int64_t r = 0; r < rows; r += R) {
    const int64_t at = r + R <= rows ? r : rows - R;
    depthwise_rows<V, K, S, R>(job, channel, strip + S * at * job.pitch, first + at);
  }
}

template <class V, class Copy, int K, int S>
void depthwise_size(const DepthwiseJob& job) {
  float* now = job.strips;
  float* next = job.strips + depthwise_strip_floats(job);
  const auto copy = [&](int64_t channel, int64_t first, int64_t rows, float* strip) {
    depthwise_copy<Copy>(job, channel, first * S - job.top, (rows - 1) * S + K, strip);
  };
  if (job.strip_rows == job.oh) {
    copy(0, 0, job.oh, now);
    for (int64_t c = 0; c < job.channels; ++c) {
      if (c + 1 < job.channels) copy(c + 1, 0, job.oh, next);
      depthwise_strip<V, K, S>(job, DepthwiseChannel<V, K>(job, c), now, 0, job.oh);
      float* const used = now;
      now = next;
      next = used;
    }
    return;
  }
  for (int64_t c = 0; c < job.channels; ++c) {
    const DepthwiseChannel<V, K> channel(job, c);
    for (int64_t first = 0; first < job.oh; first += job.strip_rows) {
      const int64_t rows = job.oh - first < job.strip_rows ? job.oh - first : job.strip_rows;
      copy(c, first, rows, now);
      depthwise_strip<V, K, S>(job, channel, now, first, rows);
    }
  }
}

template <class V, class Copy>
void depthwise_vector(const DepthwiseJob& job) {
  switch (10 * job.kernel + job.stride) {
    case 31:
      return depthwise_size<V, Copy, 3, 1>(job);
    case 32:
      return depthwise_size<V, Copy, 3, 2>(job);
    case 51:
      return depthwise_size<V, Copy, 5, 1>(job);
    case 52:
      return depthwise_size<V, Copy, 5, 2>(job);
    case 71:
      return depthwise_size<V, Copy, 7, 1>(job);
    case 72:
      return depthwise_size<V, Copy, 7, 2>(job);
  }
}

template <class V>
void depthwise(const DepthwiseJob& job) {
  if (job.ow <= V::Half::kWidth)
    depthwise_vector<typename V::Half, V>(job);
  else
    depthwise_vector<V, V>(job);
}

}  // namespace
}  // namespace si
