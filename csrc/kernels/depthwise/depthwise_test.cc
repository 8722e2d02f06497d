// Depthwise convolutions of every instruction set that runs here, and the scalar loops, against float64.
#include "kernels/depthwise/depthwise.h"

#include "testing/isas.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  int64_t channels, h, w, kernel, stride;
  int64_t top, bottom, left, right;
  si_activation activation = SI_ACT_NONE;
  bool integers = false;
  int threads = 1;
  int64_t batch = 1;
};

void run(const si::TileKernels* isa, const Case& c) {
  Random random;
  si::DepthwiseArgs args{};
  args.batch = c.batch;
  args.channels = c.channels;
  args.h = c.h;
  args.w = c.w;
  args.oh = (c.h + c.top + c.bottom - c.kernel) / c.stride + 1;
  args.ow = (c.w + c.left + c.right - c.kernel) / c.stride + 1;
  args.kernel[0] = args.kernel[1] = c.kernel;
  args.stride[0] = args.stride[1] = c.stride;
  args.padding[0] = c.top;
  args.padding[1] = c.left;
  args.activation = c.activation;
  args.threads = c.threads;
  // Exactly as long as the tensors are: what a sanitizer sees beyond them is a fault.
  const std::vector<float> x = random.tensor(c.batch * c.channels * c.h * c.w, c.integers);
  const std::vector<float> weights = random.tensor(c.channels * c.kernel * c.kernel, c.integers);
  const std::vector<float> bias = random.tensor(c.channels, c.integers);
  const int64_t size = c.batch * c.channels * args.oh * args.ow;
  Output y(size, 3), again(size, 0);
  args.x = x.data();
  args.weights = weights.data();
  args.bias = bias.data();
  args.y = y.data();
  SI_CHECK_EQ(si::depthwise(isa, args), SI_OK);
  args.y = again.data();
  args.threads = 1;
  SI_CHECK_EQ(si::depthwise(isa, args), SI_OK);
  const std::string what = "h" + std::to_string(c.h) + " w" + std::to_string(c.w) + " kernel " +
                           std::to_string(c.kernel) + " stride " + std::to_string(c.stride);
  y.check_canaries(what);
  bool good = true;
  for (int64_t plane = 0; plane < c.batch * c.channels; ++plane)
    for (int64_t r = 0; r < args.oh; ++r)
      for (int64_t q = 0; q < args.ow; ++q) {
        const int64_t channel = plane % c.channels;
        double sum = bias[static_cast<size_t>(channel)], absolute = std::abs(sum);
        for (int64_t i = 0; i < c.kernel; ++i)
          for (int64_t j = 0; j < c.kernel; ++j) {
            const int64_t row = r * c.stride - c.top + i, column = q * c.stride - c.left + j;
            if (row < 0 || row >= c.h || column < 0 || column >= c.w) continue;
            const double term =
                static_cast<double>(weights[static_cast<size_t>((channel * c.kernel + i) * c.kernel + j)]) *
                static_cast<double>(x[static_cast<size_t>((plane * c.h + row) * c.w + column)]);
            sum += term;
            absolute += std::abs(term);
          }
        const int64_t at = (plane * args.oh + r) * args.ow + q;
        if (c.integers)
          good = SI_CHECK_EQ(y.data()[at], static_cast<float>(sum)) && good;
        else
          good = check_element(y.data()[at], sum, absolute, c.kernel * c.kernel, c.activation) && good;
        // One thread and many give the same bits.
        good = SI_CHECK_EQ(std::memcmp(&y.data()[at], &again.data()[at], sizeof(float)), 0) && good;
      }
  if (!good) std::fprintf(stderr, "  %s\n", what.c_str());
}

void test(const si::TileKernels* isa) {
  for (int64_t kernel : {3, 5, 7})
    for (int64_t stride : {1, 2})
      for (int64_t w : {1, 4, 5, 7, 8, 9, 14, 15, 16, 17, 28, 31, 33, 56, 65}) {
        const int64_t pad = kernel / 2;
        run(isa, {5, 2 + w % 9, w, kernel, stride, pad, pad, pad, pad, SI_ACT_RELU6});
        run(isa, {2, w, w, kernel, stride, pad, pad, pad, pad, SI_ACT_NONE, true, 3, 2});
      }
  // Strips, paddings of other sizes (TensorFlow's), none, and activations that are no clamp.
  run(isa, {3, 112, 112, 3, 1, 1, 1, 1, 1, SI_ACT_RELU, false, 2});
  run(isa, {3, 112, 113, 3, 2, 0, 1, 0, 1, SI_ACT_SILU, false, 2});
  run(isa, {2, 40, 9, 3, 2, 0, 1, 0, 1});
  run(isa, {2, 21, 300, 5, 2, 1, 2, 1, 2});
  run(isa, {2, 9, 20, 5, 1, 0, 0, 0, 0, SI_ACT_TANH});
  run(isa, {1, 3, 700, 7, 1, 6, 6, 6, 6});
  // No kernel of its own: the scalar loops.
  run(isa, {2, 9, 20, 4, 1, 1, 2, 1, 2});
  run(isa, {2, 9, 20, 3, 3, 1, 1, 1, 1});
  run(isa, {2, 9, 20, 1, 1, 0, 0, 0, 0, SI_ACT_RELU});
}

}  // namespace

int main() {
  for (const si::TileKernels* isa : float_isas()) test(isa);
  return finish("depthwise_test");
}
