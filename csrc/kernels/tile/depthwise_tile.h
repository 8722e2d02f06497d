// Depthwise convolution, of each channel K x K taps, stride S in both directions, zero outside of x:
//
//   y[r][c] = clamp(bias + sum_{i,j < K} w[i][j] x[S r + i - top][S c + j - left])
//
// Each row of x is loaded once, a vector a tap, where it lies; columns outside of x are masked. It goes to all rows of
// y that it reaches: their sums roll through registers. The last vectors of a row overlap those before. Stores of rows
// narrower than a vector spill into what is written next; past `spill` floats after y nothing is written. x must not
// alias y. Idea: rows that stay in registers while a kernel passes, as in direct convolutions (Zhang, Lo and Lu, "High
// performance depthwise and pointwise convolutions on mobile devices", AAAI 2020). Source: measured here; copying rows
// between paddings first took 1.7 times as long.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/tile/elementwise.h"

namespace si {
namespace {

// The K taps of a vector of outputs, of a row that begins at its first.
template <class V, int K, int S>
SI_INLINE void depthwise_taps(const float* from, typename V::Reg (&taps)[K]) {
  constexpr int W = V::kWidth;
  if constexpr (S == 1) {
    SI_UNROLL for (int j = 0; j < K; ++j) taps[j] = V::load(from + j);
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

// All bits where column first + S i of a vector is one of the w of x.
template <class V, int S>
SI_INLINE typename V::Reg columns_in(int64_t first, int64_t w) {
  constexpr int64_t kMost = S * V::kWidth;
  const auto low = static_cast<int32_t>(first < 0 ? (first > -kMost ? -first : kMost) : 0);
  const auto high = static_cast<int32_t>(w - first < kMost ? w - first : kMost);
  uint32_t bits[V::kWidth];
  float mask[V::kWidth];
  for (int32_t i = 0; i < V::kWidth; ++i) bits[i] = S * i >= low && S * i < high ? UINT32_MAX : 0;
  std::memcpy(mask, bits, sizeof mask);
  return V::load(mask);
}

// Elements [left, right) of a row from `x` on, which must not be read before and after, to the same places of `to`.
__attribute__((noinline)) inline void copy_some(const float* x, int64_t left, int64_t right, float* to) {
  if (right > left) std::memcpy(to + left, x + left, static_cast<size_t>(right - left) * sizeof(float));
}

// Floats of a plane that stay in the nearest cache while one column of vectors after another is computed.
constexpr int64_t kNearFloats = 4096;

// NV vectors of columns at a time.
template <class V, int K, int S, int NV>
void depthwise_columns(const DepthwiseJob& given) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth, kWidth = NV * W;  // columns of y
  constexpr int kOpen = (K + S - 1) / S;         // rows of y that a row of x reaches
  constexpr int kReach = S * kWidth + K + W;     // floats of a row of x
  const DepthwiseJob job = given;
  const int64_t w = job.w, h = job.h, ow = job.ow, oh = job.oh, image = h * w;
  const float* const y_end = job.y + job.channels * oh * ow + job.spill;
  const int64_t x_before = job.x - job.x_begin, x_after = job.x_end - job.x - kReach;
  const Reg low = V::broadcast(job.low), high = V::broadcast(job.high);
  const float outside[kReach] = {};
  float edge[kReach] = {};
  const int64_t columns = (ow + kWidth - 1) / kWidth;
  Reg mask[NV][K] = {};
  // Rows of y that one column of vectors computes before the next one does.
  const int64_t strip = columns == 1 ? oh : kNearFloats / (S * w) > 4 ? kNearFloats / (S * w) : 4;
  for (int64_t channel = 0; channel < job.channels; ++channel) {
    const Reg bias = V::broadcast(job.bias != nullptr ? job.bias[channel] : 0.0f);
    Reg weights[K * K];
    SI_UNROLL for (int i = 0; i < K * K; ++i) weights[i] = V::broadcast(job.weights[channel * K * K + i]);
    for (int64_t part = 0; part < (oh + strip - 1) / strip * columns; ++part) {
      const int64_t column = part % columns * kWidth, row0 = part / columns * strip;
      const int64_t row1 = row0 + strip < oh ? row0 + strip : oh;
      const int64_t c = column + kWidth <= ow || ow < kWidth ? column : ow - kWidth, first = S * c - job.left;
      const int64_t left = first < 0 ? -first : 0, right = w - first < kReach ? w - first : kReach;
      const bool masked = first < 0 || first + S * (kWidth - 1) + K > w;
      if (masked && (channel == 0 || columns > 1)) {
        SI_UNROLL for (int v = 0; v < NV; ++v) {
          SI_UNROLL for (int j = 0; j < K; ++j) mask[v][j] = columns_in<V, S>(first + S * v * W + j, w);
        }
      }
      // Which rows can be read with what is before and after them: all, but for the first and the last channels.
      const int64_t before = x_before + channel * image + first, after = x_after - channel * image - first;
      const int64_t readable_first = before < 0 ? (w - 1 - before) / w : 0;
      const int64_t readable_last = after < image ? (after + w) / w : h;
      const bool at_an_end = before < 0 || after < image;
      const float* const x = job.x + channel * image + first;
      float* const y = job.y + channel * oh * ow + c;
      const auto walk = [&](auto is_masked) SI_INLINE_LAMBDA {
        Reg sum[kOpen][NV];
        SI_UNROLL for (int m = 0; m < kOpen; ++m) { SI_UNROLL for (int v = 0; v < NV; ++v) sum[m][v] = bias; }
        for (int64_t row = row0 + 1 - kOpen; row < row1; ++row) {
          // The last S rows of x that row `row` of y takes; they go to those after it, too.
          SI_UNROLL for (int j = 0; j < S; ++j) {
            const int64_t from = S * row + K - S + j - job.top;
            const bool inside = static_cast<uint64_t>(from) < static_cast<uint64_t>(h);
            const float* p = inside ? x + from * w : outside;
            if (__builtin_expect(at_an_end && inside && (from < readable_first || from >= readable_last), 0)) {
              copy_some(p, left, right, edge);
              p = edge;
            }
            SI_UNROLL for (int v = 0; v < NV; ++v) {
              Reg taps[K];
              depthwise_taps<V, K, S>(p + S * v * W, taps);
              if constexpr (decltype(is_masked)::value) {
                SI_UNROLL for (int t = 0; t < K; ++t) taps[t] = V::bits_in(taps[t], mask[v][t]);
              }
              SI_UNROLL for (int m = 0; m < kOpen; ++m) {
                const int i = K - S + j - S * m;
                if (i < 0) continue;
                SI_UNROLL for (int t = 0; t < K; ++t) sum[m][v] = V::fma(weights[i * K + t], taps[t], sum[m][v]);
              }
            }
          }
          if (row >= row0) {
            float* const to = y + row * ow;
            SI_UNROLL for (int v = 0; v < NV; ++v)
                store_part<V>(to + v * W, V::min(high, V::max(low, sum[0][v])), y_end - to - v * W);
          }
          SI_UNROLL for (int v = 0; v < NV; ++v) {
            SI_UNROLL for (int m = 0; m + 1 < kOpen; ++m) sum[m][v] = sum[m + 1][v];
            sum[kOpen - 1][v] = bias;
          }
        }
      };
      if (masked)
        walk(std::true_type{});
      else
        walk(std::false_type{});
    }
  }
}

// Two vectors of wider rows, where registers hold their sums.
template <class V, int K, int S>
void depthwise_kind(const DepthwiseJob& job) {
  if constexpr (kSmall) return depthwise_columns<V, K, S, 1>(job);
  if (K < 7 && job.ow > V::kWidth)
    depthwise_columns<V, K, S, 2>(job);
  else if (job.ow > V::Half::kWidth)
    depthwise_columns<V, K, S, 1>(job);
  else
    depthwise_columns<typename V::Half, K, S, 1>(job);
}

template <class V>
void depthwise(const DepthwiseJob& job) {
  const auto run = job.kernel == 3   ? (job.stride == 1 ? depthwise_kind<V, 3, 1> : depthwise_kind<V, 3, 2>)
                   : job.kernel == 5 ? (job.stride == 1 ? depthwise_kind<V, 5, 1> : depthwise_kind<V, 5, 2>)
                                     : (job.stride == 1 ? depthwise_kind<V, 7, 1> : depthwise_kind<V, 7, 2>);
  run(job);
}

}  // namespace
}  // namespace si
