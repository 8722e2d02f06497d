// Depthwise convolution of rows of one channel, K x K taps, stride S in both directions:
//
//   y[r][c] = clamp(bias + sum_{i,j < K} w[i][j] x[S r + i][S c + j])
//
// x is a padded copy of the rows (kernels/depthwise/depthwise.cc), cut in S phases, phase p holding columns p, p + S,
// ..., so that tap j of consecutive outputs stands at consecutive elements. A block of R output rows by NV vectors
// reads each of its (R - 1) S + K input rows once and uses it for every output row that it reaches. Stores of rows
// narrower than a vector spill into what is written next; past `spill` floats after the last row nothing is written. x
// must not alias y. Idea: rolling rows as in direct convolutions (Zhang, Lo and Lu, "High performance depthwise and
// pointwise convolutions on mobile devices", AAAI 2020).
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/elementwise.h"

namespace si {
namespace {

template <class V, int K, int S, int R, int NV>
SI_INLINE void depthwise_block(const DepthwiseJob& job, const typename V::Reg (&w)[K * K], int64_t row,
                               int64_t column) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  Reg acc[R][NV];
  SI_UNROLL for (int r = 0; r < R; ++r) { SI_UNROLL for (int v = 0; v < NV; ++v) acc[r][v] = V::broadcast(job.bias); }
  const float* from = job.x + S * row * job.pitch + column;
  SI_UNROLL for (int in = 0; in < (R - 1) * S + K; ++in) {
    SI_UNROLL for (int v = 0; v < NV; ++v) {
      Reg taps[K];
      SI_UNROLL for (int j = 0; j < K; ++j) taps[j] = V::load(from + (j % S) * job.phase + j / S + v * W);
      SI_UNROLL for (int r = 0; r < R; ++r) {
        const int i = in - S * r;
        if (i < 0 || i >= K) continue;
        SI_UNROLL for (int j = 0; j < K; ++j) acc[r][v] = V::fma(w[i * K + j], taps[j], acc[r][v]);
      }
    }
    from += job.pitch;
  }
  const Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
  SI_UNROLL for (int r = 0; r < R; ++r) {
    float* y = job.y + (row + r) * job.columns + column;
    const int64_t room = (job.rows - row - r) * job.columns + job.spill - column;
    SI_UNROLL for (int v = 0; v < NV; ++v) store_part<V>(y + v * W, V::min(high, V::max(low, acc[r][v])), room - v * W);
  }
}

template <class V, int K, int S, int R>
SI_INLINE void depthwise_rows(const DepthwiseJob& job, const typename V::Reg (&w)[K * K], int64_t row) {
  constexpr int W = V::kWidth;
  // The last vectors of a row overlap those before, where it is wide enough.
  for (int64_t c = 0; c < job.columns;) {
    const int64_t left = job.columns - c;
    if (left > W && job.columns >= 2 * W) {
      depthwise_block<V, K, S, R, 2>(job, w, row, left >= 2 * W ? c : job.columns - 2 * W);
      c += 2 * W;
    } else {
      depthwise_block<V, K, S, R, 1>(job, w, row, left >= W || job.columns < W ? c : job.columns - W);
      c += W;
    }
  }
}

template <class V, int K, int S>
void depthwise_size(const DepthwiseJob& job) {
  typename V::Reg w[K * K];
  SI_UNROLL for (int i = 0; i < K * K; ++i) w[i] = V::broadcast(job.weights[i]);
  int64_t row = 0;
  for (; row + 4 <= job.rows; row += 4) depthwise_rows<V, K, S, 4>(job, w, row);
  if (row + 2 <= job.rows) {
    depthwise_rows<V, K, S, 2>(job, w, row);
    row += 2;
  }
  if (row < job.rows) depthwise_rows<V, K, S, 1>(job, w, row);
}

template <class V>
void depthwise_vector(const DepthwiseJob& job) {
  switch (10 * job.kernel + job.stride) {
    case 31:
      return depthwise_size<V, 3, 1>(job);
    case 32:
      return depthwise_size<V, 3, 2>(job);
    case 51:
      return depthwise_size<V, 5, 1>(job);
    case 52:
      return depthwise_size<V, 5, 2>(job);
    case 71:
      return depthwise_size<V, 7, 1>(job);
    case 72:
      return depthwise_size<V, 7, 2>(job);
  }
}

template <class V>
void depthwise(const DepthwiseJob& job) {
  if (job.columns <= V::Half::kWidth)
    depthwise_vector<typename V::Half>(job);
  else
    depthwise_vector<V>(job);
}

}  // namespace
}  // namespace si
