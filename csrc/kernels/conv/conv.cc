#include "kernels/conv/conv.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv/strips.h"
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
  int64_t line;         // output pixels from row to row

  // Whether output rows follow one another in y, as they do unless the pass is a strip of columns.
  bool whole_rows() const { return oh == 1 || ow == line; }

  // The runs of [begin, end) that are output pixels of image `image`, at most oh; `to` counts pixels of that image.
  int64_t runs(int64_t begin, int64_t end, int64_t image, ColumnRun* out) const {
    int64_t found = 0;
    const int64_t base = image * rows * pitch;
    for (int64_t r = std::max<int64_t>(0, begin - base) / pitch; r < oh; ++r) {
      const int64_t from = std::max(base + r * pitch, begin), to = std::min(base + r * pitch + ow, end);
      if (base + r * pitch >= end) break;
      if (from < to) out[found++] = {from - begin, to - from, first_pixel + r * line + (from - base - r * pitch)};
    }
    // Without garbage between rows the runs are one.
    if (pitch == ow && ow == line && found > 1) {
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

  // What lies between runs is another strip's where rows do not follow one another.
  void store(const float* src, float* dst, const Columns& columns, const ColumnRun* runs, int64_t count) const {
    if (columns.whole_rows()) return isa().store_runs(src, dst, runs, count);
    for (int64_t i = 0; i < count; ++i) isa().store_runs(src, dst, runs + i, 1);
  }

  // Adds the residual to `count` finished elements of y, and applies the activation that waited for it.
  void add_residual(float* y, int64_t count) const {
    const Clamp last = clamp_of(args.activation);
    const auto* residual = static_cast<const float*>(args.residual) + (y - given_y());
    isa().add(y, y, residual, count, last.low, last.high);
    if (!is_clamp(args.activation)) isa().activate(y, count, args.activation);
  }

  // To a row of y that has just been stored, and is still near.
  void add_residual(float* y, const Columns& columns, const ColumnRun* runs, int64_t count) const {
    if (args.residual == nullptr || count == 0) return;
    const ColumnRun& last = runs[count - 1];
    if (columns.whole_rows()) return add_residual(y + runs[0].to, last.to + last.length - runs[0].to);
    for (int64_t i = 0; i < count; ++i) add_residual(y + runs[i].to, runs[i].length);
  }

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
    const bool direct =
        order == nullptr && images == 1 && columns.pitch == columns.ow && columns.whole_rows() && end - begin == padded;
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
    if (measures_scratch()) return SI_OK;
    for (int64_t unit = first; unit < last; unit += step) {
      job.first = unit;
      job.last = std::min(unit + step, last);
      job.row0 = source.row_of(job.first);
      const int64_t rows = source.row_of(job.last) - job.row0;
      job.c = direct ? y + job.row0 * pixels() + columns.first_pixel + begin : scratch;
      job.ldc = direct ? pixels() : padded;
      source.tile(job, kstep);
      if (!is_clamp(args.activation) && args.residual == nullptr)
        for (int64_t m = 0; m < rows; ++m) isa().activate(job.c + m * job.ldc, end - begin, args.activation);
      if (direct && args.residual != nullptr)
        for (int64_t m = 0; m < rows; ++m) add_residual(job.c + m * job.ldc, end - begin);
      if (direct) continue;
      for (int64_t image = first_image; image <= last_image; ++image) {
        const int64_t count = columns.runs(begin, end, image, runs);
        for (int64_t m = 0; m < rows; ++m) {
          const int64_t row = order == nullptr ? job.row0 + m : order[job.row0 + m];
          float* const to = y + (image * M() + row) * pixels();
          store(job.c + m * padded, to, columns, runs, count);
          add_residual(to, columns, runs, count);
        }
      }
    }
    return SI_OK;
  }

  // Units [first, last), group by group.
  template <class XOfGroup>
  si_status run_units(int64_t first, int64_t last, const XOfGroup& x_of_group, int64_t begin, int64_t padded,
                      const Columns& columns, int64_t images, int64_t kstep, float* y) const {
    const int64_t per_group = source.units_per_group();
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + 1) * per_group);
      SI_TRY(run_tile(unit, end, x_of_group(group), begin, padded, columns, images, kstep, y));
      unit = end;
    }
    return SI_OK;
  }

  // A strip of `cut.images` images from `image` on, and of those part `part` of the weight's rows, on this thread
  // alone: it reads no scratch image but its own, for one that another core has written comes from far away.
  si_status padded_pass(int64_t image, const ConvCut& cut, const Strip& strip, int64_t part) const {
    const int64_t images = std::min(cut.images, args.batch - image), per_group = source.units_per_group();
    const int64_t first = source.split(0, source.units(), part, cut.parts);
    const int64_t last = source.split(0, source.units(), part + 1, cut.parts);
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + cut.groups) * per_group);
      SI_TRY(groups_pass(image, images, strip, group, unit, end));
      unit = end;
    }
    return SI_OK;
  }

  // Units [first, last) of a pass, the first of group `group`: as many groups as one scratch image holds.
  si_status groups_pass(int64_t image, int64_t images, const Strip& strip, int64_t group, int64_t first,
                        int64_t last) const {
    const int64_t groups = (last - 1) / source.units_per_group() + 1 - group;
    const ConvImage scratch_image(isa(), geometry, args, strip, images, groups, apart());
    float* scratch = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, scratch_image.floats(), &scratch));
    int32_t* taps = nullptr;
    SI_TRY(thread_scratch(Scratch::kTaps, source.shape().K(), &taps));
    if (!measures_scratch()) scratch_image.taps(taps);
    const int64_t channel = image * geometry.channels + group * geometry.group_channels;
    SI_TRY(scratch_image.fill(given_x() + channel * args.h * args.w, images, scratch));
    const Columns columns{scratch_image.positions(images),
                          scratch_image.pitch(),
                          scratch_image.rows(),
                          strip.rows,
                          strip.columns,
                          strip.first_row * geometry.ow + strip.first_column,
                          geometry.ow};
    const int64_t width = isa().width;
    const ColumnPlan plan = plan_columns(tuning().tile, (columns.count + width - 1) / width, isa().max_vectors, 1);
    const int64_t block =
        source.kblock() * scratch_image.tile_floats(isa().max_vectors * width) / (geometry.kh * geometry.kw);
    const int64_t kstep = std::max<int64_t>(1, tuning().conv.cache_floats / block);
    for (int64_t tile = 0; tile < plan.tiles; ++tile) {
      const int64_t begin = plan.first_vector(tile) * width, padded = plan.first_vector(tile + 1) * width - begin;
      SI_TRY(run_units(
          first, last,
          [&](int64_t each) { return XView{scratch + (each - group) * scratch_image.group_stride() + begin, 0, taps}; },
          begin, padded, columns, images, kstep, given_y() + image * M() * pixels()));
    }
    return SI_OK;
  }

  // A 1x1 kernel with stride 1 and no padding is a linear layer over the image as it stands.
  si_status pointwise_pass(int64_t image, int workers) const {
    const int64_t area = args.h * args.w, width = isa().width;
    const float* x = given_x() + image * geometry.channels * area;
    const Columns columns{area, geometry.ow, geometry.oh, geometry.oh, geometry.ow, 0, geometry.ow};
    const ColumnPlan plan = plan_columns(tuning().tile, (area + width - 1) / width, source.most_vectors(), workers);
    // A vector that straddles two cache lines takes two reads. Half a line is as good as a whole one. What is measured
    // has room for either.
    const bool straddles = measures_scratch() || area % (width / 2) != 0 ||
                           reinterpret_cast<uintptr_t>(x) % (static_cast<uintptr_t>(width) * sizeof(float) / 2) != 0;
    const bool copies =
        straddles && source.nnz() >= tuning().conv.copy_column_nnz * source.shape().K() * source.shape().groups;
    return parallel_for(workers, plan.tiles * plan.row_parts, [&](int64_t item) -> si_status {
      const int64_t tile = item / plan.row_parts;
      const int64_t begin = plan.first_vector(tile) * width;
      const int64_t padded = plan.first_vector(tile + 1) * width - begin;
      // The last tile may end past the image: only a copy can be read there.
      const bool copied = copies || begin + padded > area;
      const int64_t part = item % plan.row_parts, per_group = source.units_per_group();
      const int64_t first = source.split(0, source.units(), part, plan.row_parts);
      const int64_t last = source.split(0, source.units(), part + 1, plan.row_parts);
      // A copy holds as many groups as its bound lets it.
      const int64_t at_once =
          copied ? std::max<int64_t>(1, kScratchFloats / (geometry.group_channels * padded)) : source.shape().groups;
      for (int64_t unit = first; unit < last;) {
        const int64_t group = unit / per_group, end = std::min(last, (group + at_once) * per_group);
        const int64_t channel = group * geometry.group_channels;
        const int64_t channels = ((end - 1) / per_group + 1 - group) * geometry.group_channels;
        XView view{x + channel * area + begin, area, nullptr};
        if (copied) {
          float* dst = nullptr;
          SI_TRY(thread_scratch(Scratch::kInput, channels * padded, &dst));
          const int64_t valid = std::min(padded, area - begin);
          for (int64_t c = 0; c < channels && !measures_scratch(); ++c) {
            std::memcpy(dst + c * padded, view.as<float>() + c * area, static_cast<size_t>(valid) * sizeof(float));
            std::fill(dst + c * padded + valid, dst + (c + 1) * padded, 0.0f);
          }
          view = {dst, padded, nullptr};
        }
        SI_TRY(run_units(
            unit, end,
            [&](int64_t each) {
              return XView{view.as<float>() + (each - group) * geometry.group_channels * view.pitch, view.pitch,
                           nullptr};
            },
            begin, padded, columns, 1, 1, given_y() + image * M() * pixels()));
        unit = end;
      }
      return SI_OK;
    });
  }

  // Whether weights are many enough to pay for copies of the image in which no vector straddles cache lines. Vectors of
  // half a line or less straddle seldom, and their tiles are narrow: there the copies' footprint costs more.
  bool apart() const {
    return !kSmall && isa().width >= tuning().conv.apart_vector_floats &&
           source.nnz() >= tuning().conv.apart_column_nnz * source.shape().K() * source.shape().groups;
  }

  si_status run() const {
    // Small images are computed several at a time, so that a tile is full.
    const int64_t wide = static_cast<int64_t>(isa().width) * isa().max_vectors;
    const int64_t full = std::max<int64_t>(1, (wide + pixels() - 1) / pixels());
    const ConvCall call{source, args, geometry, threads, apart()};
    const int64_t images = images_in_bounds(call, std::clamp<int64_t>(full, 1, (args.batch + threads - 1) / threads));
    const int64_t passes = (args.batch + images - 1) / images;
    // With a pass for every thread, threads need not divide a pass.
    const bool divide = passes < threads || passes % threads != 0;
    if (is_pointwise(geometry, args) && images == 1) {
      return parallel_for(divide ? 1 : threads, passes,
                          [&](int64_t pass) { return pointwise_pass(pass, divide ? threads : 1); });
    }
    ConvCut cut{};
    SI_TRY(cut_conv(call, images, divide, &cut));
    const int64_t strips = cut.strips();
    return parallel_for(threads, passes * strips * cut.parts, [&](int64_t item) {
      const int64_t pass = item / (strips * cut.parts), index = item / cut.parts % strips;
      return padded_pass(pass * images, cut, cut.strip(geometry, index), item % cut.parts);
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
              clamp_of(args.residual != nullptr ? SI_ACT_NONE : args.activation),
              useful_threads(isa.tuning.threads, args.threads, per_pixel * outputs)}
      .run();
}

}  // namespace si
