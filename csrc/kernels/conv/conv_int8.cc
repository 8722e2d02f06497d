#include "kernels/conv/conv_int8.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv/byte_image.h"
#include "kernels/quantized.h"
#include "kernels/source.h"

namespace si {

namespace {

// Output rows of one image, computed together: their pixels are cut in tiles, which hold no others.
struct Band {
  const void* x;  // of the image
  void* y;
  int64_t first;  // element of all of y of the image
  int64_t first_row, rows, columns;
  int64_t most_width;       // of its tiles
  const ByteImage* padded;  // null where x is read as it stands
  const uint8_t* bytes;
  const int32_t* taps;  // where x is read by offsets; else null

  int64_t pixels() const { return rows * columns; }
  int64_t tiles() const { return (pixels() + most_width - 1) / most_width; }
  int64_t tile_pixels(int64_t tile) const { return std::min(most_width, pixels() - tile * most_width); }
};

// The x of one group of a tile: packed, or as it stands, where its taps are.
struct TileBytes {
  const uint8_t* x;
  const int32_t* taps;
};

// Whether tiles read x as it stands sooner than rows of its own are copied for each.
bool reads_in_place(const ConvTuning& tuning, const PanelView& view) {
  if (view.g != 1) return false;
  const double units = static_cast<double>(view.columns) / 4, quads = static_cast<double>(view.values);
  const auto rows = static_cast<double>(view.shape.K() * view.shape.groups);
  return tuning.apart_unit * units - tuning.apart_quad * quads < tuning.copied_row * rows;
}

struct ConvInt8 {
  const TileSource& source;
  const si_conv_args& args;
  const float* const bias;  // by position
  const ConvGeometry geometry;
  const ToByte x_rule;
  const Residual residual;
  const bool in_place;

  const TileKernels& isa() const { return source.isa(); }
  const ByteKernels& kernels() const { return *isa().bytes; }
  int64_t M() const { return source.shape().M(); }
  int64_t K() const { return source.shape().K(); }
  int64_t groups() const { return source.shape().groups; }
  int64_t area() const { return args.h * args.w; }
  int64_t pixels() const { return geometry.oh * geometry.ow; }
  bool bytes_out() const { return args.y_type == SI_U8; }
  // Bytes that are clamped after another activation are floats before it.
  bool byte_tiles() const { return bytes_out() && is_clamp(args.activation); }
  // Rows of bytes of a packed tile of one group.
  int64_t packed_rows() const { return source.g() == 1 ? K() : (K() + 3) / 4 * 4; }

  // The x of one group of a tile as it stands; null where it has to be packed. The padded image has room for what a
  // tile reads past it.
  TileBytes standing(const Band& band, int64_t tile, int64_t group) const {
    const int64_t valid = band.tile_pixels(tile), first = tile * band.most_width;
    if (!in_place || band.taps == nullptr) return {nullptr, nullptr};
    if (band.padded != nullptr) return {band.bytes + group * band.padded->group_stride() + first, band.taps};
    if (valid != kDwordWidths[dword_width_index(valid)]) return {nullptr, nullptr};
    return {static_cast<const uint8_t*>(band.x) + group * geometry.group_channels * area() + first, band.taps};
  }

  // The same, packed to `room` where it has to be.
  TileBytes bring(const Band& band, int64_t tile, int64_t group, uint8_t* room) const {
    const TileBytes there = standing(band, tile, group);
    if (there.x != nullptr) return there;
    pack(band, tile, group, room);
    return {room, nullptr};
  }

  // The x of one group of a tile.
  void pack(const Band& band, int64_t tile, int64_t group, uint8_t* to) const {
    if (measures_scratch()) return;
    const int64_t valid = band.tile_pixels(tile), width = kDwordWidths[dword_width_index(valid)];
    const int64_t first = tile * band.most_width;
    if (is_pointwise(geometry, args)) {
      const int64_t at = group * geometry.group_channels * area() + band.first_row * geometry.ow + first;
      const auto* x = static_cast<const uint8_t*>(band.x) + at * element_bytes(args.x_type);
      kernels().pack({x, area(), args.x_type == SI_F32, false, 0, K(), valid, width, source.g(), &x_rule, false, to});
      return;
    }
    if (band.padded == nullptr) {
      pack_plainly(band, first, valid, width, group, to);
      return;
    }
    const ByteRun run{0, valid, first};
    const uint8_t* const image = band.bytes + group * band.padded->group_stride();
    kernels().copy({image, band.taps, K(), &run, 1, width, source.g(), to});
  }

  // Pixel by pixel, where taps lie so far apart that no padded image holds them.
  void pack_plainly(const Band& band, int64_t first, int64_t valid, int64_t width, int64_t group, uint8_t* to) const {
    for (int64_t k = 0; k < K(); ++k) {
      const int64_t channel = group * geometry.group_channels + k / (geometry.kh * geometry.kw);
      const int64_t kr = k / geometry.kw % geometry.kh, kc = k % geometry.kw;
      for (int64_t n = 0; n < valid; ++n) {
        const int64_t r = band.first_row + (first + n) / band.columns, c = (first + n) % band.columns;
        const int64_t row =
            padded_source(r * args.stride[0] + kr * args.dilation[0] - args.padding[0], args.h, args.padding_mode);
        const int64_t column =
            padded_source(c * args.stride[1] + kc * args.dilation[1] - args.padding[2], args.w, args.padding_mode);
        const int64_t at = channel * area() + row * args.w + column;
        auto byte = static_cast<uint8_t>(args.quantization->x_zero_point);
        if (row >= 0 && column >= 0)
          byte = args.x_type == SI_U8 ? static_cast<const uint8_t*>(band.x)[at]
                                      : quantize(static_cast<const float*>(band.x)[at], x_rule);
        to[source.g() == 1 ? k * width + n : (k / 4 * width + n) * 4 + k % 4] = byte;
      }
    }
  }

  // Units [first, last), all of one group, by a tile.
  si_status run_tile(const Band& band, int64_t tile, int64_t first, int64_t last, const TileBytes& bytes) const {
    const int64_t valid = band.tile_pixels(tile), width = kDwordWidths[dword_width_index(valid)];
    const int64_t pixel = band.first_row * geometry.ow + tile * band.most_width, size = element_bytes(args.y_type);
    const auto element_of = [&](int64_t position) {
      const int64_t row = source.order() == nullptr ? position : source.order()[position];
      return row * pixels() + pixel;
    };
    const auto y_of = [&](int64_t position) { return static_cast<uint8_t*>(band.y) + element_of(position) * size; };
    ByteJob job{};
    job.x = bytes.x;
    job.taps = bytes.taps;
    job.out = byte_output(*args.quantization, args.activation, args.y_type, bias);
    const bool whole = source.order() == nullptr && valid == width;
    const bool direct = whole && byte_tiles() == bytes_out();
    // Calls piece(row, element of y, rows) for rows of a tile that follow one another in y too.
    const auto each_piece = [&](int64_t row0, int64_t rows, const auto& piece) {
      if (source.order() == nullptr) return piece(int64_t{0}, element_of(row0), rows);
      for (int64_t m = 0; m < rows; ++m) piece(m, element_of(row0 + m), int64_t{1});
    };
    // As many rows as the scratch holds; all of them where nothing passes through it.
    const int64_t batch = isa().tuning.tile.batch_rows * 4;
    const int64_t step = direct && is_clamp(args.activation) ? last - first : source.units_for_rows(batch);
    float* scratch = nullptr;
    SI_TRY(thread_scratch(Scratch::kOutput, 3 * batch * width, &scratch));
    if (measures_scratch()) return SI_OK;
    auto* const packed = reinterpret_cast<uint8_t*>(scratch + batch * width);
    auto* const added = reinterpret_cast<uint8_t*>(scratch + 2 * batch * width);
    for (int64_t unit = first; unit < last; unit += step) {
      job.first = unit;
      job.last = std::min(unit + step, last);
      job.out.row0 = source.row_of(unit);
      const int64_t rows = source.row_of(job.last) - job.out.row0;
      void* const c = direct ? y_of(job.out.row0) : byte_tiles() ? static_cast<void*>(packed) : scratch;
      job.out.bytes = byte_tiles() ? static_cast<uint8_t*>(c) : nullptr;
      job.out.floats = byte_tiles() ? nullptr : static_cast<float*>(c);
      job.out.ldy = direct ? pixels() : width;
      if (residual.any() && whole) {
        residual.give(&job.out, residual.at(band.first + element_of(job.out.row0)), pixels());
      } else if (residual.any()) {
        each_piece(job.out.row0, rows, [&](int64_t row, int64_t in_y, int64_t count) {
          const int64_t each = residual.element_bytes();
          kernels().copy_rows({residual.at(band.first + in_y), pixels() * each, added + row * width * each,
                               width * each, count, valid * each, 1});
        });
        residual.give(&job.out, added, width);
      }
      kernels().tile[dword_width_index(width)](source.weights(), job);
      for (int64_t m = 0; m < rows && !is_clamp(args.activation); ++m) {
        isa().activate(job.out.floats + m * job.out.ldy, valid, args.activation);
        if (bytes_out()) kernels().quantize(scratch + m * width, valid, job.out.to, packed + m * width);
      }
      if (direct) continue;
      const auto* const from = bytes_out() ? packed : reinterpret_cast<const uint8_t*>(scratch);
      each_piece(job.out.row0, rows, [&](int64_t row, int64_t in_y, int64_t count) {
        kernels().copy_rows({from + row * width * size, width * size, static_cast<uint8_t*>(band.y) + in_y * size,
                             pixels() * size, count, valid * size, 1});
      });
    }
    return SI_OK;
  }

  // Units [first, last) by a tile, group by group; x_of_group gives a group's x.
  template <class XOfGroup>
  si_status run_units(const Band& band, int64_t tile, int64_t first, int64_t last, const XOfGroup& x_of_group) const {
    const int64_t per_group = source.units_per_group();
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + 1) * per_group);
      SI_TRY(run_tile(band, tile, unit, end, x_of_group(group)));
      unit = end;
    }
    return SI_OK;
  }

  // Every thread packs the tiles that it computes.
  si_status apart(const Band& band, int threads) const {
    return parallel_for(threads, band.tiles(), [&](int64_t tile) -> si_status {
      uint8_t* x = nullptr;
      SI_TRY(thread_scratch(Scratch::kTile, (packed_rows() + 4) * band.most_width, &x));
      return run_units(band, tile, 0, source.units(), [&](int64_t group) { return bring(band, tile, group, x); });
    });
  }

  // Few tiles: threads share the packed x and divide the rows.
  si_status together(const Band& band, int threads) const {
    const int64_t room = (packed_rows() + 4) * band.most_width;
    uint8_t* x = nullptr;
    SI_TRY(thread_scratch(Scratch::kTile, room * groups() * band.tiles(), &x));
    const auto of = [&](int64_t tile, int64_t group) { return x + room * (tile * groups() + group); };
    SI_TRY(parallel_for(threads, band.tiles() * groups(), [&](int64_t item) {
      const int64_t tile = item / groups(), group = item % groups();
      bring(band, tile, group, of(tile, group));
    }));
    return parallel_for(threads, band.tiles() * threads, [&](int64_t item) -> si_status {
      const int64_t tile = item / threads, part = item % threads;
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      return run_units(band, tile, first, last, [&](int64_t group) {
        const TileBytes there = standing(band, tile, group);
        return there.x != nullptr ? there : TileBytes{of(tile, group), nullptr};
      });
    });
  }

  // Few tiles that are soon packed: every thread packs them all, for rows of its own.
  si_status by_rows(const Band& band, int threads) const {
    return parallel_for(threads, threads, [&](int64_t part) -> si_status {
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      uint8_t* x = nullptr;
      SI_TRY(thread_scratch(Scratch::kTile, (packed_rows() + 4) * band.most_width, &x));
      for (int64_t tile = 0; tile < band.tiles(); ++tile)
        SI_TRY(run_units(band, tile, first, last, [&](int64_t group) { return bring(band, tile, group, x); }));
      return SI_OK;
    });
  }

  si_status run_band(Band& band, int threads) const {
    const int64_t shared = (packed_rows() + 4) * band.most_width * groups() * band.tiles();
    const bool few = threads > 1 && band.tiles() < 4 * threads && shared <= ByteImage::kMost;
    if (few && is_pointwise(geometry, args) && args.x_type == SI_U8) return by_rows(band, threads);
    return few ? together(band, threads) : apart(band, threads);
  }

  si_status fill(const ByteImage& padded, const void* x, uint8_t* bytes, int threads) const {
    const int64_t channels = geometry.channels, parts = std::min<int64_t>(threads, channels);
    return parallel_for(threads, parts, [&](int64_t part) -> si_status {
      uint8_t* room = nullptr;
      SI_TRY(thread_scratch(Scratch::kOutput, padded.room(), &room));
      if (measures_scratch()) return SI_OK;
      padded.fill(kernels(), x, x_rule, channels * part / parts, channels * (part + 1) / parts, room, bytes);
      return SI_OK;
    });
  }

  si_status run_image(int64_t image, int threads) const {
    Band band{};
    band.x = static_cast<const uint8_t*>(args.x) + image * geometry.channels * area() * element_bytes(args.x_type);
    band.first = image * M() * pixels();
    band.y = static_cast<uint8_t*>(args.y) + band.first * element_bytes(args.y_type);
    band.columns = geometry.ow;
    band.most_width = kernels().most_width;
    if (is_pointwise(geometry, args)) {
      band.rows = geometry.oh;
      if (in_place && args.x_type == SI_U8 && K() * area() <= ByteImage::kMost) {
        int32_t* taps = nullptr;
        SI_TRY(thread_scratch(Scratch::kTaps, K(), &taps));
        for (int64_t k = 0; k < K() && !measures_scratch(); ++k) taps[k] = static_cast<int32_t>(k * area());
        band.taps = taps;
      }
      return run_band(band, threads);
    }
    int64_t rows = geometry.oh;
    while (rows > 1 && ByteImage(geometry, args, 0, rows).bytes() > ByteImage::kMost) rows = (rows + 1) / 2;
    for (; band.first_row < geometry.oh; band.first_row += rows) {
      band.rows = std::min(rows, geometry.oh - band.first_row);
      const ByteImage padded(geometry, args, band.first_row, band.rows);
      band.padded = nullptr;
      band.taps = nullptr;
      if (padded.bytes() <= ByteImage::kMost) {
        uint8_t* bytes = nullptr;
        int32_t* taps = nullptr;
        SI_TRY(thread_scratch(Scratch::kInput, padded.bytes(), &bytes));
        SI_TRY(thread_scratch(Scratch::kTaps, K(), &taps));
        if (!measures_scratch()) padded.taps(taps);
        SI_TRY(fill(padded, band.x, bytes, threads));
        band.padded = &padded;
        band.bytes = bytes;
        band.taps = taps;
      }
      SI_TRY(run_band(band, threads));
    }
    return SI_OK;
  }

  si_status run(int threads) const {
    if (args.batch < threads) {
      for (int64_t image = 0; image < args.batch; ++image) SI_TRY(run_image(image, threads));
      return SI_OK;
    }
    return parallel_for(threads, args.batch, [&](int64_t image) { return run_image(image, 1); });
  }
};

}  // namespace

si_status conv_int8(const TileKernels& isa, const si_weights& weights, const si_conv_args& args) {
  ConvGeometry geometry;
  SI_TRY(conv_geometry(weights.shape, args, &geometry));
  if (args.batch == 0) return SI_OK;
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  // Four products of bytes take about as long as one of floats.
  const int64_t per_pixel = weights.nnz / 4 + weights.shape.M() + geometry.channels;
  const int threads =
      useful_threads(isa.tuning.threads, args.threads, per_pixel * args.batch * geometry.oh * geometry.ow);
  return ConvInt8{source,
                  args,
                  bias,
                  geometry,
                  x_to_byte(*args.quantization, 0),
                  residual_of(args),
                  reads_in_place(isa.tuning.conv, weights.panel)}
      .run(threads);
}

}  // namespace si
