#include "kernels/linear/linear.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/source.h"

namespace si {

namespace {

struct Linear {
  const TileSource& source;
  const si_linear_args& args;
  const float* const bias;  // by position
  const Clamp clamp;
  const int threads;

  const TileKernels& isa() const { return source.isa(); }
  const Tuning& tuning() const { return isa().tuning; }
  const float* given_x() const { return static_cast<const float*>(args.x); }
  float* given_y() const { return static_cast<float*>(args.y); }
  int64_t M() const { return source.shape().M(); }
  int64_t K() const { return source.shape().K(); }

  // Where y keeps the row at a position, for token n.
  float* output(int64_t position, int64_t n) const {
    const int64_t row = source.order() == nullptr ? position : source.order()[position];
    return given_y() + (args.layout == SI_TOKEN_MAJOR ? n * args.ldy + row : row * args.ldy + n);
  }

  // Rows of [first, last) for tokens [n0, n0 + count), one at a time; x is the first one's.
  si_status run_vector(int64_t first, int64_t last, const float* x, int64_t ldx, int64_t n0, int64_t count) const {
    const int64_t row0 = source.row_of(first), rows = source.row_of(last) - row0;
    // For one token both layouts are the same when channels are not spaced out; scatter otherwise.
    const bool tokens = args.layout == SI_TOKEN_MAJOR;
    const bool direct = source.order() == nullptr && (tokens || (args.n == 1 && args.ldy == 1));
    float* scratch = nullptr;
    if (!direct) SI_TRY(thread_scratch(Scratch::kOutput, rows, &scratch));
    if (measures_scratch()) return SI_OK;
    for (int64_t n = n0; n < n0 + count; ++n) {
      float* y = direct ? given_y() + (tokens ? n * args.ldy : 0) + row0 : scratch;
      source.vector({x + (n - n0) * ldx, y, first, last, row0, bias, clamp.low, clamp.high});
      if (!is_clamp(args.activation)) isa().activate(y, rows, args.activation);
      if (!direct)
        for (int64_t m = 0; m < rows; ++m) *output(row0 + m, n) = y[m];
    }
    return SI_OK;
  }

  // Channels are turned to as many tokens at a time as scratch holds.
  si_status few_tokens() const {
    if (args.layout == SI_TOKEN_MAJOR || (args.n == 1 && args.ldx == 1))
      return few_tokens_of(given_x(), args.ldx, 0, args.n);
    const int64_t at_once = std::clamp<int64_t>(kScratchFloats / K(), 1, args.n);
    float* tokens = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, at_once * K(), &tokens));
    for (int64_t n0 = 0; n0 < args.n; n0 += at_once) {
      const int64_t count = std::min(at_once, args.n - n0);
      for (int64_t k = 0; k < K() && !measures_scratch(); ++k)
        for (int64_t n = 0; n < count; ++n) tokens[n * K() + k] = given_x()[k * args.ldx + n0 + n];
      SI_TRY(few_tokens_of(tokens, K(), n0, count));
    }
    return SI_OK;
  }

  si_status few_tokens_of(const float* x, int64_t ldx, int64_t n0, int64_t count) const {
    // Several parts a thread, so that a part's weights stay in cache from token to token.
    const LinearTuning& tuned = tuning().linear;
    const int64_t parts = std::clamp<int64_t>(count == 1 ? threads : source.nnz() / tuned.part_nnz, threads,
                                              std::max<int64_t>(threads, tuned.most_parts));
    return parallel_for(threads, parts, [&](int64_t part) -> si_status {
      const int64_t first = source.split(0, source.units(), part, parts);
      const int64_t last = source.split(0, source.units(), part + 1, parts);
      return first < last ? run_vector(first, last, x, ldx, n0, count) : SI_OK;
    });
  }

  // Brings columns [n0, n0 + width) of x to dst[K][width]; columns past N are zero. Writes up to a vector past them.
  void pack(int64_t n0, int64_t width, float* dst, int64_t k0, int64_t k1) const {
    const int64_t valid = std::min(width, args.n - n0);
    if (measures_scratch()) return;
    if (args.layout == SI_TOKEN_MAJOR) {
      const int64_t padded = (width + isa().width - 1) / isa().width * isa().width;
      isa().transpose_in(given_x() + n0 * args.ldx + k0, args.ldx, valid, k1 - k0, dst + k0 * width, width, padded);
      return;
    }
    for (int64_t k = k0; k < k1; ++k) {
      float* to = dst + k * width;
      std::memcpy(to, given_x() + k * args.ldx + n0, static_cast<size_t>(valid) * sizeof(float));
      std::fill(to + valid, to + width, 0.0f);
    }
  }

  // Applies the activation to `valid` columns of a finished tile and, unless it stands in y already, brings them there
  // from column n0 on.
  void finish(const TileJob& job, int64_t rows, int64_t n0, int64_t valid, bool direct) const {
    if (!is_clamp(args.activation))
      for (int64_t m = 0; m < rows; ++m) isa().activate(job.c + m * job.ldc, valid, args.activation);
    if (direct) return;
    if (args.layout == SI_CHANNEL_MAJOR)
      for (int64_t m = 0; m < rows; ++m)
        std::memcpy(output(job.row0 + m, n0), job.c + m * job.ldc, static_cast<size_t>(valid) * sizeof(float));
    else if (source.order() == nullptr)
      isa().transpose_out(job.c, job.ldc, rows, valid, output(job.row0, n0), args.ldy);
    else
      for (int64_t n = 0; n < valid; ++n)
        for (int64_t m = 0; m < rows; ++m) *output(job.row0 + m, n0 + n) = job.c[m * job.ldc + n];
  }

  // Units [first, last) by the columns [n0, n0 + padded), x packed.
  si_status run_tile(int64_t first, int64_t last, int64_t n0, int64_t padded, const float* x) const {
    const int64_t valid = std::min(padded, args.n - n0);
    TileJob job{};
    job.x = {x, padded, nullptr};
    job.vectors = static_cast<int>(padded / isa().width);
    job.bias = bias;
    job.low = clamp.low;
    job.high = clamp.high;
    const bool direct = source.order() == nullptr && args.layout == SI_CHANNEL_MAJOR && valid == padded;
    const int64_t batch = source.kblock() < K() ? tuning().tile.blocked_batch_rows : tuning().tile.batch_rows;
    const int64_t step = source.units_for_rows(batch);
    float* scratch = nullptr;
    if (!direct) SI_TRY(thread_scratch(Scratch::kOutput, batch * padded, &scratch));
    if (measures_scratch()) return SI_OK;
    for (int64_t unit = first; unit < last; unit += step) {
      const int64_t end = std::min(unit + step, last);
      const int64_t row0 = source.row_of(unit), rows = source.row_of(end) - row0;
      job.first = unit;
      job.last = end;
      job.row0 = row0;
      job.c = direct ? given_y() + row0 * args.ldy + n0 : scratch;
      job.ldc = direct ? args.ldy : padded;
      source.tile(job, 1);
      finish(job, rows, n0, valid, direct);
    }
    return SI_OK;
  }

  // All tokens in one narrow tile.
  si_status few_tokens_at_once(int64_t width) const {
    // One token needs no moving where its values, or its results, stand side by side.
    const bool tokens = args.layout == SI_TOKEN_MAJOR;
    const bool in_place = width == 1 && (tokens || args.ldx == 1);
    const bool direct = width == 1 && source.order() == nullptr && (tokens || args.ldy == 1);
    const float* x = given_x();
    if (!in_place) {
      float* packed = nullptr;
      SI_TRY(thread_scratch(Scratch::kInput, K() * width + isa().width, &packed));
      // Slices of rows narrower than a vector would write into each other.
      const int slices = K() * width > tuning().linear.pack_alone && width % isa().width == 0 ? threads : 1;
      SI_TRY(parallel_for(slices, slices, [&](int64_t slice) {
        pack(0, width, packed, K() * slice / slices, K() * (slice + 1) / slices);
      }));
      x = packed;
    }
    const int64_t batch = tuning().linear.narrow_rows;
    return parallel_for(threads, threads, [&](int64_t part) -> si_status {
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      TileJob job{};
      job.x = {x, width, nullptr};
      job.bias = bias;
      job.low = clamp.low;
      job.high = clamp.high;
      job.ldc = width;
      float* scratch = nullptr;
      if (!direct) SI_TRY(thread_scratch(Scratch::kOutput, batch * width + isa().width, &scratch));
      if (measures_scratch()) return SI_OK;
      const int64_t step = source.units_for_rows(batch);
      for (job.first = first; job.first < last; job.first = job.last) {
        job.last = std::min(job.first + step, last);
        job.row0 = source.row_of(job.first);
        job.c = direct ? given_y() + job.row0 : scratch;
        source.narrow(job, width);
        const int64_t rows = source.row_of(job.last) - job.row0;
        // Side by side, the rows of one token are activated in one go.
        if (direct && !is_clamp(args.activation)) isa().activate(job.c, rows, args.activation);
        if (!direct) finish(job, rows, 0, args.n, false);
      }
      return SI_OK;
    });
  }

  si_status tiles() const {
    const int64_t width = isa().width, vectors = (args.n + width - 1) / width;
    // Threads of a small library take tiles alone.
    ColumnPlan plan = plan_columns(tuning().tile, vectors, source.most_vectors(), kSmall ? 1 : threads);
    if (kSmall) return columns(plan, 0);
    // Where threads share the packed x, as many columns at a time as it has room for.
    const int64_t bands = plan.row_parts == 1 ? 1 : (K() * vectors * width + kScratchFloats - 1) / kScratchFloats;
    for (int64_t band = 0; band < bands; ++band) {
      const int64_t first = vectors * band / bands, count = vectors * (band + 1) / bands - first;
      if (bands > 1) plan = plan_columns(tuning().tile, count, source.most_vectors(), threads);
      SI_TRY(columns(plan, first * width));
    }
    return SI_OK;
  }

  // The tiles of a plan, whose columns begin at n_first.
  si_status columns(const ColumnPlan& plan, int64_t n_first) const {
    const auto begin = [&](int64_t tile) { return plan.first_vector(tile) * isa().width; };
    if (kSmall || plan.row_parts == 1) {
      return parallel_for(threads, plan.tiles, [&](int64_t tile) -> si_status {
        const int64_t n0 = n_first + begin(tile), padded = begin(tile + 1) - begin(tile);
        float* x = nullptr;
        SI_TRY(thread_scratch(Scratch::kInput, K() * padded, &x));
        pack(n0, padded, x, 0, K());
        return run_tile(0, source.units(), n0, padded, x);
      });
    }
    // Few columns: threads share the packed x and divide the rows.
    float* x = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, K() * begin(plan.tiles), &x));
    const int64_t slices = std::max<int64_t>(threads, 1);
    SI_TRY(parallel_for(threads, plan.tiles * slices, [&](int64_t item) {
      const int64_t tile = item / slices, slice = item % slices;
      const int64_t at = begin(tile), padded = begin(tile + 1) - at;
      pack(n_first + at, padded, x + K() * at, K() * slice / slices, K() * (slice + 1) / slices);
    }));
    const int64_t row_parts = plan.row_parts;
    return parallel_for(threads, plan.tiles * row_parts, [&](int64_t item) -> si_status {
      const int64_t tile = item / row_parts, part = item % row_parts;
      const int64_t at = begin(tile), padded = begin(tile + 1) - at;
      const int64_t first = source.split(0, source.units(), part, row_parts);
      const int64_t last = source.split(0, source.units(), part + 1, row_parts);
      return first < last ? run_tile(first, last, n_first + at, padded, x + K() * at) : SI_OK;
    });
  }
};

}  // namespace

si_status linear(const TileKernels& isa, const si_weights& weights, const si_linear_args& args) {
  if (args.n == 0) return SI_OK;
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  const Linear call{source, args, bias, clamp_of(args.activation),
                    useful_threads(isa.tuning.threads, args.threads, (weights.nnz + weights.shape.M()) * args.n)};
  const int64_t K = weights.shape.K(), narrow = source.narrow_width(args.n);
  // A token of so many columns that scratch holds no vector of them is read where it stands.
  if (narrow == 1 || (narrow != 0 && K * narrow <= kScratchFloats)) return call.few_tokens_at_once(narrow);
  if (args.n <= isa.tuning.linear.vector_tokens || K * isa.width > kScratchFloats) return call.few_tokens();
  return call.tiles();
}

}  // namespace si
