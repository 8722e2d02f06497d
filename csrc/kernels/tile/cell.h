// What a recurrent cell does with its gates, for one sequence: vectors over the H hidden units. The gates come in two
// parts, of the input (x) and of the state (s), each [gates][H] in torch's order. h and c are updated in place.
//
//   LSTM  i, f, o = sigmoid(x + s), g = tanh(x + s);  c = f c + i g;  h = o tanh(c)           gates i, f, g, o
//   GRU   r, z = sigmoid(x + s), n = tanh(x_n + r s_n);  h = (1 - z) n + z h                  gates r, z, n
//   RNN   h = tanh(x + s), or max(x + s, 0)
//
// Included by the instruction-set translation units only.
#pragma once

#include "core/inline.h"
#include "kernels/tile/activation.h"
#include "kernels/tile/tile.h"

namespace si {
namespace {

// The functions above on vectors; `at` is the offset of the unit, and every load and store goes through `io`.
template <class V, class Io>
SI_INLINE void cell_vector(si_cell cell, const Io& io, const CellJob& job, int64_t at) {
  using Reg = typename V::Reg;
  const auto x = [&](int gate) { return io.load(job.x + gate * job.hidden + at); };
  const auto s = [&](int gate) { return io.load(job.s + gate * job.hidden + at); };
  const auto sum = [&](int gate) { return V::add(x(gate), s(gate)); };
  switch (cell) {
    case SI_CELL_LSTM: {
      const Reg i = sigmoid_of<V>(sum(0)), f = sigmoid_of<V>(sum(1)), g = tanh_of<V>(sum(2)), o = sigmoid_of<V>(sum(3));
      const Reg c = V::fma(f, io.load(job.c + at), V::mul(i, g));
      io.store(job.c + at, c);
      io.store(job.h + at, V::mul(o, tanh_of<V>(c)));
      return;
    }
    case SI_CELL_GRU: {
      const Reg r = sigmoid_of<V>(sum(0)), z = sigmoid_of<V>(sum(1)), n = tanh_of<V>(V::fma(r, s(2), x(2)));
      io.store(job.h + at, V::fma(z, V::sub(io.load(job.h + at), n), n));
      return;
    }
    case SI_CELL_RNN_TANH:
      return io.store(job.h + at, tanh_of<V>(sum(0)));
    case SI_CELL_RNN_RELU:
      return io.store(job.h + at, V::max(V::broadcast(0.0f), sum(0)));
  }
}

template <class V>
struct WholeVector {
  SI_INLINE typename V::Reg load(const float* p) const { return V::load(p); }
  SI_INLINE void store(float* p, typename V::Reg a) const { V::store(p, a); }
};

// The last units, fewer than a vector.
template <class V>
struct PartVector {
  int count;
  SI_INLINE typename V::Reg load(const float* p) const {
    float all[V::kWidth] = {};
    for (int i = 0; i < count; ++i) all[i] = p[i];
    return V::load(all);
  }
  SI_INLINE void store(float* p, typename V::Reg a) const {
    float all[V::kWidth];
    V::store(all, a);
    for (int i = 0; i < count; ++i) p[i] = all[i];
  }
};

template <class V>
void cell(si_cell kind, const CellJob& job) {
  int64_t at = 0;
  for (; at + V::kWidth <= job.hidden; at += V::kWidth) cell_vector<V>(kind, WholeVector<V>{}, job, at);
  if (at < job.hidden) cell_vector<V>(kind, PartVector<V>{static_cast<int>(job.hidden - at)}, job, at);
}

}  // namespace
}  // namespace si
