#include "kernels/linear/linear_bf16.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "formats/panel/pairs.h"
#include "kernels/linear/dword_tiles.h"
#include "kernels/source.h"

namespace si {

namespace {

struct LinearBf16 {
  const TileSource& source;
  const si_linear_args& args;
  const float* const bias;  // by position
  const int threads;

  const TileKernels& isa() const { return source.isa(); }
  const PairKernels& pairs() const { return *isa().pairs; }
  int64_t K() const { return source.shape().K(); }
  int64_t most_width() const { return pairs().most_width; }
  int64_t packed_rows() const { return K(); }
  bool tokens() const { return args.layout == SI_TOKEN_MAJOR; }
  bool in_order() const { return source.order() == nullptr; }
  bool half_output() const { return args.y_type == SI_BF16; }

  // The first element of x of token n, and the place in y of the row at a position and token n.
  const void* x_of(int64_t k, int64_t n) const {
    const int64_t at = tokens() ? n * args.ldx + k : k * args.ldx + n;
    return static_cast<const uint8_t*>(args.x) + at * element_bytes(args.x_type);
  }
  void* y_of(int64_t position, int64_t n) const {
    const int64_t row = in_order() ? position : source.order()[position];
    const int64_t at = tokens() ? n * args.ldy + row : row * args.ldy + n;
    return static_cast<uint8_t*>(args.y) + at * element_bytes(args.y_type);
  }

  // Columns [k0, k1) of a tile's x. What lies past its tokens stays as it is.
  void pack(const DwordTile& tile, int64_t k0, int64_t k1, uint16_t* to) const {
    if (measures_scratch()) return;
    const int64_t valid = std::min(tile.width, args.n - tile.n0);
    if (tokens())
      return pairs().transpose(x_of(k0, tile.n0), args.x_type, args.ldx, valid, k1 - k0, to + k0 * tile.width,
                               tile.width);
    for (int64_t k = k0; k < k1; ++k) pairs().narrow(x_of(k, tile.n0), args.x_type, valid, to + k * tile.width);
  }

  // `count` results that stand side by side in y, from float32.
  void store(const float* from, int64_t count, void* to) const {
    if (half_output())
      pairs().narrow(from, SI_F32, count, static_cast<uint16_t*>(to));
    else
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
  }

  // Brings rows of a tile to y.
  void finish(float* c, int64_t ld, int64_t row0, int64_t rows, int64_t n0, int64_t valid) const {
    if (!is_clamp(args.activation))
      for (int64_t m = 0; m < rows; ++m) isa().activate(c + m * ld, valid, args.activation);
    if (!tokens()) {
      for (int64_t m = 0; m < rows; ++m) store(c + m * ld, valid, y_of(row0 + m, n0));
    } else if (!in_order()) {
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t n = 0; n < valid; ++n) store(c + m * ld + n, 1, y_of(row0 + m, n0 + n));
    } else if (half_output()) {
      pairs().transpose(c, SI_F32, ld, rows, valid, static_cast<uint16_t*>(y_of(row0, n0)), args.ldy);
    } else {
      isa().transpose_out(c, ld, rows, valid, static_cast<float*>(y_of(row0, n0)), args.ldy);
    }
  }

  // Panels [first, last) by the columns of a tile, whose x is packed.
  si_status run_tile(int64_t first, int64_t last, const DwordTile& tile, const uint16_t* x) const {
    const int64_t width = tile.width, valid = std::min(width, args.n - tile.n0);
    const Clamp clamp = clamp_of(args.activation);
    PairJob job{};
    job.x = x;
    job.out.bias = bias;
    job.out.low = clamp.low;
    job.out.high = clamp.high;
    const bool direct = !tokens() && in_order() && valid == width && is_clamp(args.activation);
    job.out.ldy = direct ? args.ldy : width;
    const int64_t batch = isa().tuning.tile.batch_rows * 2, step = source.units_for_rows(batch);
    float* scratch = nullptr;
    // A transposition reads past the rows.
    if (!direct) SI_TRY(thread_scratch(Scratch::kOutput, batch * width + isa().width, &scratch));
    if (measures_scratch()) return SI_OK;
    for (int64_t unit = first; unit < last; unit += step) {
      const int64_t end = std::min(unit + step, last);
      const int64_t row0 = source.row_of(unit), rows = source.row_of(end) - row0;
      job.first = unit;
      job.last = end;
      job.out.row0 = row0;
      job.out.halves = direct && half_output() ? static_cast<uint16_t*>(y_of(row0, tile.n0)) : nullptr;
      job.out.floats = !direct ? scratch : half_output() ? nullptr : static_cast<float*>(y_of(row0, tile.n0));
      pairs().tile[dword_width_index(width)](source.weights(), job);
      if (!direct) finish(scratch, width, row0, rows, tile.n0, valid);
    }
    return SI_OK;
  }

  // The x of one token.
  void pack_token(uint16_t* x) const {
    if (measures_scratch()) return;
    if (tokens() || args.ldx == 1)
      pairs().narrow(args.x, args.x_type, K(), x);
    else
      for (int64_t k = 0; k < K(); ++k) pairs().narrow(x_of(k, 0), args.x_type, 1, x + k);
  }

  si_status one_token() const {
    uint16_t* x = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, K(), &x));
    pack_token(x);
    return parallel_for(threads, threads, [&](int64_t part) -> si_status {
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      if (first >= last) return SI_OK;
      const int64_t row0 = source.row_of(first), rows = source.row_of(last) - row0;
      const Clamp clamp = clamp_of(args.activation);
      PairVectorJob job{};
      job.x = x;
      job.first = first;
      job.last = last;
      SI_TRY(thread_scratch(Scratch::kTaps, 2 * gathered_halves(K()), &job.gathered));
      SI_TRY(thread_scratch(Scratch::kOutput, rows, &job.out.floats));
      if (measures_scratch()) return SI_OK;
      job.out.row0 = row0;
      job.out.bias = bias;
      job.out.low = clamp.low;
      job.out.high = clamp.high;
      pairs().vector(source.weights(), job);
      if (!is_clamp(args.activation)) isa().activate(job.out.floats, rows, args.activation);
      if (in_order() && (tokens() || args.ldy == 1))
        store(job.out.floats, rows, y_of(row0, 0));
      else
        for (int64_t m = 0; m < rows; ++m) store(job.out.floats + m, 1, y_of(row0 + m, 0));
      return SI_OK;
    });
  }
};

}  // namespace

si_status linear_bf16(const TileKernels& isa, const si_weights& weights, const si_linear_args& args) {
  if (args.n == 0) return SI_OK;
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  // Two products of bfloat16 take about as long as one of float32, and the least tile as long as a full one.
  const int64_t columns = std::max(args.n, kDwordWidths[0]);
  const int64_t work = args.n == 1 ? static_cast<int64_t>(weights.panel.columns) * isa.tuning.linear.gathered_value
                                   : (weights.nnz / 2 + weights.shape.M()) * columns;
  const int threads = useful_threads(isa.tuning.threads, args.threads, work);
  const LinearBf16 call{source, args, bias, threads};
  return args.n == 1 ? call.one_token() : DwordTiles<uint16_t, LinearBf16>(call).run();
}

}  // namespace si
