// One weight seen by the drivers: units of output rows (a panel, or a row) that a tile kernel can run in any range.
#pragma once

#include <algorithm>

#include "formats/weights.h"
#include "kernels/tile/tile.h"

namespace si {

class TileSource {
 public:
  TileSource(const TileKernels& isa, const si_weights& weights)
      : isa_(isa),
        weights_(weights),
        format_(*format_of(weights.format)),
        kernels_(isa.formats[weights.format]),
        units_(format_.units(weights)) {}

  const TileKernels& isa() const { return isa_; }
  const WeightShape& shape() const { return weights_.shape; }
  int64_t nnz() const { return weights_.nnz; }
  const si_weights& weights() const { return weights_; }
  // Of a panel of int8 values: the columns that an index stands for.
  int32_t g() const { return weights_.panel.g; }

  int64_t units_per_group() const { return units_.per_group; }
  int64_t units() const { return units_per_group() * shape().groups; }
  // The position of a unit's first row; of units(), M. Kernels count rows by position.
  int64_t row_of(int64_t unit) const {
    if (units_.rows == 1) return unit;
    return unit / units_.per_group * (shape().M() / shape().groups) + unit % units_.per_group * units_.rows;
  }
  // The output row at each position; null where every row stands at its own.
  const uint32_t* order() const { return units_.order; }
  // The bias by position: `bias` itself, or a copy in the calling thread's scratch. Null stays null.
  [[nodiscard]] si_status ordered_bias(const float* bias, const float** ordered) const;
  // Units that together hold at most `rows` output rows, a multiple of 4.
  int64_t units_for_rows(int64_t rows) const { return rows / units_.rows; }
  // Cuts [first, last) in `parts` of near-equal work: the first unit of part `part`.
  int64_t split(int64_t first, int64_t last, int64_t part, int64_t parts) const;

  // Columns of a K block; K where all of it is one block.
  int64_t kblock() const { return units_.kblock != 0 ? units_.kblock : shape().K(); }
  // Where the weight has K blocks: `kstep` of them, then the next, each for all units of the job.
  void tile(TileJob job, int64_t kstep) const;
  void vector(const VectorJob& job) const;
  // Vectors of the widest tile whose columns of x, K rows of them, stay in L2 while weights stream by.
  int most_vectors() const;
  // The width that `narrow` computes n tokens in: 4, 8, 16 or 32; 0 where there is no kernel for so many.
  int64_t narrow_width(int64_t n) const { return kSmall ? 0 : least_narrow_width(n); }
  void narrow(const TileJob& job, int64_t width) const;

 private:
  int64_t least_narrow_width(int64_t n) const;
  // Work before a unit: grows with the unit.
  int64_t cost(int64_t unit) const;

  const TileKernels& isa_;
  const si_weights& weights_;
  const Format& format_;
  const FormatKernels& kernels_;
  const Units units_;
};

// How a call is cut: its columns in tiles, and the rows of each tile in `row_parts` for as many threads.
struct ColumnPlan {
  int64_t row_parts;
  int64_t tiles, vectors;
  // Of each tile, and one past the last.
  int64_t first_vector(int64_t tile) const { return vectors * tile / tiles; }
};

// What columns of so many vectors cost, in near-equal tiles: their width, and per tile the reading of weights and
// indices.
double tiles_cost(const TileTuning& tuning, int64_t vectors, int max_vectors);

// `vectors` vectors of columns over `threads` threads. Tiles are near equal, no wider than the widest kernel, and their
// number suits the threads.
ColumnPlan plan_columns(const TileTuning& tuning, int64_t vectors, int max_vectors, int threads);

// The clamp that an activation is, or none.
struct Clamp {
  float low, high;
};
Clamp clamp_of(si_activation activation);
inline bool is_clamp(si_activation a) { return a == SI_ACT_NONE || a == SI_ACT_RELU || a == SI_ACT_RELU6; }

// Threads worth waking: a call of few multiply-adds is done before another thread has started.
int useful_threads(const ThreadTuning& tuning, int threads, int64_t multiply_adds);

}  // namespace si
