// THE page of measured constants: what the packers and the drivers decide by, and what an instruction set has of its
// own.
//
// They stand here, below formats/ and kernels/, because both read them. How each was measured is in DECISIONS.md; the
// benchmarks are `python -m benchmarks.run --suite kernels` and, for the order of costs, `make counts`.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/target.h"

namespace si {

// K blocks of the panel format, chosen when a weight is packed (formats/panel/kblock.h).
struct KBlockTuning {
  // Of convolutions: channels whose taps are a block. Narrow tiles leave room for more than the wide ones of AVX-512.
  int64_t many_channels = 256;  // from here on `of_many`
  double dense = 0.15;          // from this density on `of_few_dense`
  int64_t of_few = 64, of_few_dense = 64, of_many = 128;
  // Of linear layers called with many tokens, and of kernels of one tap: columns of a block from each density on; 0 for
  // none, where more of K is near already.
  double column_density[3] = {0.25, 0.15, 0.075};
  int64_t columns[3] = {0, 0, 0};
};

// The order of rows, when a panel weight is packed.
struct RowOrderTuning {
  int64_t row_columns = 16;  // storing a row of a linear layer out of order costs about as much as so many columns
  uint64_t least_share = 8;  // rows move where that spares one of so many columns
};

struct LinearTuning {
  // Without a narrow tile: up to here one pass over the weights a token, in cache after the first, beats a tile that is
  // mostly empty.
  int64_t vector_tokens = 4;
  // Non-zeros of a part of the weight that stays in cache from token to token, and the most parts.
  int64_t part_nnz = 32 * 1024;
  int64_t most_parts = 256;
  // Values of x that one thread brings into place sooner than two agree on it.
  int64_t pack_alone = 32 * 1024;
  // Output rows of a narrow tile before they are moved to y.
  int64_t narrow_rows = 64;
  // Weights that a core finds in its own cache from call to call, and the values a column from which one token is
  // computed by gathering x rather than by the narrow tile, for those weights and for others.
  uint64_t near_bytes = 1 << 20;
  double near_values = 1.7, far_values = 1.2;
  // Multiply-adds that take as long as bringing one value of x to the int8 or paired weights of a panel, for one token.
  int64_t gathered_value = 16;
};

struct ConvTuning {
  // Floats of the nearest cache, of which a K block's part of the image gets as much as it needs.
  int64_t cache_floats = 8192;
  // Non-zeros a column from which copying an image pays, so that its rows start on half a cache line; and from which a
  // copy for each column of the kernel pays.
  int64_t copy_column_nnz = 8, apart_column_nnz = 3;
  // Those copies are made only for vectors of at least so many floats: shorter ones straddle two cache lines seldom.
  int apart_vector_floats = 16;
  // The most copies, and the share of garbage columns, one in so many, that their pitch may add.
  int64_t most_apart = 3, apart_garbage = 7;
  // A copied element costs about as much as so many multiply-adds of a vector's element.
  double copy_cost = 4.0;
  // Of int8 weights: what a unit costs more, less so much for each of its quads, where it reads x as it stands and not
  // from rows copied for a tile, on lines of a cache; and what copying a row costs.
  double apart_unit = 3.0, apart_quad = 0.5, copied_row = 1.25;
  // Output rows that a strip has at least, in rows that it shares with its neighbours.
  int64_t strip_halos = 4;
};

struct TileTuning {
  // Output rows computed before they are moved out of the scratch tile: few, so that they stay in the nearest cache,
  // or, where a K block of x stays there instead, many that use the block in turn. Multiples of every vector width.
  int64_t batch_rows = 16, blocked_batch_rows = 128;
  // What of L2 holds x while weights stream by: half of it holds less than it should, for the weights, and what they
  // push out, take their part.
  double l2_share = 0.4;
  // Vectors of a tile at least, however small L2: one would wait for its own additions.
  int64_t least_vectors = 2;
  // What a tile costs beside its columns, and the width below which a tile waits for its own additions, in vectors.
  double tile_cost = 1.5, least_width = 2.5;
  // What a panel or a row costs when it is empty, in non-zeros: its output is written.
  int64_t empty_unit = 16;
};

struct ThreadTuning {
  // Multiply-adds worth waking a thread for.
  int64_t least_multiply_adds = 100000;
  // So many threads are granted on any machine, so that small ones run the code that large ones do.
  int granted = 16;
};

struct Tuning {
  KBlockTuning kblock;
  RowOrderTuning row_order;
  TileTuning tile;
  LinearTuning linear;
  ConvTuning conv;
  ThreadTuning threads;
};

// ---- What instruction sets have of their own --------------------------------------------------------------------

constexpr Tuning tuning_of(Isa isa) {
  Tuning tuning;
  if (isa == Isa::avx512) {
    // A tile is wide and reads three copies of an image (kernels/conv/image.h): half as many channels where each column
    // has so many values that loads of x are what takes the time, and an image is likely to be large.
    tuning.kblock.of_few = 32;
    tuning.kblock.of_few_dense = 16;
    tuning.kblock.of_many = 32;
    // The fewer values, the shorter the loops of a block, until it gains nothing.
    tuning.kblock.columns[0] = 128;
    tuning.kblock.columns[1] = 192;
    tuning.kblock.columns[2] = 256;
  }
  return tuning;
}

// That of the widest instruction set that a target runs.
inline Tuning tuning_of(const si_target& target) {
  return tuning_of(target_runs(target, Isa::avx512) ? Isa::avx512 : Isa::scalar);
}

}  // namespace si
