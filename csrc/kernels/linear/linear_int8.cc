#include "kernels/linear/linear_int8.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/linear/dword_tiles.h"
#include "kernels/quantized.h"
#include "kernels/source.h"
#include "kernels/tile/coarse_gelu.h"

namespace si {

namespace {

struct LinearInt8 {
  const TileSource& source;
  const si_linear_args& args;
  const float* const bias;  // by position
  const int threads;
  const Residual residual;

  const TileKernels& isa() const { return source.isa(); }
  const ByteKernels& bytes() const { return *isa().bytes; }
  const si_quantization& quantization() const { return *args.quantization; }
  int64_t M() const { return source.shape().M(); }
  int64_t K() const { return source.shape().K(); }
  bool tokens() const { return args.layout == SI_TOKEN_MAJOR; }
  bool each() const { return quantization().x_scales != nullptr; }
  bool byte_output() const { return args.y_type == SI_U8; }
  // Whether tiles compute GELU: its error is far below a step from byte to byte.
  bool gelu() const {
    return byte_output() && args.activation == SI_ACT_GELU && quantization().y_scale >= 32 * kCoarseGelu;
  }
  bool activates_in_tiles() const { return is_clamp(args.activation) || gelu(); }
  // Bytes that are clamped after another activation are floats before it.
  bool byte_tiles() const { return byte_output() && activates_in_tiles(); }
  int64_t most_width() const { return bytes().most_width; }
  int64_t packed_rows() const { return source.g() == 1 ? K() : (K() + 3) / 4 * 4; }

  // Where x of token n begins, and the element of y, and of the residual, of the row at a position and token n.
  const void* x_of(int64_t n) const {
    const int64_t at = tokens() ? n * args.ldx : n;
    return static_cast<const uint8_t*>(args.x) + at * element_bytes(args.x_type);
  }
  int64_t element_of(int64_t position, int64_t n) const {
    const int64_t row = source.order() == nullptr ? position : source.order()[position];
    return tokens() ? n * args.ldy + row : row * args.ldy + n;
  }
  void* y_of(int64_t position, int64_t n) const {
    return static_cast<uint8_t*>(args.y) + element_of(position, n) * element_bytes(args.y_type);
  }

  // Columns [k0, k1) of a tile's x.
  void pack(const DwordTile& tile, int64_t k0, int64_t k1, uint8_t* to) const {
    if (measures_scratch()) return;
    const int64_t valid = std::min(tile.width, args.n - tile.n0);
    ToByte rules[kMostDwordWidth];
    if (args.x_type == SI_F32)
      for (int64_t n = 0; n < (each() ? valid : 1); ++n) rules[n] = x_to_byte(quantization(), tile.n0 + n);
    bytes().pack({x_of(tile.n0), args.ldx, args.x_type == SI_F32, tokens(), k0, k1, valid, tile.width, source.g(),
                  rules, each(), to});
  }

  ByteOutput output() const {
    ByteOutput out = si::byte_output(quantization(), args.activation, args.y_type, bias);
    out.gelu = gelu();
    return out;
  }

  // Brings rows of a tile, `floats` or `packed`, to y.
  void finish(float* floats, uint8_t* packed, int64_t ld, int64_t row0, int64_t rows, int64_t n0, int64_t valid,
              const ByteOutput& out) const {
    // Columns past `valid` hold numbers too.
    if (floats != nullptr && !is_clamp(args.activation)) isa().activate(floats, rows * ld, args.activation);
    if (floats != nullptr && byte_output()) bytes().quantize(floats, rows * ld, out.to, packed);
    const bool in_order = source.order() == nullptr;
    if (tokens() && in_order && !byte_output())
      return isa().transpose_out(floats, ld, rows, valid, static_cast<float*>(y_of(row0, n0)), args.ldy);
    if (tokens() && in_order)
      return bytes().transpose_out(packed, ld, rows, valid, static_cast<uint8_t*>(y_of(row0, n0)), args.ldy);
    const int64_t size = element_bytes(args.y_type);
    const uint8_t* from = byte_output() ? packed : reinterpret_cast<const uint8_t*>(floats);
    if (!tokens() && in_order)
      return bytes().copy_rows(
          {from, ld * size, static_cast<uint8_t*>(y_of(row0, n0)), args.ldy * size, rows, valid * size, 1});
    for (int64_t m = 0; m < rows; ++m) {
      const uint8_t* row = from + m * ld * size;
      if (!tokens())
        std::memcpy(y_of(row0 + m, n0), row, static_cast<size_t>(valid * size));
      else
        for (int64_t n = 0; n < valid; ++n)
          std::memcpy(y_of(row0 + m, n0 + n), row + n * size, static_cast<size_t>(size));
    }
  }

  // Brings the residual of rows of a tile to `room`, but where it can be read as it stands.
  void bring_residual(const DwordTile& tile, int64_t row0, int64_t rows, void* room, ByteOutput* out) const {
    const int64_t width = tile.width, valid = std::min(width, args.n - tile.n0), size = residual.element_bytes();
    const uint8_t* const from = residual.at(element_of(row0, tile.n0));
    const bool in_order = source.order() == nullptr;
    if (in_order && !tokens() && valid == width) return residual.give(out, from, args.ldy);
    residual.give(out, room, width);
    if (in_order && tokens() && residual.bytes)
      return bytes().pack(
          {from, args.ldy, false, true, 0, rows, valid, width, 1, nullptr, false, static_cast<uint8_t*>(room)});
    if (in_order && tokens())
      return isa().transpose_in(reinterpret_cast<const float*>(from), args.ldy, valid, rows, static_cast<float*>(room),
                                width, width);
    if (in_order)
      return bytes().copy_rows(
          {from, args.ldy * size, static_cast<uint8_t*>(room), width * size, rows, valid * size, 1});
    for (int64_t m = 0; m < rows; ++m) {
      uint8_t* const row = static_cast<uint8_t*>(room) + m * width * size;
      for (int64_t n = 0; n < valid; n += tokens() ? 1 : valid)
        std::memcpy(row + n * size, residual.at(element_of(row0 + m, tile.n0 + n)),
                    static_cast<size_t>((tokens() ? 1 : valid) * size));
    }
  }

  // Panels [first, last) by the columns of a tile, whose x is packed.
  si_status run_tile(int64_t first, int64_t last, const DwordTile& tile, const uint8_t* x) const {
    const int64_t width = tile.width, valid = std::min(width, args.n - tile.n0);
    float scales[kMostDwordWidth] = {};
    int32_t zero_points[kMostDwordWidth] = {};
    ByteJob job{};
    job.x = x;
    job.out = output();
    if (each()) {
      for (int64_t n = 0; n < valid; ++n) {
        scales[n] = x_scale(quantization(), tile.n0 + n);
        zero_points[n] = x_zero_point(quantization(), tile.n0 + n);
      }
      job.out.x_scales = scales;
      job.out.x_zero_points = zero_points;
    }
    const bool direct = !tokens() && source.order() == nullptr && valid == width && byte_tiles() == byte_output() &&
                        activates_in_tiles();
    const int64_t batch = isa().tuning.tile.batch_rows * 4, step = source.units_for_rows(batch);
    float* floats = nullptr;
    float* added = nullptr;
    uint8_t* packed = nullptr;
    if (!direct || residual.any()) {
      float* scratch = nullptr;
      // Rows of floats, of the residual and of bytes, and what a transposition reads past them.
      SI_TRY(thread_scratch(Scratch::kOutput, batch * width * 3 + isa().width, &scratch));
      if (!byte_tiles()) floats = scratch;
      added = scratch + batch * width;
      packed = reinterpret_cast<uint8_t*>(scratch + 2 * batch * width);
    }
    if (measures_scratch()) return SI_OK;
    for (int64_t unit = first; unit < last; unit += step) {
      const int64_t end = std::min(unit + step, last);
      const int64_t row0 = source.row_of(unit), rows = source.row_of(end) - row0;
      job.first = unit;
      job.last = end;
      job.out.row0 = row0;
      void* const c = direct ? y_of(row0, tile.n0) : byte_tiles() ? static_cast<void*>(packed) : floats;
      job.out.bytes = byte_tiles() ? static_cast<uint8_t*>(c) : nullptr;
      job.out.floats = byte_tiles() ? nullptr : static_cast<float*>(c);
      job.out.ldy = direct ? args.ldy : width;
      if (residual.any()) bring_residual(tile, row0, rows, added, &job.out);
      bytes().tile[dword_width_index(width)](source.weights(), job);
      if (!direct) finish(floats, packed, width, row0, rows, tile.n0, valid, job.out);
    }
    return SI_OK;
  }

  // The x of one token.
  void pack_token(uint8_t* x) const {
    if (measures_scratch()) return;
    const ToByte rule = x_to_byte(quantization(), 0);
    const int64_t step = tokens() ? 1 : args.ldx;
    if (args.x_type == SI_F32 && step == 1) {
      bytes().quantize(static_cast<const float*>(args.x), K(), rule, x);
    } else {
      for (int64_t k = 0; k < K(); ++k)
        x[k] = args.x_type == SI_U8 ? static_cast<const uint8_t*>(args.x)[k * step]
                                    : quantize(static_cast<const float*>(args.x)[k * step], rule);
    }
    std::fill(x + K(), x + packed_rows(), uint8_t{0});
  }

  si_status one_token() const {
    uint8_t* x = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, packed_rows() + 64, &x));
    pack_token(x);
    return parallel_for(threads, threads, [&](int64_t part) -> si_status {
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      if (first >= last) return SI_OK;
      const int64_t row0 = source.row_of(first), rows = source.row_of(last) - row0;
      ByteVectorJob job{};
      job.x = x;
      job.first = first;
      job.last = last;
      SI_TRY(thread_scratch(Scratch::kTaps, 2 * gathered_bytes(K()), &job.gathered));
      float* scratch = nullptr;
      SI_TRY(thread_scratch(Scratch::kOutput, 3 * rows + isa().width, &scratch));
      if (measures_scratch()) return SI_OK;
      uint8_t* packed = reinterpret_cast<uint8_t*>(scratch + 2 * rows);
      job.out = output();
      job.out.row0 = row0;
      job.out.x_scale = x_scale(quantization(), 0);
      job.out.x_zero_point = x_zero_point(quantization(), 0);
      job.out.bytes = byte_tiles() ? packed : nullptr;
      job.out.floats = byte_tiles() ? nullptr : scratch;
      const bool contiguous = source.order() == nullptr && (tokens() || args.ldy == 1);
      if (residual.any() && contiguous) {
        residual.give(&job.out, residual.at(row0), 1);
      } else if (residual.any()) {
        uint8_t* const added = reinterpret_cast<uint8_t*>(scratch + rows);
        for (int64_t m = 0, each = residual.element_bytes(); m < rows; ++m)
          std::memcpy(added + m * each, residual.at(element_of(row0 + m, 0)), static_cast<size_t>(each));
        residual.give(&job.out, added, 1);
      }
      bytes().vector(source.weights(), job);
      if (!byte_tiles() && !is_clamp(args.activation)) isa().activate(scratch, rows, args.activation);
      if (!byte_tiles() && byte_output()) bytes().quantize(scratch, rows, job.out.to, packed);
      const int64_t size = element_bytes(args.y_type);
      const uint8_t* from = byte_output() ? packed : reinterpret_cast<const uint8_t*>(scratch);
      if (contiguous)
        std::memcpy(y_of(row0, 0), from, static_cast<size_t>(rows * size));
      else
        for (int64_t m = 0; m < rows; ++m) std::memcpy(y_of(row0 + m, 0), from + m * size, static_cast<size_t>(size));
      return SI_OK;
    });
  }
};

}  // namespace

si_status linear_int8(const TileKernels& isa, const si_weights& weights, const si_linear_args& args) {
  if (args.n == 0) return SI_OK;
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  // Four products of bytes take about as long as one of floats, and the least tile as long as a full one.
  const int64_t columns = std::max(args.n, kDwordWidths[0]);
  const int64_t work = args.n == 1 ? static_cast<int64_t>(weights.panel.columns) * isa.tuning.linear.gathered_value
                                   : (weights.nnz / 4 + weights.shape.M()) * columns;
  const int threads = useful_threads(isa.tuning.threads, args.threads, work);
  const LinearInt8 call{source, args, bias, threads, residual_of(args)};
  return args.n == 1 ? call.one_token() : DwordTiles<uint8_t, LinearInt8>(call).run();
}

}  // namespace si
