#include "kernels/source.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <thread>

#include "core/cpu.h"
#include "core/error.h"
#include "core/scratch.h"

namespace si {

namespace {

// No row of the registry brings such a weight here.
[[noreturn]] void fail_untiled() { fail(SI_ERR_INTERNAL, "the bsr format has no tile kernels"); }

}  // namespace

int64_t TileSource::units_per_group() const {
  if (weights_.format == SI_FORMAT_PANEL) return weights_.panel.panels_per_group;
  return shape().M() / shape().groups;
}

int64_t TileSource::row_of(int64_t unit) const {
  if (weights_.format == SI_FORMAT_PANEL)
    return unit == weights_.panel.panels ? shape().M() : weights_.panel.row_of(unit);
  return unit;
}

const float* TileSource::ordered_bias(const float* bias) const {
  if (bias == nullptr || order() == nullptr) return bias;
  float* ordered = thread_scratch(Scratch::kBias, shape().M());
  for (int64_t position = 0; position < shape().M(); ++position) ordered[position] = bias[order()[position]];
  return ordered;
}

int64_t TileSource::units_for_rows(int64_t rows) const {
  return weights_.format == SI_FORMAT_PANEL ? rows / kPanelRows : rows;
}

int64_t TileSource::kblock() const {
  const bool blocked = weights_.format == SI_FORMAT_PANEL && weights_.panel.kblock != 0;
  return blocked ? weights_.panel.kblock : std::max<int64_t>(shape().K(), 1);
}

int64_t TileSource::cost(int64_t unit) const {
  // A unit costs something even when it is empty: its output is written.
  constexpr int64_t kUnit = 16;
  switch (weights_.format) {
    case SI_FORMAT_PANEL: {
      const PanelView& view = weights_.panel;
      if (unit == view.panels) return static_cast<int64_t>(view.values) + unit * kUnit;
      uint64_t values = 0;
      for (int64_t block = 0; block < view.kblocks; ++block)
        values += view.entry_of(block, unit).value_offset - view.entry_of(block, 0).value_offset;
      return static_cast<int64_t>(values) + unit * kUnit;
    }
    case SI_FORMAT_CSR:
      return static_cast<int64_t>(weights_.csr.row[unit]) + unit * kUnit;
    case SI_FORMAT_NM:
    case SI_FORMAT_BSR:
      break;
  }
  return unit;
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
  switch (weights_.format) {
    case SI_FORMAT_PANEL: {
      const int64_t blocks = weights_.panel.kblocks;
      for (job.kfirst = 0; job.kfirst < blocks; job.kfirst = job.klast) {
        job.klast = std::min(job.kfirst + kstep, blocks);
        isa_.panel_tile(weights_.panel, job);
      }
      return;
    }
    case SI_FORMAT_CSR:
      return isa_.csr_tile(weights_.csr, job);
    case SI_FORMAT_NM:
      return isa_.nm_tile(weights_.nm, job);
    case SI_FORMAT_BSR:
      fail_untiled();
  }
}

void TileSource::vector(const VectorJob& job) const {
  switch (weights_.format) {
    case SI_FORMAT_PANEL:
      return isa_.panel_vector(weights_.panel, job);
    case SI_FORMAT_CSR:
      return isa_.csr_vector(weights_.csr, job);
    case SI_FORMAT_NM:
      return isa_.nm_vector(weights_.nm, job);
    case SI_FORMAT_BSR:
      fail_untiled();
  }
}

namespace {

// Weights that a core finds in its own cache from call to call.
constexpr uint64_t kNearBytes = 1 << 20;

constexpr int64_t kNarrowWidths[] = {1, 4, 8, 16, 32};

// Index in TileKernels::panel_narrow of the least width that holds n tokens.
size_t narrow_index(int64_t n) {
  size_t index = 0;
  while (index < std::size(kNarrowWidths) && n > kNarrowWidths[index]) ++index;
  return index;
}

}  // namespace

int TileSource::most_vectors() const {
  // What a thread packs of x stays within its scratch.
  const int64_t room = std::clamp<int64_t>(kScratchFloats / (shape().K() * isa_.width), 1, isa_.max_vectors);
  // A K block of x is read from near, whatever the whole of it takes.
  if (kblock() < shape().K()) return static_cast<int>(room);
  // Half of L2 holds less than it should: the weights, and what they push out, take their part.
  constexpr double kShare = 0.4;
  // One vector would wait for its own additions.
  constexpr int64_t kLeast = 2;
  const double row = static_cast<double>(shape().K() * isa_.width) * sizeof(float);
  const auto fitting = static_cast<int64_t>(kShare * static_cast<double>(l2_bytes()) / row);
  return static_cast<int>(std::min(room, std::clamp<int64_t>(fitting, kLeast, isa_.max_vectors)));
}

int64_t TileSource::narrow_width(int64_t n) const {
  const size_t index = narrow_index(n);
  if (weights_.format != SI_FORMAT_PANEL) return 0;
  // One token, many values a column: a vector gathered once serves them all. Where weights come from far away it is
  // ahead until nearly every column has one value.
  const PanelView& panel = weights_.panel;
  const double most = weights_.bytes <= kNearBytes ? 1.7 : 1.2;
  if (n == 1 && static_cast<double>(panel.values) > most * static_cast<double>(panel.columns)) return 0;
  const bool found = index < std::size(isa_.panel_narrow) && isa_.panel_narrow[index] != nullptr;
  return found ? kNarrowWidths[index] : 0;
}

void TileSource::narrow(const TileJob& job, int64_t width) const {
  isa_.panel_narrow[narrow_index(width)](weights_.panel, job);
}

double tiles_cost(int64_t vectors, int max_vectors) {
  // In vectors of columns: wide tiles and few are worth an uneven cut, and a tile narrower than kLeast waits for its
  // own additions.
  constexpr double kTileCost = 1.5, kLeast = 2.5;
  const auto tiles = static_cast<double>((vectors + max_vectors - 1) / max_vectors);
  return std::max(static_cast<double>(vectors), kLeast * tiles) + kTileCost * tiles;
}

ColumnPlan plan_columns(int64_t vectors, int max_vectors, int threads) {
  ColumnPlan plan;
  int64_t tiles = 0;
  double least = 0.0;
  for (int64_t column_parts = threads; column_parts >= 1; --column_parts) {
    if (threads % column_parts != 0 || column_parts > vectors) continue;
    const int64_t per_part = (vectors + column_parts - 1) / column_parts;
    const int64_t tiles_per_part = (per_part + max_vectors - 1) / max_vectors;
    const int64_t row_parts = threads / column_parts;
    const double cost = tiles_cost(per_part, max_vectors) / static_cast<double>(row_parts);
    // Equal costs go to more column parts, which share no packed x and need not wait for each other.
    if (tiles != 0 && cost >= least) continue;
    least = cost;
    tiles = std::min(vectors, tiles_per_part * column_parts);
    plan.row_parts = row_parts;
  }
  for (int64_t i = 0; i <= tiles; ++i) plan.first_vector.push_back(vectors * i / tiles);
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

int useful_threads(int threads, int64_t multiply_adds) {
  constexpr int64_t kPerThread = 100000;
  // More threads than processors only take turns, and an OpenMP runtime that cannot start them all ends the process. Up
  // to kFew are granted anywhere, so that small machines run the code that large ones do.
  constexpr unsigned kFew = 16;
  static const auto most = static_cast<int64_t>(std::max(std::thread::hardware_concurrency(), kFew));
  return static_cast<int>(std::clamp<int64_t>(multiply_adds / kPerThread, 1, std::min<int64_t>(threads, most)));
}

}  // namespace si
