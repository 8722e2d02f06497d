#include "kernels/source.h"

#include <limits>

#include "core/cpu.h"
#include "core/scratch.h"

namespace si {

si_status TileSource::ordered_bias(const float* bias, const float** out) const {
  *out = bias;
  if (bias == nullptr || order() == nullptr) return SI_OK;
  float* ordered = nullptr;
  SI_TRY(thread_scratch(Scratch::kBias, shape().M(), &ordered));
  *out = ordered;
  if (measures_scratch()) return SI_OK;
  for (int64_t position = 0; position < shape().M(); ++position) ordered[position] = bias[order()[position]];
  return SI_OK;
}

int64_t TileSource::cost(int64_t unit) const {
  const int64_t before = format_.work(weights_, unit);
  return before < 0 ? unit : before + unit * isa_.tuning.tile.empty_unit;
}

int64_t TileSource::split(int64_t first, int64_t last, int64_t part, int64_t parts) const {
  if (part <= 0) return first;
  if (part >= parts) return last;
  const int64_t begin = cost(first), want = begin + (cost(last) - begin) * part / parts;
  int64_t low = first, high = last;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (cost(middle) < want)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

void TileSource::tile(TileJob job, int64_t kstep) const {
  for (job.kfirst = 0; job.kfirst < units_.kblocks; job.kfirst = job.klast) {
    job.klast = std::min(job.kfirst + kstep, units_.kblocks);
    kernels_.tile(weights_, job);
  }
}

void TileSource::vector(const VectorJob& job) const { kernels_.vector(weights_, job); }

namespace {

// Index in kNarrowWidths of the least width that holds n tokens; kNarrowCount where none does.
int narrow_index(int64_t n) {
  int index = 0;
  while (index < kNarrowCount && n > kNarrowWidths[index]) ++index;
  return index;
}

}  // namespace

int TileSource::most_vectors() const {
  // What a thread packs of x stays within its scratch.
  const int64_t room = std::clamp<int64_t>(kScratchFloats / (shape().K() * isa_.width), 1, isa_.max_vectors);
  // A K block of x is read from near, whatever the whole of it takes.
  // The tiles of a small library are narrow.
  if (kSmall || kblock() < shape().K()) return static_cast<int>(room);
  const TileTuning& tuning = isa_.tuning.tile;
  const double row = static_cast<double>(shape().K() * isa_.width) * sizeof(float);
  const auto fitting = static_cast<int64_t>(tuning.l2_share * static_cast<double>(l2_bytes()) / row);
  return static_cast<int>(std::min(room, std::clamp<int64_t>(fitting, tuning.least_vectors, isa_.max_vectors)));
}

int64_t TileSource::least_narrow_width(int64_t n) const {
  const int index = narrow_index(n);
  if (index == kNarrowCount || kernels_.narrow[index] == nullptr) return 0;
  // One token, many values a column: a vector gathered once serves them all. Where weights come from far away it is
  // ahead until nearly every column has one value.
  const LinearTuning& tuning = isa_.tuning.linear;
  const double most = weights_.bytes <= tuning.near_bytes ? tuning.near_values : tuning.far_values;
  if (n == 1 && static_cast<double>(units_.values) > most * static_cast<double>(units_.loads)) return 0;
  return kNarrowWidths[index];
}

void TileSource::narrow(const TileJob& job, int64_t width) const {
  kernels_.narrow[narrow_index(width)](weights_, job);
}

double tiles_cost(const TileTuning& tuning, int64_t vectors, int max_vectors) {
  // In vectors of columns: wide tiles and few are worth an uneven cut.
  const auto tiles = static_cast<double>((vectors + max_vectors - 1) / max_vectors);
  return std::max(static_cast<double>(vectors), tuning.least_width * tiles) + tuning.tile_cost * tiles;
}

ColumnPlan plan_columns(const TileTuning& tuning, int64_t vectors, int max_vectors, int threads) {
  ColumnPlan plan{1, 0, vectors};
  int64_t tiles = 0;
  double least = 0.0;
  for (int64_t column_parts = threads; column_parts >= 1; --column_parts) {
    if (threads % column_parts != 0 || column_parts > vectors) continue;
    const int64_t per_part = (vectors + column_parts - 1) / column_parts;
    const int64_t tiles_per_part = (per_part + max_vectors - 1) / max_vectors;
    const int64_t row_parts = threads / column_parts;
    const double cost = tiles_cost(tuning, per_part, max_vectors) / static_cast<double>(row_parts);
    // Equal costs go to more column parts, which share no packed x and need not wait for each other.
    if (tiles != 0 && cost >= least) continue;
    least = cost;
    tiles = std::min(vectors, tiles_per_part * column_parts);
    plan.row_parts = row_parts;
  }
  plan.tiles = tiles;
  return plan;
}

Clamp clamp_of(si_activation activation) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  switch (activation) {
    case SI_ACT_RELU:
      return {0.0f, kInf};
    case SI_ACT_RELU6:
      return {0.0f, 6.0f};
    default:
      return {-kInf, kInf};
  }
}

int useful_threads(const ThreadTuning& tuning, int threads, int64_t multiply_adds) {
  // More threads than processors only take turns, and an OpenMP runtime that cannot start them all ends the process.
  const auto most = static_cast<int64_t>(std::max(processors(), tuning.granted));
  return static_cast<int>(
      std::clamp<int64_t>(multiply_adds / tuning.least_multiply_adds, 1, std::min<int64_t>(threads, most)));
}

}  // namespace si
