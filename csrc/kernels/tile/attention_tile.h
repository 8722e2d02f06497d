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

// The words that the products are made of, along the dimension that they sum over: here each is one float.
template <class V>
struct Singles {
  using Vectors = V;
  using Word = float;
  using Words = typename V::Reg;
  static constexpr int64_t kEach = 1;  // elements of a word

  static SI_INLINE Words load(const Word* p) { return V::load(p); }
  static SI_INLINE Words spread(const Word* p) { return V::broadcast(*p); }
  static SI_INLINE typename V::Reg dot(typename V::Reg sum, Words a, Words b) { return V::fma(a, b, sum); }

  // Keys as [words of dim][padded], zero past `count`.
  static SI_INLINE void pack_keys(const float* k, int64_t ldk, int64_t count, int64_t dim, Word* to, int64_t padded) {
    transpose_in<V>(k, ldk, count, dim, to, padded, padded);
  }
  // Values as [words of count][padded_dim], where they stand or in `room`.
  static SI_INLINE const Word* values(const float* v, int64_t ldv, int64_t count, int64_t dim, int64_t padded_dim,
                                      Word* room, int64_t* ld) {
    *ld = ldv;
    if (padded_dim == dim) return v;
    for (int64_t j = 0; j < count; ++j)
      for (int64_t d = 0; d < padded_dim; d += V::kWidth)
        V::store(room + j * padded_dim + d, load_part<V>(v + j * ldv + d, dim - d));
    *ld = padded_dim;
    return room;
  }
  // Queries as [rows][words of dim], likewise.
  static SI_INLINE const Word* queries(const float* q, int64_t ldq, int64_t, int64_t, Word*, int64_t* ld) {
    *ld = ldq;
    return q;
  }
  // Rows of `count` elements, kKeyBlock apart, become words where they stand.
  static SI_INLINE const Word* narrow(float* rows, int64_t, int64_t) { return rows; }
};

template <class W, int kRows, int kVectors>
void product_tile(const typename W::Word* a, int64_t lda, const typename W::Word* b, int64_t ldb, int64_t depth,
                  float* c, int64_t ldc, bool more) {
  using V = typename W::Vectors;
  typename V::Reg sums[kRows][kVectors];
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int n = 0; n < kVectors; ++n) sums[r][n] =
        more ? V::load(c + r * ldc + n * V::kWidth) : V::broadcast(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename W::Words row[kVectors];
    SI_UNROLL for (int n = 0; n < kVectors; ++n) row[n] = W::load(b + k * ldb + n * V::kWidth);
    SI_UNROLL for (int r = 0; r < kRows; ++r) {
      const typename W::Words each = W::spread(a + r * lda + k);
      SI_UNROLL for (int n = 0; n < kVectors; ++n) sums[r][n] = W::dot(sums[r][n], each, row[n]);
    }
  }
  SI_UNROLL for (int r = 0; r < kRows; ++r) {
    SI_UNROLL for (int n = 0; n < kVectors; ++n) V::store(c + r * ldc + n * V::kWidth, sums[r][n]);
  }
}

// c[rows][columns] = a[rows][depth] b[depth][columns], or added to it; columns are a multiple of the vector.
template <class W, int kRows>
SI_INLINE void product_rows(const typename W::Word* a, int64_t lda, const typename W::Word* b, int64_t ldb,
                            int64_t depth, float* c, int64_t ldc, int64_t columns, bool more) {
  using V = typename W::Vectors;
  constexpr int kMost = V::kMaxVectors < 6 ? V::kMaxVectors : 6;
  const int64_t vectors = columns / V::kWidth, tiles = (vectors + kMost - 1) / kMost;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - first;
    const typename W::Word* const from = b + first * V::kWidth;
    float* const to = c + first * V::kWidth;
    switch (count) {
      case 1:
        product_tile<W, kRows, 1>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 2:
        product_tile<W, kRows, 2>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 3:
        product_tile<W, kRows, (kMost < 3 ? kMost : 3)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 4:
        product_tile<W, kRows, (kMost < 4 ? kMost : 4)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      case 5:
        product_tile<W, kRows, (kMost < 5 ? kMost : 5)>(a, lda, from, ldb, depth, to, ldc, more);
        break;
      default:
        product_tile<W, kRows, kMost>(a, lda, from, ldb, depth, to, ldc, more);
        break;
    }
  }
}

template <class W>
SI_INLINE void product(int64_t rows, const typename W::Word* a, int64_t lda, const typename W::Word* b, int64_t ldb,
                       int64_t depth, float* c, int64_t ldc, int64_t columns, bool more) {
  if (rows == kQueryRows) return product_rows<W, kQueryRows>(a, lda, b, ldb, depth, c, ldc, columns, more);
  for (int64_t r = 0; r < rows; ++r)
    product_rows<W, 1>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, more);
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
  for (int half = V::kWidth / 2; half > 0; half /= 2)
    SI_UNROLL for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  const float highest = lanes[0] > state->most ? lanes[0] : state->most;
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
  float before = 0.0f;
  if (state->most != kMinusInfinity) {
    V::store(lanes, exp_of<V>(V::sub(V::broadcast(state->most), shift)));
    before = lanes[0];
  }
  state->total = state->total * before + sum;
  state->most = highest;
  return before;
}

template <class W>
void attend_by(const AttentionJob& job) {
  using V = typename W::Vectors;
  using Reg = typename V::Reg;
  using Word = typename W::Word;
  constexpr int kWidth = V::kWidth;
  static_assert(sizeof(Word) == sizeof(float), "scratch is planned in floats");
  const auto words = [](int64_t elements) { return (elements + W::kEach - 1) / W::kEach; };
  const int64_t padded_dim = (job.dim + kWidth - 1) / kWidth * kWidth;
  const int64_t room = kKeyBlock * ((job.dim + kWidestVector - 1) / kWidestVector * kWidestVector);
  auto* const keys = reinterpret_cast<Word*>(job.scratch);           // [words of dim][padded keys]
  auto* const values = reinterpret_cast<Word*>(job.scratch + room);  // [words of keys][padded dim]
  Word* const query_words = values + room / 2;                       // of kQueryRows, where values take half the room
  float* const scores = job.scratch + 2 * room;                      // [kQueryRows][kKeyBlock]
  float* const sums = scores + kQueryRows * kKeyBlock;               // [queries][padded dim]
  auto* const states = reinterpret_cast<RowState*>(sums + job.queries * padded_dim);
  for (int64_t i = 0; i < job.queries; ++i) states[i] = {kMinusInfinity, 0.0f};
  // Keys that come after every query are not looked at.
  const int64_t last = job.first + job.queries;
  const int64_t seen = job.causal && last < job.keys ? last : job.keys;
  for (int64_t k0 = 0; k0 < seen; k0 += kKeyBlock) {
    const int64_t count = seen - k0 < kKeyBlock ? seen - k0 : kKeyBlock;
    const int64_t padded = (count + kWidth - 1) / kWidth * kWidth;
    W::pack_keys(job.k + k0 * job.ldk, job.ldk, count, job.dim, keys, padded);
    int64_t ldv = 0, ldq = 0;
    const Word* const v = W::values(job.v + k0 * job.ldv, job.ldv, count, job.dim, padded_dim, values, &ldv);
    for (int64_t i = 0; i < job.queries; i += kQueryRows) {
      const int64_t rows = job.queries - i < kQueryRows ? job.queries - i : kQueryRows;
      const Word* const q = W::queries(job.q + i * job.ldq, job.ldq, rows, job.dim, query_words, &ldq);
      product<W>(rows, q, ldq, keys, padded, words(job.dim), scores, kKeyBlock, padded, false);
      int64_t most = 0;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t own = job.causal ? job.first + i + r + 1 - k0 : count;
        const int64_t valid = own < 0 ? 0 : own < count ? own : count;
        most = valid > most ? valid : most;
        const float* const mask = job.mask == nullptr ? nullptr : job.mask + (i + r) * job.mask_ld + k0;
        const float before = exponentials<V>(scores + r * kKeyBlock, mask, job.scale, valid, padded, &states[i + r]);
        if (k0 == 0) continue;
        float* const row = sums + (i + r) * padded_dim;
        for (int64_t d = 0; d < padded_dim; d += kWidth)
          V::store(row + d, V::mul(V::broadcast(before), V::load(row + d)));
      }
      const Word* const weights = W::narrow(scores, rows, most);
      product<W>(rows, weights, kKeyBlock, v, ldv, words(most), sums + i * padded_dim, padded_dim, padded_dim, k0 != 0);
    }
  }
  for (int64_t i = 0; i < job.queries; ++i) {
    const bool masked = states[i].most == kMinusInfinity && states[i].total == states[i].total;
    const Reg share = V::broadcast(masked ? 0.0f : 1.0f / states[i].total);
    for (int64_t d = 0; d < job.dim; d += kWidth) {
      const Reg sum = masked ? V::broadcast(0.0f) : V::load(sums + i * padded_dim + d);
      store_part<V>(job.y + i * job.ldy + d, V::mul(share, sum), job.dim - d);
    }
  }
}

template <class V>
void attend(const AttentionJob& job) {
  attend_by<Singles<V>>(job);
}

}  // namespace
}  // namespace si
