#include "kernels/conv/conv.h"

#include <algorithm>
#include <cstring>

#include "core/cpu.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv/image.h"
#include "kernels/source.h"

namespace si {

namespace {

// How the columns of a tile map to x and y. Columns count positions of the scratch image, or pixels when x is read in
// place.
struct Columns {
  int64_t count;        // of the images that a pass computes
  int64_t pitch, rows;  // of one image: columns from output row to output row, rows from image to image
  int64_t oh, ow;       // output rows of this pass, columns of each
  int64_t first_pixel;  // of the first output row

  // The runs of [begin, end) that are output pixels of image `image`, at most oh; `to` counts pixels of that image.
  int64_t runs(int64_t begin, int64_t end, int64_t image, ColumnRun* out) const {
    int64_t found = 0;
    const int64_t base = image * rows * pitch;
    for (int64_t r = std::max<int64_t>(0, begin - base) / pitch; r < oh; ++r) {
      const int64_t from = std::max(base + r * pitch, begin), to = std::min(base + r * pitch + ow, end);
      if (base + r * pitch >= end) break;
      if (from < to) out[found++] = {from - begin, to - from, first_pixel + r * ow + (from - base - r * pitch)};
    }
    // Without garbage between rows the runs are one.
    if (pitch == ow && found > 1) {
      for (int64_t i = 1; i < found; ++i) out[0].length += out[i].length;
      found = 1;
    }
    return found;
  }
};

struct Conv {
  const TileSource& source;
  const si_conv_args& args;
  const float* const bias;  // by position
  const ConvGeometry geometry;
  const Clamp clamp;
  const int threads;

  const TileKernels& isa() const { return source.isa(); }
  const Tuning& tuning() const { return isa().tuning; }
  const float* given_x() const { return static_cast<const float*>(args.x); }
  float* given_y() const { return static_cast<float*>(args.y); }
  int64_t M() const { return source.shape().M(); }
  int64_t pixels() const { return geometry.oh * geometry.ow; }

  // Units [first, last), all of one group, by columns [begin, begin + padded) of `images` images. x.base is the first
  // column of the group's first channel. The weight's K blocks run `kstep` at a time.
  si_status run_tile(int64_t first, int64_t last, XView x, int64_t begin, int64_t padded, const Columns& columns,
                     int64_t images, int64_t kstep, float* y) const {
    TileJob job{};
    job.x = x;
    job.vectors = static_cast<int>(padded / isa().width);
    job.bias = bias;
    job.low = clamp.low;
    job.high = clamp.high;
    const int64_t end = std::min(begin + padded, columns.count);
    const uint32_t* order = source.order();
    const bool direct = order == nullptr && images == 1 && columns.pitch == columns.ow && end - begin == padded;
    const int64_t first_image = begin / (columns.rows * columns.pitch);
    const int64_t last_image = std::min(images - 1, (end - 1) / (columns.rows * columns.pitch));
    const int64_t batch =
        kstep * source.kblock() < source.shape().K() ? tuning().tile.blocked_batch_rows : tuning().tile.batch_rows;
    const int64_t step = source.units_for_rows(batch);
    float* scratch = nullptr;
    ColumnRun* runs = nullptr;
    if (!direct) {
      SI_TRY(thread_scratch(Scratch::kOutput, batch * padded, &scratch));
      SI_TRY(thread_scratch(Scratch::kRuns, columns.oh, &runs));
    }
    for (int64_t unit = first; unit < last; unit += step) {
      job.first = unit;
      job.last = std::min(unit + step, last);
      job.row0 = source.row_of(job.first);
      const int64_t rows = source.row_of(job.last) - job.row0;
      job.c = direct ? y + job.row0 * pixels() + columns.first_pixel + begin : scratch;
      job.ldc = direct ? pixels() : padded;
      source.tile(job, kstep);
      if (!is_clamp(args.activation))
        for (int64_t m = 0; m < rows; ++m) isa().activate(job.c + m * job.ldc, end - begin, args.activation);
      if (direct) continue;
      for (int64_t image = first_image; image <= last_image; ++image) {
        const int64_t count = columns.runs(begin, end, image, runs);
        for (int64_t m = 0; m < rows; ++m) {
          const int64_t row = order == nullptr ? job.row0 + m : order[job.row0 + m];
          isa().store_runs(job.c + m * padded, y + (image * M() + row) * pixels(), runs, count);
        }
      }
    }
    return SI_OK;
  }

  // All rows of part `part` of `parts`, group by group.
  template <class XOfGroup>
  si_status run_rows(int64_t part, int64_t parts, const XOfGroup& x_of_group, int64_t begin, int64_t padded,
                     const Columns& columns, int64_t images, int64_t kstep, float* y) const {
    const int64_t first = source.split(0, source.units(), part, parts);
    const int64_t last = source.split(0, source.units(), part + 1, parts);
    const int64_t per_group = source.units_per_group();
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + 1) * per_group);
      SI_TRY(run_tile(unit, end, x_of_group(group), begin, padded, columns, images, kstep, y));
      unit = end;
    }
    return SI_OK;
  }

  // Output rows [first_row, last_row) of `images` images from `image` on, and of those part `part` of the weight's
  // rows, on this thread alone: it reads no scratch image but its own, for one that another core has written comes from
  // far away.
  si_status padded_pass(int64_t image, int64_t images, int64_t first_row, int64_t last_row, int64_t part,
                        int64_t parts) const {
    ConvImage scratch_image(isa(), geometry, args);
    SI_TRY(scratch_image.plan(first_row, last_row - first_row, images, apart()));
    float* scratch = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, scratch_image.floats(), &scratch));
    int32_t* taps = nullptr;
    SI_TRY(thread_scratch(Scratch::kTaps, source.shape().K(), &taps));
    scratch_image.taps(taps);
    scratch_image.fill(given_x() + image * geometry.channels * args.h * args.w, images, scratch);
    const Columns columns{
        scratch_image.positions(images), scratch_image.pitch(), scratch_image.rows(), last_row - first_row, geometry.ow,
        first_row * geometry.ow};
    const int64_t width = isa().width;
    const ColumnPlan plan = plan_columns(tuning().tile, (columns.count + width - 1) / width, isa().max_vectors, 1);
    // The order of a sum follows from it, so it follows from nothing that depends on threads.
    const int64_t block =
        source.kblock() * scratch_image.tile_floats(isa().max_vectors * width) / (geometry.kh * geometry.kw);
    const int64_t kstep = std::max<int64_t>(1, tuning().conv.cache_floats / block);
    for (int64_t tile = 0; tile < plan.tiles; ++tile) {
      const int64_t begin = plan.first_vector(tile) * width, padded = plan.first_vector(tile + 1) * width - begin;
      SI_TRY(run_rows(
          part, parts,
          [&](int64_t group) { return XView{scratch + group * scratch_image.group_stride() + begin, 0, taps}; }, begin,
          padded, columns, images, kstep, given_y() + image * M() * pixels()));
    }
    return SI_OK;
  }

  // A 1x1 kernel with stride 1 and no padding is a linear layer over the image as it stands.
  si_status pointwise_pass(int64_t image, int workers) const {
    const int64_t area = args.h * args.w, width = isa().width;
    const float* x = given_x() + image * geometry.channels * area;
    const Columns columns{area, geometry.ow, geometry.oh, geometry.oh, geometry.ow, 0};
    const ColumnPlan plan = plan_columns(tuning().tile, (area + width - 1) / width, source.most_vectors(), workers);
    // A vector that straddles two cache lines takes two reads. Half a line is as good as a whole one.
    const bool straddles = area % (width / 2) != 0 ||
                           reinterpret_cast<uintptr_t>(x) % (static_cast<uintptr_t>(width) * sizeof(float) / 2) != 0;
    const bool copies =
        straddles && source.nnz() >= tuning().conv.copy_column_nnz * source.shape().K() * source.shape().groups;
    return parallel_for(workers, plan.tiles * plan.row_parts, [&](int64_t item) -> si_status {
      const int64_t tile = item / plan.row_parts;
      const int64_t begin = plan.first_vector(tile) * width;
      const int64_t padded = plan.first_vector(tile + 1) * width - begin;
      XView view{x + begin, area, nullptr};
      // The last tile may end past the image: only a copy can be read there.
      if (copies || begin + padded > area) {
        float* dst = nullptr;
        SI_TRY(thread_scratch(Scratch::kInput, geometry.channels * padded, &dst));
        const int64_t valid = std::min(padded, area - begin);
        for (int64_t c = 0; c < geometry.channels; ++c) {
          std::memcpy(dst + c * padded, x + c * area + begin, static_cast<size_t>(valid) * sizeof(float));
          std::fill(dst + c * padded + valid, dst + (c + 1) * padded, 0.0f);
        }
        view = {dst, padded, nullptr};
      }
      return run_rows(
          item % plan.row_parts, plan.row_parts,
          [&](int64_t group) {
            return XView{view.as<float>() + group * geometry.group_channels * view.pitch, view.pitch, nullptr};
          },
          begin, padded, columns, 1, 1, given_y() + image * M() * pixels());
    });
  }

  // How many strips of output rows the threads cut an image into; threads left over divide the weight's rows, and then
  // each makes a scratch image of its own.
  int64_t strips() const {
    const double per_column = static_cast<double>(source.nnz());
    int64_t best = 1;
    double least = 0.0;
    for (int64_t count = threads; count >= 1; --count) {
      if (threads % count != 0 || count > geometry.oh) continue;
      const int64_t rows = (geometry.oh + count - 1) / count;
      // The pitch is the output's, or a little more.
      const int64_t vectors = (rows * geometry.ow + isa().width - 1) / isa().width;
      const int64_t halo = args.dilation[0] * (geometry.kh - 1) / args.stride[0];
      const double copied = static_cast<double>((rows + halo) * geometry.ow) / isa().width *
                            static_cast<double>(geometry.channels * std::min(args.stride[0], geometry.kh) *
                                                std::min(args.stride[1], geometry.kw));
      const double cost = tiles_cost(tuning().tile, vectors, isa().max_vectors) * per_column *
                              static_cast<double>(count) / static_cast<double>(threads) +
                          tuning().conv.copy_cost * copied;
      if (least != 0.0 && cost >= least) continue;
      least = cost;
      best = count;
    }
    return best;
  }

  // More strips than threads need, where the scratch image of one would leave no room in L2.
  si_status near_strips(int64_t strips, int64_t* out) const {
    // Each strip copies the rows that it shares with its neighbours anew.
    const int64_t fewest =
        tuning().conv.strip_halos * std::max<int64_t>(1, args.dilation[0] * (geometry.kh - 1) / args.stride[0]);
    int64_t count = strips;
    while (geometry.oh / (count + strips) >= fewest) {
      ConvImage image(isa(), geometry, args);
      SI_TRY(image.plan(0, (geometry.oh + count - 1) / count, 1, apart()));
      if (static_cast<double>(image.floats()) * sizeof(float) <=
          tuning().tile.l2_share * static_cast<double>(l2_bytes()))
        break;
      count += strips;
    }
    *out = count;
    return SI_OK;
  }

  // Whether weights are many enough to pay for copies of the image in which no vector straddles cache lines. Vectors of
  // half a line or less straddle seldom, and their tiles are narrow: there the copies' footprint costs more.
  bool apart() const {
    return isa().width >= tuning().conv.apart_vector_floats &&
           source.nnz() >= tuning().conv.apart_column_nnz * source.shape().K() * source.shape().groups;
  }

  bool pointwise() const {
    return geometry.kh == 1 && geometry.kw == 1 && args.stride[0] == 1 && args.stride[1] == 1 && args.padding[0] == 0 &&
           args.padding[1] == 0 && args.padding[2] == 0 && args.padding[3] == 0;
  }

  si_status run() const {
    // Small images are computed several at a time, so that a tile is full.
    const int64_t wide = static_cast<int64_t>(isa().width) * isa().max_vectors;
    const int64_t full = std::max<int64_t>(1, (wide + pixels() - 1) / pixels());
    const int64_t images = std::clamp<int64_t>(full, 1, (args.batch + threads - 1) / threads);
    const int64_t passes = (args.batch + images - 1) / images;
    // With a pass for every thread, threads need not divide a pass.
    const bool divide = passes < threads || passes % threads != 0;
    if (pointwise() && images == 1) {
      return parallel_for(divide ? 1 : threads, passes,
                          [&](int64_t pass) { return pointwise_pass(pass, divide ? threads : 1); });
    }
    const int64_t shared = divide && images == 1 ? strips() : 1;
    const int64_t parts = divide ? threads / shared : 1;
    int64_t cuts = 1;
    if (images == 1) SI_TRY(near_strips(shared, &cuts));
    return parallel_for(threads, passes * cuts * parts, [&](int64_t item) {
      const int64_t pass = item / (cuts * parts), cut = item / parts % cuts;
      const int64_t image = pass * images, count = std::min(images, args.batch - image);
      return padded_pass(image, count, geometry.oh * cut / cuts, geometry.oh * (cut + 1) / cuts, item % parts, parts);
    });
  }
};

}  // namespace

si_status conv(const TileKernels& isa, const si_weights& weights, const si_conv_args& args) {
  ConvGeometry geometry;
  SI_TRY(conv_geometry(weights.shape, args, &geometry));
  if (args.batch == 0) return SI_OK;
  const int64_t per_pixel = weights.nnz + weights.shape.M() + geometry.channels;
  const int64_t outputs = args.batch * geometry.oh * geometry.ow;
  const TileSource source(isa, weights);
  const float* bias = nullptr;
  SI_TRY(source.ordered_bias(args.bias, &bias));
  return Conv{source,
              args,
              bias,
              geometry,
              clamp_of(args.activation),
              useful_threads(isa.tuning.threads, args.threads, per_pixel * outputs)}
      .run();
}

}  // namespace si
