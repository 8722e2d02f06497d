// What a cut of a convolution may not change, and what it must keep: the same bits however long the signal, scratch in
// bounds whatever the image and the threads, and no limit that depends on threads.
#include "kernels/conv/strips.h"

#include <algorithm>
#include <string>

#include "core/cpu.h"
#include "core/scratch.h"
#include "kernels/registry.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  int64_t channels, M, h, w, kh, kw, groups, stride, dilation, padding;
  si_padding mode = SI_PAD_ZEROS;
  int kblock = 0;
};

std::string describe(const Case& c) {
  return std::to_string(c.channels) + "->" + std::to_string(c.M) + " k" + std::to_string(c.kh) + "x" +
         std::to_string(c.kw) + " @" + std::to_string(c.h) + "x" + std::to_string(c.w) + " groups " +
         std::to_string(c.groups) + " stride " + std::to_string(c.stride) + " dilation " + std::to_string(c.dilation) +
         " padding " + std::to_string(c.padding) + " mode " + std::to_string(c.mode);
}

// A row of one output row (a signal) has no vertical stride, dilation or padding.
si_conv_args arguments(const Case& c) {
  si_conv_args args = sized<si_conv_args>();
  args.batch = 1;
  args.h = c.h;
  args.w = c.w;
  const bool image = c.h > 1;
  args.stride[0] = image ? c.stride : 1;
  args.dilation[0] = image ? c.dilation : 1;
  args.padding[0] = args.padding[1] = image ? std::min(c.padding, c.dilation * (c.kh - 1) / 2) : 0;
  args.stride[1] = c.stride;
  args.dilation[1] = c.dilation;
  args.padding[2] = args.padding[3] = c.padding;
  args.padding_mode = c.mode;
  args.row = SI_ROW_BEST;
  args.threads = 1;
  return args;
}

si_weight_desc shape(const Case& c) { return {4, {c.M, c.channels / c.groups, c.kh, c.kw}, c.groups}; }

std::vector<float> run(const Packed& packed, si_conv_args args, const std::vector<float>& x, int64_t M, int64_t* oh,
                       int64_t* ow) {
  SI_CHECK_EQ(si_conv_output_size(packed.get(), &args, oh, ow), SI_OK);
  std::vector<float> y(static_cast<size_t>(args.batch * M * *oh * *ow), -1.0f);
  args.x = x.data();
  args.y = y.data();
  SI_CHECK_EQ(si_conv(packed.get(), &args), SI_OK);
  return y;
}

// Output columns [first, first + 7), computed from a crop of the image so short that it is not cut.
bool same_as_crop(const Packed& packed, const Case& c, const std::vector<float>& x, const std::vector<float>& y,
                  int64_t oh, int64_t ow, int64_t first) {
  const int64_t count = std::min<int64_t>(7, ow - first);
  const int64_t begin = first * c.stride - c.padding,
                end = (first + count - 1) * c.stride - c.padding + c.dilation * (c.kw - 1) + 1;
  Case crop = c;
  crop.w = end - begin;
  crop.padding = 0;
  si_conv_args args = arguments(crop);
  args.padding[0] = args.padding[1] = arguments(c).padding[0];
  std::vector<float> part(static_cast<size_t>(c.channels * c.h * crop.w));
  for (int64_t row = 0; row < c.channels * c.h; ++row)
    for (int64_t j = 0; j < crop.w; ++j) {
      const int64_t from = si::padded_source(begin + j, c.w, c.mode);
      if (from >= 0) part[static_cast<size_t>(row * crop.w + j)] = x[static_cast<size_t>(row * c.w + from)];
    }
  int64_t rows = 0, columns = 0;
  const std::vector<float> expected = run(packed, args, part, c.M, &rows, &columns);
  if (rows != oh || columns != count) return false;
  for (int64_t line = 0; line < c.M * oh; ++line)
    if (std::memcmp(&y[static_cast<size_t>(line * ow + first)], &expected[static_cast<size_t>(line * count)],
                    static_cast<size_t>(count) * sizeof(float)) != 0)
      return false;
  return true;
}

void check_bits(const si_row_info& info, size_t row, const Case& c) {
  Random random;
  const bool nm = info.format == SI_FORMAT_NM;
  const std::vector<float> weight =
      random.conv_weight(c.M, c.channels / c.groups, c.kh * c.kw, 0.4, false, nm ? 2 : 1 << 20, nm ? 4 : 1 << 20);
  const Packed packed(weight, shape(c), pack_options(info.format, SI_F32, c.kblock));
  const std::vector<float> x = random.tensor(c.channels * c.h * c.w, false);
  si_conv_args args = arguments(c);
  args.row = static_cast<int32_t>(row);
  int64_t oh = 0, ow = 0;
  const std::vector<float> one = run(packed, args, x, c.M, &oh, &ow);
  args.threads = 2;
  const std::vector<float> two = run(packed, args, x, c.M, &oh, &ow);
  const std::string what = std::string(info.name) + " " + describe(c);
  if (!SI_CHECK(std::memcmp(one.data(), two.data(), one.size() * sizeof(float)) == 0))
    std::fprintf(stderr, "  one thread and two differ in %s\n", what.c_str());
  // Both ends, and places where strips of any length up to the whole begin.
  for (int64_t first : {int64_t{0}, ow / 3, ow / 2 - 3, ow / 2, ow - 16, ow - 7})
    if (first >= 0 && !SI_CHECK(same_as_crop(packed, c, x, one, oh, ow, first)))
      std::fprintf(stderr, "  columns from %ld differ from those of a crop in %s\n", static_cast<long>(first),
                   what.c_str());
}

// Signals and images so wide that each is cut along its columns: strips of 0.4 of L2, or of the bound of scratch.
std::vector<Case> long_cases() {
  std::vector<Case> out;
  const int64_t w = si::l2_bytes() / 40;  // six channels of it are more than 0.4 of L2
  for (int64_t kernel : {1, 3, 9})
    for (int64_t stride : {1, 2, 3})
      for (int64_t dilation : {1, 5}) {
        const int64_t padding = dilation * (kernel - 1) / 2;
        if (kernel == 1 && dilation > 1) continue;
        for (int64_t groups : {1, 2})
          out.push_back({groups == 1 ? 6 : 8, 8, 1, w * stride, 1, kernel, groups, stride, dilation, padding});
      }
  out.push_back({6, 4, 1, w, 1, 5, 1, 1, 2, 4, SI_PAD_REFLECT});
  out.push_back({6, 4, 1, w, 1, 5, 1, 2, 1, 2, SI_PAD_CIRCULAR});
  out.push_back({6, 4, 1, w, 1, 5, 1, 1, 3, 6, SI_PAD_REPLICATE});
  out.push_back({8, 4, 1, w, 1, 9, 1, 1, 1, 4, SI_PAD_ZEROS, 16});
  // Taps further apart than a strip is long, padding wider than the kernel, a kernel nearly as long as the signal.
  out.push_back({6, 4, 1, w, 1, 9, 1, 1, w / 9, w / 2});
  out.push_back({6, 4, 1, w, 1, 3, 1, 2, 1, 500});
  // Rows fewer than threads, and rows too long for the bound of scratch.
  out.push_back({8, 4, 2, w, 2, 3, 1, 1, 1, 1});
  out.push_back({8, 6, 3, 4 * w, 3, 3, 2, 2, 1, 1});
  return out;
}

// Layers that are only planned: their images are never made.
std::vector<Case> large_cases() {
  std::vector<Case> out;
  for (int64_t stride : {1, 2, 7})
    for (int64_t dilation : {1, 2, 64, 100000})
      for (int64_t groups : {1, 4, 64}) {
        out.push_back({64, 64, 1, 500000000, 1, 9, groups, stride, dilation, 4 * dilation});
        if (dilation < 100) {
          out.push_back({256, 64, 2160, 3840, 3, 3, groups, stride, dilation, dilation});
          out.push_back({512, 64, 4320, 7680, 7, 7, groups, stride, dilation, 3 * dilation, SI_PAD_REFLECT});
        }
      }
  out.push_back({1 << 18, 1 << 18, 64, 4096, 3, 3, 1 << 18, 1, 1, 1});
  out.push_back({4, 8, 1, 1 << 29, 1, 1 << 20, 1, 1 << 20, 1, 0});
  out.push_back({16, 8, 4096, 4096, 1, 1, 1, 2, 1, 0});
  return out;
}

void check_bounds(const Case& c) {
  const int64_t K = c.channels / c.groups * c.kh * c.kw;
  std::vector<float> weight(static_cast<size_t>(c.M * K));
  for (size_t i = 0; i < weight.size(); i += 3) weight[i] = 1.0f;
  const Packed packed(weight, shape(c), pack_options(SI_FORMAT_CSR));
  for (const si::TileKernels* isa :
       {si::tile_kernels(si::Isa::avx512), si::tile_kernels(si::Isa::avx2), si::tile_kernels(si::Isa::neon)}) {
    if (isa == nullptr) continue;
    const si::TileSource source(*isa, *packed.get());
    const si_conv_args args = arguments(c);
    si::ConvGeometry geometry;
    SI_CHECK_EQ(si::conv_geometry(packed.get()->shape, args, &geometry), SI_OK);
    for (int threads : {1, 2, 3, 64})
      for (bool divided : {false, true}) {
        si::ConvCut cut{};
        SI_CHECK_EQ(si::cut_conv({source, args, geometry, threads, true}, 1, divided, &cut), SI_OK);
        int64_t next_row = 0, next_column = 0, most = 0;
        const int64_t seen = std::min<int64_t>(cut.strips(), 1000);
        for (int64_t i = 0; i < seen; ++i) {
          const si::Strip strip = cut.strip(geometry, i);
          if (!SI_CHECK(strip.rows > 0 && strip.columns > 0 && strip.first_row == next_row &&
                        strip.first_column == next_column))
            std::fprintf(stderr, "  strip %ld of %s\n", static_cast<long>(i), describe(c).c_str());
          next_column += strip.columns;
          if (next_column == geometry.ow) next_column = 0, next_row += strip.rows;
          const si::ConvImage image(*isa, geometry, args, strip, 1, cut.groups, true);
          most = std::max(most, image.floats());
        }
        if (seen == cut.strips()) SI_CHECK_EQ(next_row, geometry.oh);
        // Sixteen columns are the least that a strip has, whatever they take.
        if (!SI_CHECK(most <= std::max(si::kScratchFloats, 17 * K)))
          std::fprintf(stderr, "  %ld floats of scratch for %s on %d threads\n", static_cast<long>(most),
                       describe(c).c_str(), threads);
      }
  }
}

// Every operation on tensors of more than 32 MB leaves less than that behind.
void check_scratch() {
  const size_t bound = size_t{20} << 20;
  // The scalar kernels read x where it lies.
  size_t best = 0;
  si_row_info row = sized<si_row_info>();
  SI_CHECK_EQ(si_select(SI_FORMAT_PANEL, SI_OP_CONV, &best), SI_OK);
  SI_CHECK_EQ(si_row(best, &row), SI_OK);
  const bool packs = std::string(row.isa) != "scalar";
  Random random;
  for (const Case& c : {Case{32, 1, 1, 400003, 1, 9, 1, 1, 1, 4}, Case{8, 1, 1201, 1201, 3, 3, 1, 2, 1, 1},
                        Case{32, 1, 1, 400003, 1, 1, 1, 1, 1, 0}}) {
    const int64_t K = c.channels / c.groups * c.kh * c.kw;
    const Packed packed(random.weight(c.M, K, 0.2, false, 1, 1), shape(c), pack_options(SI_FORMAT_PANEL));
    int64_t oh = 0, ow = 0;
    si_conv_args args = arguments(c);
    args.threads = 2;
    run(packed, args, std::vector<float>(static_cast<size_t>(c.channels * c.h * c.w), 1.0f), c.M, &oh, &ow);
    SI_CHECK_EQ(si_scratch_bytes() > 0, packs);
    SI_CHECK(si_scratch_bytes() <= 2 * bound);
    si_release_scratch();
    SI_CHECK_EQ(si_scratch_bytes(), 0u);
  }
}

}  // namespace

int main() {
  for (const Case& c : large_cases()) check_bounds(c);
  check_scratch();
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (info.op != SI_OP_CONV || *info.reason != '\0' || std::string(info.isa) == "scalar" || !computes_float32(info))
      continue;
    for (const Case& c : long_cases()) check_bits(info, row, c);
  }
  return finish("strips_test");
}
