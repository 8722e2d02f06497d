// Softmax attention of some queries of one head, read where the tokens stand.
//
//   y[i] = sum_j p[i][j] v[j], p[i] = softmax_j(scale q[i] . k[j] + mask[i][j])
//
// Both products are one register tile, of rows that are broadcast by vectors: keys are the vectors of the scores, for
// which a block of them is transposed, and features those of the sums, for which the values stand right. Blocks of keys
// after the first rescale what is there (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018;
// Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021), so that scratch does not grow with the
// sequence. A query all of whose keys are masked by -Inf gives zeros. Scores stay in the nearest cache. y overlaps
// nothing.
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/activation.h"
#include "kernels/tile/elementwise.h"
#include "kernels/tile/move.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

constexpr float kMinusInfinity = -__builtin_inff();

template <class V, int kRows, int kVectors>
void product_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c, int64_t ldc,
                  bool more) {
  typename V::Reg sums[kRows][kVectors];
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int n = 0; n < kVectors; ++n) sums[r][n] =
        more ? V::load(c + r * ldc + n * V::kWidth) : V::broadcast(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename V::Reg row[kVectors];
    SI_UNROLL for (int n = 0; n < kVectors; ++n) row[n] = V::load(b + k * ldb + n * V::kWidth);
    SI_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename V::Reg each = V::broadcast(a[r * lda + k]);
      SI_UNROLL for (int n = 0; n < kVectors; ++n) sums[r][n] = V::fma(each, row[n], sums[r][n]);
    }
  }
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int n = 0; n < kVectors; ++n) V::store(c + r * ldc + n * V::kWidth, sums[r][n]);
  }
}

// c[rows][columns] = a[rows][depth] b[depth][columns], or added to it; columns are a multiple of the vector.
template <class V, int kRows>
SI_INLINE void product_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c,
                            int64_t ldc, int64_t columns, bool more) {
  constexpr int kMost = V::kMaxVectors < 6 ? V::kMaxVectors : 6;
  const int64_t vectors = columns / V::kWidth, tiles = (vectors + kMost - 1) / kMost;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - first;
    const float* const from = b + first * V::kWidth;
    float* const to = c + first * V::kWidth;
    switch (count) {
      case 1:
        product_tile<V, kRows, 1>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 2:
        product_tile<V, kRows, 2>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 3:
        product_tile<V, kRows, (kMost < 3 ? kMost : 3)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 4:
        product_tile<V, kRows, (kMost < 4 ? kMost : 4)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 5:
        product_tile<V, kRows, (kMost < 5 ? kMost : 5)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      default:
        product_tile<V, kRows, kMost>(a, lda, from, ldb, depth, to, ldc, more);
        break;
    }
  }
}

template <class V>
SI_INLINE void product(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c,
                       int64_t ldc, int64_t columns, bool more) {
  if (rows == kQueryRows) return product_rows<V, kQueryRows>(a, lda, b, ldb, depth, c, ldc, columns, more);
  for (int64_t r = 0; r < rows; ++r)
    product_rows<V, 1>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, more);
}

// What is known of a query's scores: their maximum, and the sum of exp(score - maximum).
struct RowState {
  float most, total;
};

// Scores become exp(score - maximum) and zero from `valid` on; gives what earlier sums have to be multiplied by.
template <class V>
SI_INLINE float exponentials(float* scores, const float* mask, float scale, int64_t valid, int64_t padded,
                             RowState* state) {
  using Reg = typename V::Reg;
  const Reg factor = V::broadcast(scale);
  const int64_t used = (valid + V::kWidth - 1) / V::kWidth * V::kWidth;
  Reg most = V::broadcast(kMinusInfinity);
  for (int64_t j = 0; j < used; j += V::kWidth) {
    Reg s = V::mul(V::load(scores + j), factor);
    if (mask != nullptr) s = V::add(s, load_part<V>(mask + j, valid - j));
    V::store(scores + j, s);
    if (j + V::kWidth <= valid) most = V::max(most, s);
  }
  for (int64_t j = valid; j < used; ++j) scores[j] = kMinusInfinity;
  if (valid < used) most = V::max(most, V::load(scores + used - V::kWidth));
  float lanes[V::kWidth];
  V::store(lanes, most);
  float highest = state->most;
  for (const float lane : lanes) highest = lane > highest ? lane : highest;
  // Where everything is masked so far, any shift will do that is a number.
  const Reg shift = V::broadcast(highest == kMinusInfinity ? 0.0f : highest);
  Reg total = V::broadcast(0.0f);
  for (int64_t j = 0; j < used; j += V::kWidth) {
    const Reg e = exp_of<V>(V::sub(V::load(scores + j), shift));
    V::store(scores + j, e);
    if (j + V::kWidth <= valid) total = V::add(total, e);
  }
  float sum = V::sum(total);
  for (int64_t j = valid / V::kWidth * V::kWidth; j < valid; ++j) sum += scores[j];
  for (int64_t j = valid; j < padded; ++j) scores[j] = 0.0f;
  V::store(lanes, exp_of<V>(V::sub(V::broadcast(state->most), shift)));
  const float before = lanes[0];
  state->total = state->total * before + sum;
  state->most = highest;
  return before;
}

template <class V>
void attend(const AttentionJob& job) {
  using Reg = typename V::Reg;
  constexpr int W = V::kWidth;
  const int64_t padded_dim = (job.dim + W - 1) / W * W;
  float* const keys = job.scratch;                                        // [dim][padded keys]
  float* const values = keys + kKeyBlock * ((job.dim + 15) / 16 * 16);    // [keys][padded dim], unless they stand right
  float* const scores = values + kKeyBlock * ((job.dim + 15) / 16 * 16);  // [kQueryRows][kKeyBlock]
  float* const sums = scores + kQueryRows * kKeyBlock;                    // [queries][padded dim]
  auto* const states = reinterpret_cast<RowState*>(sums + job.queries * padded_dim);
  for (int64_t i = 0; i < job.queries; ++i) states[i] = {kMinusInfinity, 0.0f};
  // Keys that come after every query are not looked at.
  const int64_t last = job.first + job.queries;
  const int64_t seen = job.causal && last < job.keys ? last : job.keys;
  for (int64_t k0 = 0; k0 < seen; k0 += kKeyBlock) {
    const int64_t count = seen - k0 < kKeyBlock ? seen - k0 : kKeyBlock, padded = (count + W - 1) / W * W;
    transpose_in<V>(job.k + k0 * job.ldk, job.ldk, count, job.dim, keys, padded, padded);
    const float* v = job.v + k0 * job.ldv;
    int64_t ldv = job.ldv;
    if (padded_dim != job.dim) {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t d = 0; d < padded_dim; d += W)
          V::store(values + j * padded_dim + d, load_part<V>(v + j * ldv + d, job.dim - d));
      v = values;
      ldv = padded_dim;
    }
    for (int64_t i = 0; i < job.queries; i += kQueryRows) {
      const int64_t rows = job.queries - i < kQueryRows ? job.queries - i : kQueryRows;
      product<V>(rows, job.q + i * job.ldq, job.ldq, keys, padded, job.dim, scores, kKeyBlock, padded, false);
      int64_t most = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t own = job.causal ? job.first + i + r + 1 - k0 : count;
        const int64_t valid = own < 0 ? 0 : own < count ? own : count;
        most = valid > most ? valid : most;
        const float* const mask = job.mask == nullptr ? nullptr : job.mask + (i + r) * job.mask_ld + k0;
        const float before = exponentials<V>(scores + r * kKeyBlock, mask, job.scale, valid, padded, &states[i + r]);
        if (k0 == 0) continue;
        float* const row = sums + (i + r) * padded_dim;
        for (int64_t d = 0; d < padded_dim; d += W) V::store(row + d, V::mul(V::broadcast(before), V::load(row + d)));
      }
      product<V>(rows, scores, kKeyBlock, v, ldv, most, sums + i * padded_dim, padded_dim, padded_dim, k0 != 0);
    }
  }
  for (int64_t i = 0; i < job.queries; ++i) {
    const bool masked = states[i].most == kMinusInfinity && states[i].total == states[i].total;
    const Reg share = V::broadcast(masked ? 0.0f : 1.0f / states[i].total);
    for (int64_t d = 0; d < job.dim; d += W) {
      const Reg sum = masked ? V::broadcast(0.0f) : V::load(sums + i * padded_dim + d);
      store_part<V>(job.y + i * job.ldy + d, V::mul(share, sum), job.dim - d);
    }
  }
}

}  // namespace
}  // namespace si
