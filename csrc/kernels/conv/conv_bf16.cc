#include "kernels/conv/conv_bf16.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv/half_image.h"
#include "kernels/scalar/scalar.h"
#include "kernels/source.h"

namespace si {

namespace {

// Output rows of one image, computed together: their pixels are cut in tiles, which hold no others.
struct HalfBand {
  const void* x;  // of the image
  void* y;
  int64_t first_row, rows, columns;
  const HalfImage* padded;  // null where x is read as it stands
  const uint16_t* halves;
  const int32_t* taps;
  int64_t most_width;  // of its tiles

  int64_t pixels() const { return rows * columns; }
  int64_t tiles() const { return (pixels() + most_width - 1) / most_width; }
  int64_t tile_pixels(int64_t tile) const { return std::min(most_width, pixels() - tile * most_width); }
};

struct ConvBf16 {
  const TileSource& source;
  const si_conv_args& args;
  const float* const bias;  // by position
  const ConvGeometry geometry;

  const TileKernels& isa() const { return source.isa(); }
  const PairKernels& kernels() const { return *isa().pairs; }
  int64_t K() const { return source.shape().K(); }
  int64_t area() const { return args.h * args.w; }
  int64_t pixels() const { return geometry.oh * geometry.ow; }

  // The x of one group of a tile.
  void pack(const HalfBand& band, int64_t tile, int64_t group, uint16_t* to) const {
    if (measures_scratch()) return;
    const int64_t valid = band.tile_pixels(tile), width = kDwordWidths[dword_width_index(valid)];
    const int64_t first = tile * band.most_width;
    if (band.padded == nullptr) {
      const int64_t at = group * geometry.group_channels * area() + first;
      const auto* x = static_cast<const uint8_t*>(band.x) + at * element_bytes(args.x_type);
      for (int64_t k = 0; k < K(); ++k)
        kernels().narrow(x + k * area() * element_bytes(args.x_type), args.x_type, valid, to + k * width);
      return;
    }
    // In bytes, and no longer than a vector.
    constexpr int64_t kSize = sizeof(uint16_t), kLongest = 64 / kSize;
    ByteRun runs[kMostDwordWidth];
    int64_t count = 0;
    for (int64_t n = 0; n < valid;) {
      const int64_t row = (first + n) / band.columns, column = (first + n) % band.columns;
      const int64_t length = std::min({band.columns - column, valid - n, kLongest});
      runs[count++] = {n * kSize, length * kSize, (row * band.padded->row_step() + column) * kSize};
      n += length;
    }
    const auto* image = reinterpret_cast<const uint8_t*>(band.halves + group * band.padded->group_stride());
    kernels().copy({image, band.taps, K(), runs, count, width * kSize, 1, reinterpret_cast<uint8_t*>(to)});
  }

  // Units [first, last), all of one group, by a packed tile.
  si_status run_tile(const HalfBand& band, int64_t tile, int64_t first, int64_t last, const uint16_t* x) const {
    const int64_t valid = band.tile_pixels(tile), width = kDwordWidths[dword_width_index(valid)];
    const int64_t pixel = band.first_row * geometry.ow + tile * band.most_width;
    const auto y_of = [&](int64_t position) {
      const int64_t row = source.order() == nullptr ? position : source.order()[position];
      return static_cast<uint8_t*>(band.y) + (row * pixels() + pixel) * element_bytes(args.y_type);
    };
    const bool half = args.y_type == SI_BF16;
    const Clamp clamp = clamp_of(args.activation);
    const bool direct = source.order() == nullptr && valid == width && is_clamp(args.activation);
    PairJob job{};
    job.x = x;
    job.out.bias = bias;
    job.out.low = clamp.low;
    job.out.high = clamp.high;
    job.out.ldy = direct ? pixels() : width;
    const int64_t batch = isa().tuning.tile.batch_rows, step = source.units_for_rows(batch);
    float* scratch = nullptr;
    SI_TRY(thread_scratch(Scratch::kOutput, batch * width, &scratch));
    if (measures_scratch()) return SI_OK;
    for (int64_t unit = first; unit < last; unit += step) {
      job.first = unit;
      job.last = std::min(unit + step, last);
      job.out.row0 = source.row_of(unit);
      const int64_t rows = source.row_of(job.last) - job.out.row0;
      job.out.halves = direct && half ? reinterpret_cast<uint16_t*>(y_of(job.out.row0)) : nullptr;
      job.out.floats = !direct ? scratch : half ? nullptr : reinterpret_cast<float*>(y_of(job.out.row0));
      kernels().tile[dword_width_index(width)](source.weights(), job);
      if (direct) continue;
      for (int64_t m = 0; m < rows; ++m) {
        float* const row = scratch + m * width;
        if (!is_clamp(args.activation)) isa().activate(row, valid, args.activation);
        if (half)
          kernels().narrow(row, SI_F32, valid, reinterpret_cast<uint16_t*>(y_of(job.out.row0 + m)));
        else
          std::memcpy(y_of(job.out.row0 + m), row, static_cast<size_t>(valid) * sizeof(float));
      }
    }
    return SI_OK;
  }

  // Every thread packs the tiles that it computes; where tiles are few, threads divide the rows of each.
  si_status run_band(const HalfBand& band, int threads) const {
    const int64_t parts = band.tiles() < threads ? threads : 1, per_group = source.units_per_group();
    return parallel_for(threads, band.tiles() * parts, [&](int64_t item) -> si_status {
      const int64_t tile = item / parts, part = item % parts;
      uint16_t* x = nullptr;
      SI_TRY(thread_scratch(Scratch::kTile, (K() + 1) * band.most_width, &x));
      const int64_t first = source.split(0, source.units(), part, parts);
      const int64_t last = source.split(0, source.units(), part + 1, parts);
      for (int64_t unit = first; unit < last;) {
        const int64_t group = unit / per_group, end = std::min(last, (group + 1) * per_group);
        pack(band, tile, group, x);
        SI_TRY(run_tile(band, tile, unit, end, x));
        unit = end;
      }
      return SI_OK;
    });
  }

  si_status fill(const HalfImage& padded, const void* x, uint16_t* halves, int threads) const {
    const int64_t channels = geometry.channels, parts = std::min<int64_t>(threads, channels);
    return parallel_for(threads, parts, [&](int64_t part) -> si_status {
      uint16_t* room = nullptr;
      SI_TRY(thread_scratch(Scratch::kOutput, args.w, &room));
      if (measures_scratch()) return SI_OK;
      padded.fill(kernels(), x, channels * part / parts, channels * (part + 1) / parts, room, halves);
      return SI_OK;
    });
  }

  si_status run_image(int64_t image, int64_t rows, int threads) const {
    HalfBand band{};
    band.x = static_cast<const uint8_t*>(args.x) + image * geometry.channels * area() * element_bytes(args.x_type);
    band.y = static_cast<uint8_t*>(args.y) + image * source.shape().M() * pixels() * element_bytes(args.y_type);
    band.columns = geometry.ow;
    band.most_width = kernels().most_width;
    if (is_pointwise(geometry, args)) {
      band.rows = geometry.oh;
      return run_band(band, threads);
    }
    for (; band.first_row < geometry.oh; band.first_row += rows) {
      band.rows = std::min(rows, geometry.oh - band.first_row);
      const HalfImage padded(geometry, args, band.first_row, band.rows);
      uint16_t* halves = nullptr;
      int32_t* taps = nullptr;
      SI_TRY(thread_scratch(Scratch::kInput, padded.halves(), &halves));
      SI_TRY(thread_scratch(Scratch::kTaps, K(), &taps));
      if (!measures_scratch()) padded.taps(taps);
      SI_TRY(fill(padded, band.x, halves, threads));
      band.padded = &padded;
      band.halves = halves;
      band.taps = taps;
      SI_TRY(run_band(band, threads));
    }
    return SI_OK;
  }

  si_status run(int64_t rows, int threads) const {
    if (args.batch < threads) {
      for (int64_t image = 0; image < args.batch; ++image) SI_TRY(run_image(image, rows, threads));
      return SI_OK;
    }
    return parallel_for(threads, args.batch, [&](int64_t image) { return run_image(image, rows, 1); });
  }
};

}  // namespace

si_status conv_bf16(const TileKernels& isa, const si_weights& weights, const si_conv_args& args) {
  ConvGeometry geometry;
  SI_TRY(conv_geometry(weights.shape, args, &geometry));
  if (args.batch == 0) return SI_OK;
  const auto fits = [&](int64_t rows) { return HalfImage(geometry, args, 0, rows).halves() <= HalfImage::kMost; };
  int64_t rows = geometry.oh;
  while (rows > 1 && !fits(rows)) rows = (rows + 1) / 2;
  // Taps so far apart that no padded image holds what one output row reads.
  if (!is_pointwise(geometry, args) && !fits(rows)) return scalar_conv_bf16(weights, args);
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  // Two products of bfloat16 take about as long as one of float32.
  const int64_t per_pixel = weights.nnz / 2 + weights.shape.M() + geometry.channels;
  const int threads =
      useful_threads(isa.tuning.threads, args.threads, per_pixel * args.batch * geometry.oh * geometry.ow);
  return ConvBf16{source, args, bias, geometry}.run(rows, threads);
}

}  // namespace si
