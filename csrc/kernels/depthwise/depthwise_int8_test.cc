// Depthwise convolutions of bytes on every instruction set that runs here, and the scalar loops, against the
// specification of packed int8 weights: as many groups as channels, the same bytes.
#include "kernels/depthwise/depthwise_int8.h"

#include <algorithm>

#include "formats/weights.h"
#include "kernels/scalar/scalar.h"
#include "testing/isas.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr uint8_t kUntouched = 0xA5;

struct Case {
  int64_t channels, h, w, kernel, stride;
  int64_t top, bottom, left, right;
  int32_t x_zero = 0, y_zero = 0;
  si_activation activation = SI_ACT_NONE;
  int threads = 1;
  int64_t batch = 1;
};

void run(const si::TileKernels* isa, const Case& c) {
  Random random;
  si::DepthwiseInt8Args args{};
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
  args.quantization = sized<si_quantization>();
  args.quantization.x_scale = 0.013f;
  args.quantization.x_zero_point = c.x_zero;
  args.quantization.y_scale = 0.021f;
  args.quantization.y_zero_point = c.y_zero;
  const int64_t taps = c.kernel * c.kernel, size = c.batch * c.channels * args.oh * args.ow;
  // Exactly as long as the tensors are: what a sanitizer sees beyond them is a fault.
  std::vector<uint8_t> x(static_cast<size_t>(c.batch * c.channels * c.h * c.w));
  for (uint8_t& v : x) v = static_cast<uint8_t>(random.engine());
  std::vector<int8_t> weights(static_cast<size_t>(c.channels * taps));
  for (int8_t& v : weights) v = static_cast<int8_t>(random.engine());
  std::vector<float> scales(static_cast<size_t>(c.channels)), bias = random.tensor(c.channels, false), dense;
  for (float& v : scales) v = 0.002f + 0.001f * random.uniform();
  for (size_t i = 0; i < weights.size(); ++i)
    dense.push_back(static_cast<float>(weights[i]) * scales[i / static_cast<size_t>(taps)]);
  args.x = x.data();
  args.weights = weights.data();
  args.scales = scales.data();
  args.bias = bias.data();
  std::vector<uint8_t> y(static_cast<size_t>(size) + 64, kUntouched), expected(static_cast<size_t>(size));
  args.y = y.data();
  SI_CHECK_EQ(si::depthwise_int8(isa, args), SI_OK);
  for (size_t i = static_cast<size_t>(size); i < y.size(); ++i) SI_CHECK_EQ(y[i], kUntouched);

  si_weight_desc desc{4, {c.channels, 1, c.kernel, c.kernel}, c.channels};
  si_pack_options options = sized<si_pack_options>();
  options.format = SI_FORMAT_PANEL;
  options.value_type = SI_I8;
  options.scales = scales.data();
  void* blob = nullptr;
  size_t bytes = 0;
  SI_CHECK_EQ(si_pack(dense.data(), &desc, &options, &blob, &bytes), SI_OK);
  si_weights packed;
  SI_CHECK_EQ(si::open_weights(blob, bytes, &packed), SI_OK);
  si_conv_args conv = sized<si_conv_args>();
  conv.x = x.data();
  conv.y = expected.data();
  conv.bias = bias.data();
  conv.batch = c.batch;
  conv.h = c.h;
  conv.w = c.w;
  for (int i = 0; i < 2; ++i) conv.stride[i] = c.stride, conv.dilation[i] = 1;
  const int64_t padding[] = {c.top, c.bottom, c.left, c.right};
  std::copy(padding, padding + 4, conv.padding);
  conv.activation = c.activation;
  conv.threads = 1;
  conv.x_type = conv.y_type = SI_U8;
  conv.quantization = &args.quantization;
  SI_CHECK_EQ(si::scalar_conv_int8(packed, conv), SI_OK);
  si_free(blob);
  if (!SI_CHECK(std::equal(expected.begin(), expected.end(), y.begin())))
    std::fprintf(stderr, "  h %ld w %ld kernel %ld stride %ld padding %ld %ld, isa %s\n", static_cast<long>(c.h),
                 static_cast<long>(c.w), static_cast<long>(c.kernel), static_cast<long>(c.stride),
                 static_cast<long>(c.top), static_cast<long>(c.left), isa == nullptr ? "scalar" : "tiles");
}

}  // namespace

int main() {
  const std::vector<const si::TileKernels*> isas = byte_isas();
  std::vector<Case> cases;
  for (int64_t kernel : {3, 5, 7})
    for (int64_t stride : {1, 2})
      for (int64_t w : {1, 2, 7, 14, 15, 16, 28, 31, 49, 56, 63, 64, 65, 112, 130}) {
        const int64_t half = kernel / 2;
        cases.push_back({3, 9, w, kernel, stride, half, half, half, half, 128, 3});
        if (w >= 2) cases.push_back({5, 8, w, kernel, stride, half, half, half - 1, half + 1, 255, 0, SI_ACT_RELU});
      }
  for (int threads : {1, 3}) {
    cases.push_back({37, 7, 7, 3, 1, 1, 1, 1, 1, 0, 0, SI_ACT_RELU6, threads, 2});
    cases.push_back({20, 113, 113, 3, 2, 0, 1, 0, 1, 7, 0, SI_ACT_RELU, threads, 3});
    cases.push_back({18, 112, 112, 3, 1, 1, 1, 1, 1, 7, 9, SI_ACT_NONE, threads});
    cases.push_back({18, 40, 60, 5, 1, 2, 2, 2, 2, 7, 9, SI_ACT_NONE, threads});
    cases.push_back({18, 40, 60, 7, 2, 3, 3, 3, 3, 7, 9, SI_ACT_NONE, threads});
  }
  // Padding of more than a kernel, none, and kernels that only the scalar loops have.
  cases.push_back({4, 6, 6, 3, 1, 5, 7, 6, 9, 17, 1});
  cases.push_back({4, 6, 6, 3, 2, 5, 7, 6, 9, 17, 1});
  cases.push_back({4, 12, 70, 7, 1, 0, 0, 0, 0, 17, 1});
  cases.push_back({4, 9, 9, 4, 1, 1, 2, 1, 2, 17, 1});
  cases.push_back({4, 9, 9, 3, 3, 1, 1, 1, 1, 17, 1});
  for (const si::TileKernels* isa : isas)
    for (const Case& c : cases) run(isa, c);
  return finish("depthwise_int8_test");
}
