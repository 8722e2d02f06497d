#include "kernels/conv/strips.h"

#include <algorithm>

#include "core/cpu.h"
#include "core/error.h"
#include "core/scratch.h"

namespace si {

namespace {

// Strips begin at multiples of a cache line of output columns.
constexpr int64_t kColumns = 16;

int64_t divided_up(int64_t n, int64_t parts) { return (n + parts - 1) / parts; }

// Output rows (or columns) before a strip whose input it reads too.
int64_t halo(const ConvCall& call, int axis) {
  return call.args.dilation[axis] * ((axis == 0 ? call.geometry.kh : call.geometry.kw) - 1) / call.args.stride[axis];
}

// The largest strip of a cut.
Strip largest(const ConvCall& call, const ConvCut& cut) {
  const ConvGeometry& geometry = call.geometry;
  const int64_t columns = divided_up(divided_up(geometry.ow, kColumns), cut.columns) * kColumns;
  return {0, divided_up(geometry.oh, cut.rows), 0, std::min(columns, geometry.ow)};
}

int64_t scratch_floats(const ConvCall& call, const ConvCut& cut) {
  return ConvImage(call.source.isa(), call.geometry, call.args, largest(call, cut), cut.images, cut.groups, call.apart)
      .floats();
}

// The least n of [1, most] that `holds`, which holds for all above it; `most` where it holds for none.
template <class Holds>
int64_t least(int64_t most, Holds&& holds) {
  int64_t low = 1, high = std::max<int64_t>(1, most);
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (holds(middle))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Strips that the threads cut an image into: rows, or columns where rows are fewer than threads. Threads left over
// divide the weight's rows.
void share(const ConvCall& call, ConvCut& cut) {
  const ConvGeometry& geometry = call.geometry;
  const si_conv_args& args = call.args;
  const TileKernels& isa = call.source.isa();
  const double per_column = static_cast<double>(call.source.nnz());
  const double planes = static_cast<double>(geometry.channels * std::min(args.stride[0], geometry.kh) *
                                            std::min(args.stride[1], geometry.kw));
  double best = 0.0;
  const auto consider = [&](int64_t count, int64_t rows, int64_t pitch, bool by_columns) {
    const int64_t vectors = divided_up(rows * pitch, isa.width);
    const double copied = static_cast<double>((rows + halo(call, 0)) * pitch) / isa.width * planes;
    const double cost = tiles_cost(isa.tuning.tile, vectors, isa.max_vectors) * per_column *
                            static_cast<double>(count) / static_cast<double>(call.threads) +
                        isa.tuning.conv.copy_cost * copied;
    if (best != 0.0 && cost >= best) return;
    best = cost;
    cut.rows = by_columns ? 1 : count;
    cut.columns = by_columns ? count : 1;
    cut.parts = call.threads / count;
  };
  for (int64_t count = call.threads; count >= 1; --count) {
    if (call.threads % count != 0) continue;
    // The pitch is the output's, or a little more.
    if (count <= geometry.oh) consider(count, divided_up(geometry.oh, count), geometry.ow, false);
    if (geometry.oh >= call.threads || count == 1 || count > divided_up(geometry.ow, kColumns)) continue;
    const int64_t columns = divided_up(divided_up(geometry.ow, kColumns), count) * kColumns;
    consider(count, geometry.oh, columns + halo(call, 1), true);
  }
}

// More strips than threads need, where the scratch image of one would leave no room in L2.
void draw_near(const ConvCall& call, ConvCut& cut) {
  const TileKernels& isa = call.source.isa();
  const bool by_columns = cut.columns > 1 || call.geometry.oh == 1;
  int64_t& count = by_columns ? cut.columns : cut.rows;
  // Each strip copies the rows (columns) that it shares with its neighbours anew, and wants tiles as wide as they get.
  const int64_t tile = static_cast<int64_t>(isa.width) * isa.max_vectors;
  const int64_t fewest =
      isa.tuning.conv.strip_halos * std::max<int64_t>(by_columns ? tile : 1, halo(call, by_columns ? 1 : 0));
  const int64_t outputs = by_columns ? call.geometry.ow : call.geometry.oh, shared = count;
  count = shared * least(outputs / fewest / shared, [&](int64_t times) {
            count = shared * times;
            return static_cast<double>(scratch_floats(call, cut)) * sizeof(float) <=
                   isa.tuning.tile.l2_share * static_cast<double>(l2_bytes());
          });
}

// As many more strips as the bound of scratch asks for: along the axis on which neighbours share least, and where a
// strip is a row of one tile, fewer groups of channels at a time.
si_status stay_in_bounds(const ConvCall& call, ConvCut& cut) {
  const TileKernels& isa = call.source.isa();
  const int64_t units = divided_up(call.geometry.ow, kColumns);
  int64_t floats = scratch_floats(call, cut);
  for (; floats > kScratchFloats; floats = scratch_floats(call, cut)) {
    const Strip strip = largest(call, cut);
    const bool wide = strip.columns > std::max<int64_t>(kColumns, isa.width * isa.max_vectors);
    const bool tall = strip.rows > 1;
    if (wide && (!tall || strip.columns / (halo(call, 1) + kColumns) >= strip.rows / (halo(call, 0) + 1)))
      cut.columns = std::min(units, 2 * cut.columns);
    else if (tall)
      cut.rows = std::min(call.geometry.oh, 2 * cut.rows);
    else if (cut.groups > 1)
      cut.groups = divided_up(cut.groups, 2);
    else if (strip.columns > kColumns)
      cut.columns = std::min(units, 2 * cut.columns);
    else
      break;
  }
  SI_REQUIRE(floats <= ConvImage::kMaxFloats, SI_ERR_UNSUPPORTED,
             "conv: expected fewer than 2^27 weights of an output channel, got ", call.source.shape().K(),
             "; try a smaller kernel");
  return SI_OK;
}

ConvCut whole(const ConvCall& call, int64_t images) { return {images, 1, 1, call.source.shape().groups, 1}; }

}  // namespace

Strip ConvCut::strip(const ConvGeometry& geometry, int64_t index) const {
  const int64_t row = index / columns, column = index % columns, units = divided_up(geometry.ow, kColumns);
  const int64_t first_row = geometry.oh * row / rows, last_row = geometry.oh * (row + 1) / rows;
  const int64_t first = units * column / columns * kColumns;
  const int64_t last = std::min(units * (column + 1) / columns * kColumns, geometry.ow);
  return {first_row, last_row - first_row, first, last - first};
}

int64_t images_in_bounds(const ConvCall& call, int64_t images) {
  while (images > 1 && scratch_floats(call, whole(call, images)) > kScratchFloats) images /= 2;
  return images;
}

si_status cut_conv(const ConvCall& call, int64_t images, bool divided, ConvCut* out) {
  ConvCut cut = whole(call, images);
  // A small library lets threads divide the weight's rows, however images are cut.
  if (!kSmall && divided && images == 1)
    share(call, cut);
  else if (divided)
    cut.parts = call.threads;
  if (images == 1) draw_near(call, cut);
  if (images == 1) SI_TRY(stay_in_bounds(call, cut));
  *out = cut;
  return SI_OK;
}

}  // namespace si
