#include "kernels/conv/conv.h"

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/conv/strips.h"
#include "kernels/source.h"

namespace si {

namespace {

// Output rows computed before they are moved out of the scratch tile: few, so that they stay in the nearest cache, or,
// where a K block of the image stays there instead, many that use the block in turn.
constexpr int64_t kBatchRows = 16;
constexpr int64_t kBlockedBatchRows = 128;
// Floats of the nearest cache, of which a K block's part of the image gets as much as it needs.
constexpr int64_t kCacheFloats = 8192;
// Non-zeros a column, from which copying an image pays, so that its rows start on half a cache line.
constexpr int64_t kCopyColumnNnz = 8;
// The same, for a copy for each column of the kernel.
constexpr int64_t kApartColumnNnz = 3;
constexpr int kLineFloats = 16;

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

  // The runs of [begin, end) that are output pixels of image `image`; `to` counts pixels of that image.
  void runs(int64_t begin, int64_t end, int64_t image, std::vector<ColumnRun>& out) const {
    out.clear();
    const int64_t base = image * rows * pitch;
    for (int64_t r = std::max<int64_t>(0, begin - base) / pitch; r < oh; ++r) {
      const int64_t from = std::max(base + r * pitch, begin), to = std::min(base + r * pitch + ow, end);
      if (base + r * pitch >= end) break;
      if (from < to) out.push_back({from - begin, to - from, first_pixel + r * line + (from - base - r * pitch)});
    }
    // Without garbage between rows the runs are one.
    if (pitch == ow && ow == line && out.size() > 1) {
      for (size_t i = 1; i < out.size(); ++i) out[0].length += out[i].length;
      out.resize(1);
    }
  }
};

struct Conv {
  const TileSource source;
  const si_conv_args& args;
  const float* const bias;  // by position
  const ConvGeometry geometry;
  const Clamp clamp;
  const int threads;

  const TileKernels& isa() const { return source.isa(); }
  int64_t M() const { return source.shape().M(); }
  int64_t pixels() const { return geometry.oh * geometry.ow; }

  // What lies between runs is another strip's where rows do not follow one another.
  void store(const float* src, float* dst, const Columns& columns, const std::vector<ColumnRun>& runs) const {
    if (columns.whole_rows()) return isa().store_runs(src, dst, runs.data(), static_cast<int64_t>(runs.size()));
    for (const ColumnRun& run : runs) isa().store_runs(src, dst, &run, 1);
  }

  // Units [first, last), all of one group, by columns [begin, begin + padded) of `images` images. x.base is the first
  // column of the group's first channel. The weight's K blocks run `kstep` at a time.
  void run_tile(int64_t first, int64_t last, XView x, int64_t begin, int64_t padded, const Columns& columns,
                int64_t images, int64_t kstep, float* y) const {
    TileJob job{};
    job.x = x;
    job.vectors = static_cast<int>(padded / isa().width);
    job.bias = bias;
    job.low = clamp.low;
    job.high = clamp.high;
    const int64_t end = std::min(begin + padded, columns.count);
    thread_local std::vector<ColumnRun> runs;
    const uint32_t* order = source.order();
    const bool direct =
        order == nullptr && images == 1 && columns.pitch == columns.ow && columns.whole_rows() && end - begin == padded;
    const int64_t first_image = begin / (columns.rows * columns.pitch);
    const int64_t last_image = std::min(images - 1, (end - 1) / (columns.rows * columns.pitch));
    const int64_t batch = kstep * source.kblock() < source.shape().K() ? kBlockedBatchRows : kBatchRows;
    const int64_t step = source.units_for_rows(batch);
    float* scratch = direct ? nullptr : thread_scratch(Scratch::kOutput, batch * padded);
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
        columns.runs(begin, end, image, runs);
        for (int64_t m = 0; m < rows; ++m) {
          const int64_t row = order == nullptr ? job.row0 + m : order[job.row0 + m];
          store(job.c + m * padded, y + (image * M() + row) * pixels(), columns, runs);
        }
      }
    }
  }

  // Units [first, last), group by group.
  template <class XOfGroup>
  void run_units(int64_t first, int64_t last, const XOfGroup& x_of_group, int64_t begin, int64_t padded,
                 const Columns& columns, int64_t images, int64_t kstep, float* y) const {
    const int64_t per_group = source.units_per_group();
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + 1) * per_group);
      run_tile(unit, end, x_of_group(group), begin, padded, columns, images, kstep, y);
      unit = end;
    }
  }

  // A strip of `cut.images` images from `image` on, and of those part `part` of the weight's rows, on this thread
  // alone: it reads no scratch image but its own, for one that another core has written comes from far away.
  void padded_pass(int64_t image, const ConvCut& cut, const Strip& strip, int64_t part) const {
    const int64_t images = std::min(cut.images, args.batch - image), per_group = source.units_per_group();
    const int64_t first = source.split(0, source.units(), part, cut.parts);
    const int64_t last = source.split(0, source.units(), part + 1, cut.parts);
    for (int64_t unit = first; unit < last;) {
      const int64_t group = unit / per_group, end = std::min(last, (group + cut.groups) * per_group);
      groups_pass(image, images, strip, group, unit, end);
      unit = end;
    }
  }

  // Units [first, last) of a pass, the first of group `group`: as many groups as one scratch image holds.
  void groups_pass(int64_t image, int64_t images, const Strip& strip, int64_t group, int64_t first,
                   int64_t last) const {
    const int64_t groups = (last - 1) / source.units_per_group() + 1 - group;
    const ConvImage scratch_image(geometry, args, strip, images, groups, isa().width * isa().max_vectors, apart());
    float* scratch = thread_scratch(Scratch::kInput, scratch_image.floats());
    auto* taps = reinterpret_cast<int32_t*>(thread_scratch(Scratch::kTaps, source.shape().K()));
    scratch_image.taps(taps);
    scratch_image.fill(isa(), args.x + (image * geometry.channels + group * geometry.group_channels) * args.h * args.w,
                       images, scratch);
    const Columns columns{scratch_image.positions(images),
                          scratch_image.pitch(),
                          scratch_image.rows(),
                          strip.rows,
                          strip.columns,
                          strip.first_row * geometry.ow + strip.first_column,
                          geometry.ow};
    const int64_t width = isa().width;
    const ColumnPlan plan = plan_columns((columns.count + width - 1) / width, isa().max_vectors, 1);
    const int64_t block =
        source.kblock() * scratch_image.tile_floats(isa().max_vectors * width) / (geometry.kh * geometry.kw);
    const int64_t kstep = std::max<int64_t>(1, kCacheFloats / block);
    for (size_t tile = 0; tile + 1 < plan.first_vector.size(); ++tile) {
      const int64_t begin = plan.first_vector[tile] * width, padded = plan.first_vector[tile + 1] * width - begin;
      run_units(
          first, last,
          [&](int64_t each) { return XView{scratch + (each - group) * scratch_image.group_stride() + begin, 0, taps}; },
          begin, padded, columns, images, kstep, args.y + image * M() * pixels());
    }
  }

  // A 1x1 kernel with stride 1 and no padding is a linear layer over the image as it stands.
  void pointwise_pass(int64_t image, int workers) const {
    const int64_t area = args.h * args.w, width = isa().width;
    const float* x = args.x + image * geometry.channels * area;
    const Columns columns{area, geometry.ow, geometry.oh, geometry.oh, geometry.ow, 0, geometry.ow};
    const ColumnPlan plan = plan_columns((area + width - 1) / width, source.most_vectors(), workers);
    const auto tiles = static_cast<int64_t>(plan.first_vector.size()) - 1;
    // A vector that straddles two cache lines takes two reads. Half a line is as good as a whole one.
    const bool straddles = area % (width / 2) != 0 ||
                           reinterpret_cast<uintptr_t>(x) % (static_cast<uintptr_t>(width) * sizeof(float) / 2) != 0;
    const bool copies = straddles && source.nnz() >= kCopyColumnNnz * source.shape().K() * source.shape().groups;
    parallel_for(workers, tiles * plan.row_parts, [&](int64_t item) {
      const auto tile = static_cast<size_t>(item / plan.row_parts);
      const int64_t begin = plan.first_vector[tile] * width;
      const int64_t padded = plan.first_vector[tile + 1] * width - begin;
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
          float* dst = thread_scratch(Scratch::kInput, channels * padded);
          const int64_t valid = std::min(padded, area - begin);
          for (int64_t c = 0; c < channels; ++c) {
            std::memcpy(dst + c * padded, view.base + c * area, static_cast<size_t>(valid) * sizeof(float));
            std::fill(dst + c * padded + valid, dst + (c + 1) * padded, 0.0f);
          }
          view = {dst, padded, nullptr};
        }
        run_units(
            unit, end,
            [&](int64_t each) {
              return XView{view.base + (each - group) * geometry.group_channels * view.pitch, view.pitch, nullptr};
            },
            begin, padded, columns, 1, 1, args.y + image * M() * pixels());
        unit = end;
      }
    });
  }

  // Whether weights are many enough to pay for copies of the image in which no vector straddles cache lines. Vectors of
  // half a line or less straddle seldom, and their tiles are narrow: there the copies' footprint costs more.
  bool apart() const {
    return isa().width >= kLineFloats && source.nnz() >= kApartColumnNnz * source.shape().K() * source.shape().groups;
  }

  bool pointwise() const {
    return geometry.kh == 1 && geometry.kw == 1 && args.stride[0] == 1 && args.stride[1] == 1 && args.padding[0] == 0 &&
           args.padding[1] == 0 && args.padding[2] == 0 && args.padding[3] == 0;
  }

  void run() const {
    // Small images are computed several at a time, so that a tile is full.
    const int64_t wide = static_cast<int64_t>(isa().width) * isa().max_vectors;
    const int64_t full = std::max<int64_t>(1, (wide + pixels() - 1) / pixels());
    const ConvCall call{source, args, geometry, threads, apart()};
    const int64_t images = images_in_bounds(call, std::clamp<int64_t>(full, 1, (args.batch + threads - 1) / threads));
    const int64_t passes = (args.batch + images - 1) / images;
    // With a pass for every thread, threads need not divide a pass.
    const bool divide = passes < threads || passes % threads != 0;
    if (pointwise() && images == 1) {
      parallel_for(divide ? 1 : threads, passes, [&](int64_t pass) { pointwise_pass(pass, divide ? threads : 1); });
      return;
    }
    const ConvCut cut = cut_conv(call, images, divide);
    const int64_t strips = cut.strips();
    parallel_for(threads, passes * strips * cut.parts, [&](int64_t item) {
      const int64_t pass = item / (strips * cut.parts), index = item / cut.parts % strips;
      padded_pass(pass * images, cut, cut.strip(geometry, index), item % cut.parts);
    });
  }
};

}  // namespace

void conv(const TileKernels& isa, const si_weights& weights, const si_conv_args& args) {
  const ConvGeometry geometry = conv_geometry(weights.shape, args);
  if (args.batch == 0) return;
  const ScratchUse use;
  const int64_t per_pixel = weights.nnz + weights.shape.M() + geometry.channels;
  const int64_t outputs = args.batch * geometry.oh * geometry.ow;
  const TileSource source(isa, weights);
  Conv{source,
       args,
       source.ordered_bias(args.bias),
       geometry,
       clamp_of(args.activation),
       useful_threads(args.threads, per_pixel * outputs)}
      .run();
}

}  // namespace si
