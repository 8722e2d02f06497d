// Every registry row that computes a convolution and runs here, against float64.
#include <algorithm>

#include "kernels/conv/geometry.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  int64_t batch = 1, channels = 5, M = 6, h = 9, w = 11;
  int64_t kh = 3, kw = 3, groups = 1;
  int64_t stride[2] = {1, 1}, padding[4] = {1, 1, 1, 1}, dilation[2] = {1, 1};
  si_padding mode = SI_PAD_ZEROS;
  si_activation activation = SI_ACT_NONE;
  int threads = 3;
  int ndim = 4;
  int kblock = 0;
  bool integers = true, bias = true;
  double density = 0.4;
  bool bfloat16 = false;  // the panel format stores values so
  int64_t kept = 1;       // of so many rows one is not zero throughout
};

void run(size_t row, const si_row_info& info, const Case& c) {
  Random random;
  const int64_t group_channels = c.channels / c.groups, K = group_channels * c.kh * c.kw;
  const bool of_groups = info.format == SI_FORMAT_NM;
  const int n = of_groups ? 2 : 1 << 20, m = of_groups ? 4 : 1 << 20;
  std::vector<float> weight = random.conv_weight(c.M, group_channels, c.kh * c.kw, c.density, c.integers, n, m);
  if (c.bfloat16) round_to_bfloat16(weight);
  keep_rows(weight, K, c.kept);
  si_weight_desc desc{c.ndim, {c.M, group_channels, c.kh, c.kw}, c.groups};
  if (c.ndim == 3) {
    desc.shape[2] = c.kw;
    desc.shape[3] = 0;
  }
  const si_value_type type = c.bfloat16 && info.format == SI_FORMAT_PANEL ? SI_BF16 : SI_F32;
  const si_pack_options options = pack_options(info.format, type, c.kblock);
  const Packed packed(weight, desc, options);
  const std::vector<float> bias = random.tensor(c.M, c.integers);
  const std::vector<float> x = random.tensor(c.batch * c.channels * c.h * c.w, c.integers);

  si_conv_args args = sized<si_conv_args>();
  args.x = x.data();
  args.bias = c.bias ? bias.data() : nullptr;
  args.batch = c.batch;
  args.h = c.h;
  args.w = c.w;
  std::copy(c.stride, c.stride + 2, args.stride);
  std::copy(c.padding, c.padding + 4, args.padding);
  std::copy(c.dilation, c.dilation + 2, args.dilation);
  args.padding_mode = c.mode;
  args.activation = c.activation;
  args.row = static_cast<int32_t>(row);
  int64_t oh = 0, ow = 0;
  SI_CHECK_EQ(si_conv_output_size(packed.get(), &args, &oh, &ow), SI_OK);
  Output y(c.batch * c.M * oh * ow, 1), again(c.batch * c.M * oh * ow, 1);
  args.y = y.data();
  args.threads = c.threads;
  SI_CHECK_EQ(si_conv(packed.get(), &args), SI_OK);
  args.y = again.data();
  args.threads = 1;
  SI_CHECK_EQ(si_conv(packed.get(), &args), SI_OK);

  const std::string what = std::string(info.name) + " " + std::to_string(c.channels) + "->" + std::to_string(c.M) +
                           " k" + std::to_string(c.kh) + "x" + std::to_string(c.kw) + " @" + std::to_string(c.h) + "x" +
                           std::to_string(c.w) + " stride " + std::to_string(c.stride[0]) + "," +
                           std::to_string(c.stride[1]) + " dilation " + std::to_string(c.dilation[0]) + "," +
                           std::to_string(c.dilation[1]) + " groups " + std::to_string(c.groups) + " batch " +
                           std::to_string(c.batch) + " mode " + std::to_string(c.mode);
  y.check_canaries(what);
  bool good = true;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t om = 0; om < c.M; ++om)
      for (int64_t r = 0; r < oh; ++r)
        for (int64_t q = 0; q < ow; ++q) {
          double sum = c.bias ? static_cast<double>(bias[static_cast<size_t>(om)]) : 0.0, absolute = std::abs(sum);
          for (int64_t k = 0; k < K; ++k) {
            const int64_t channel = om / (c.M / c.groups) * group_channels + k / (c.kh * c.kw);
            const int64_t sr =
                si::padded_source(r * c.stride[0] + k / c.kw % c.kh * c.dilation[0] - c.padding[0], c.h, c.mode);
            const int64_t sc =
                si::padded_source(q * c.stride[1] + k % c.kw * c.dilation[1] - c.padding[2], c.w, c.mode);
            if (sr < 0 || sc < 0) continue;
            const double term =
                static_cast<double>(weight[static_cast<size_t>(om * K + k)]) *
                static_cast<double>(x[static_cast<size_t>(((b * c.channels + channel) * c.h + sr) * c.w + sc)]);
            sum += term;
            absolute += std::abs(term);
          }
          const int64_t at = ((b * c.M + om) * oh + r) * ow + q;
          if (c.integers && c.activation == SI_ACT_NONE)
            good = SI_CHECK_EQ(y.data()[at], static_cast<float>(sum)) && good;
          else
            good = check_element(y.data()[at], sum, absolute, K, c.activation) && good;
          good = SI_CHECK_EQ(std::memcmp(&y.data()[at], &again.data()[at], sizeof(float)), 0) && good;
        }
  if (!good) std::fprintf(stderr, "  in %s\n", what.c_str());
}

std::vector<Case> cases() {
  std::vector<Case> out;
  const auto add = [&](auto&& change) {
    Case c;
    change(c);
    out.push_back(c);
  };
  for (int64_t kernel : {1, 2, 3, 5, 7})
    for (int64_t stride : {1, 2, 3})
      for (int64_t pad : {int64_t{0}, kernel / 2})
        for (int64_t dilation : {1, 2}) {
          if (dilation == 2 && kernel > 3) continue;
          add([&](Case& c) {
            c.kh = c.kw = kernel;
            std::fill(c.stride, c.stride + 2, stride);
            std::fill(c.padding, c.padding + 4, pad);
            std::fill(c.dilation, c.dilation + 2, dilation);
            c.batch = 2;
          });
        }
  for (si_padding mode : {SI_PAD_REFLECT, SI_PAD_REPLICATE, SI_PAD_CIRCULAR})
    for (int64_t stride : {1, 2})
      add([&](Case& c) {
        c.mode = mode;
        c.padding[0] = 2;
        c.padding[1] = 1;
        c.padding[2] = 0;
        c.padding[3] = 3;
        std::fill(c.stride, c.stride + 2, stride);
      });
  // Axes that differ, kernels larger than the image, padding wider than the kernel, images of one pixel.
  add([](Case& c) { c.kh = 1, c.kw = 5, c.padding[0] = c.padding[1] = 0, c.stride[0] = 3, c.stride[1] = 2; });
  add([](Case& c) { c.kh = 5, c.kw = 1, c.dilation[0] = 3, c.padding[0] = 6, c.padding[1] = 5; });
  add([](Case& c) { c.h = c.w = 2, c.kh = c.kw = 4, std::fill(c.padding, c.padding + 4, 3); });
  add([](Case& c) { c.h = c.w = 3, std::fill(c.padding, c.padding + 4, 9); });
  add([](Case& c) { c.h = c.w = 3, std::fill(c.padding, c.padding + 4, 9), c.stride[0] = c.stride[1] = 4; });
  add([](Case& c) { c.h = c.w = 1, c.batch = 37; });
  add([](Case& c) { c.h = c.w = 1, c.batch = 37, c.kh = c.kw = 1, std::fill(c.padding, c.padding + 4, 0); });
  add([](Case& c) { c.h = 7, c.w = 7, c.batch = 5, c.channels = 16, c.M = 33, c.threads = 4; });
  add([](Case& c) { c.h = 40, c.w = 57, c.channels = 3, c.M = 9, c.batch = 1; });
  add([](Case& c) {
    c.h = 40, c.w = 57, c.channels = 30, c.M = 9, c.kh = c.kw = 1, std::fill(c.padding, c.padding + 4, 0), c.batch = 3;
  });
  add([](Case& c) { c.stride[0] = c.stride[1] = 5, c.kh = c.kw = 2; });
  // Enough work that every thread asked for is used and cuts a strip of rows of its own, with garbage columns between
  // rows (padding) and without.
  for (int threads : {2, 3, 4})
    for (int64_t kernel : {1, 2, 3})
      add([&](Case& c) {
        c.h = 40, c.w = 43, c.channels = 96 / kernel / kernel, c.M = 26, c.density = 0.5, c.threads = threads;
        c.kh = c.kw = kernel, c.stride[0] = c.stride[1] = kernel == 3 ? 1 : 2;
        std::fill(c.padding, c.padding + 4, kernel / 3);
        if (kernel == 3) c.channels = 48, c.M = 9, c.kblock = 144;  // more channels than the nearest cache holds
      });
  add([](Case& c) { c.batch = 0; });
  // Rows pruned whole, so that panels keep them in an order of their own.
  for (int64_t kernel : {1, 3})
    for (int64_t groups : {1, 2})
      add([&](Case& c) {
        c.kept = 3, c.M = 46, c.channels = 12, c.groups = groups, c.h = 16, c.w = 16, c.batch = 2, c.density = 0.8;
        c.kh = c.kw = kernel, std::fill(c.padding, c.padding + 4, kernel / 2);
      });
  // Groups, with panels that end inside and at a group's end, and depthwise.
  for (int64_t groups : {2, 3, 6})
    for (int64_t stride : {1, 2})
      add([&](Case& c) {
        c.groups = groups;
        c.channels = c.M = 6;
        if (groups == 2) c.M = 14;
        c.batch = 3;
        std::fill(c.stride, c.stride + 2, stride);
      });
  add([](Case& c) { c.groups = 4, c.channels = 8, c.M = 24, c.kh = c.kw = 1, std::fill(c.padding, c.padding + 4, 0); });
  // One dimension.
  for (int64_t stride : {1, 2})
    add([&](Case& c) {
      c.ndim = 3;
      c.h = c.kh = 1;
      c.w = 50;
      c.kw = 4;
      c.stride[1] = stride;
      c.dilation[1] = 3;
      c.padding[0] = c.padding[1] = 0;
      c.padding[3] = 4;
      c.batch = 3;
    });
  // Columns of the kernel apart: enough non-zeros a column, and output rows near a multiple of half a cache line.
  for (int64_t w : {7, 8, 15, 28, 56})
    for (int64_t kernel : {2, 3})
      for (int64_t stride : {1, 2, 3})
        for (int64_t dilation : {1, 2})
          for (si_padding mode : {SI_PAD_ZEROS, SI_PAD_REFLECT}) {
            if (mode != SI_PAD_ZEROS && (w > 15 || dilation > 1)) continue;
            add([&](Case& c) {
              c.w = w * stride, c.h = 8;
              c.kh = c.kw = kernel;
              std::fill(c.stride, c.stride + 2, stride);
              std::fill(c.dilation, c.dilation + 2, dilation);
              c.padding[0] = c.padding[2] = dilation, c.padding[1] = c.padding[3] = dilation * (kernel - 2);
              c.mode = mode;
              c.M = 20, c.batch = w == 8 ? 3 : 1;
            });
          }
  // Several K blocks at a time, or one by one; more strips of rows than threads.
  add([](Case& c) { c.channels = 40, c.M = 140, c.h = 12, c.w = 14, c.kblock = 144, c.integers = false; });
  add([](Case& c) { c.channels = 80, c.M = 12, c.h = 4, c.w = 56, c.kblock = 288, c.integers = false; });
  add([](Case& c) { c.channels = 16, c.M = 8, c.h = 60, c.w = 56, c.kblock = 48; });
  add([](Case& c) { c.channels = 16, c.M = 20, c.h = 60, c.w = 60, c.kept = 4; });
  add([](Case& c) { c.bfloat16 = true, c.integers = false, c.channels = 40, c.kblock = 144; });
  for (double density : {0.0, 0.1, 1.0}) add([&](Case& c) { c.density = density, c.integers = false; });
  for (int kblock : {16, 32, 64}) add([&](Case& c) { c.kblock = kblock, c.channels = 20; });
  for (int activation = SI_ACT_NONE; activation <= SI_ACT_HARDSIGMOID; ++activation)
    add([&](Case& c) {
      c.activation = static_cast<si_activation>(activation), c.integers = false, c.bias = activation % 2 == 1;
    });
  return out;
}

}  // namespace

int main() {
  int rows = 0;
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (info.op != SI_OP_CONV || *info.reason != '\0' || !computes_float32(info)) continue;
    ++rows;
    for (const Case& c : cases()) run(row, info, c);
  }
  SI_CHECK(rows >= 3);
  return finish("conv_test");
}
