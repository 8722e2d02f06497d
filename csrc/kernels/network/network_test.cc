// Pooling and the element-wise operations of every instruction set that runs here, and the scalar loops, against
// float64.
#include "kernels/network/network.h"

#include <algorithm>

#include "testing/isas.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();

void test_pool(const si::TileKernels* isa, bool average, bool count_padding, int64_t h, int64_t w, int64_t kernel,
               int64_t stride, int64_t pad, int64_t after) {
  Random random;
  const int64_t planes = 3;
  si::PoolJob job{};
  job.h = h;
  job.w = w;
  job.oh = (h + pad + after - kernel) / stride + 1;
  job.ow = (w + pad + after - kernel) / stride + 1;
  job.kernel[0] = job.kernel[1] = kernel;
  job.stride[0] = job.stride[1] = stride;
  job.padding[0] = job.padding[1] = pad;
  job.average = average;
  job.count_padding = count_padding;
  const std::vector<float> x = random.tensor(planes * h * w, false);
  Output y(planes * job.oh * job.ow, 1);
  SI_CHECK_EQ(si::pool(isa, job, x.data(), y.data(), planes, 2), SI_OK);
  y.check_canaries("pool");
  for (int64_t plane = 0; plane < planes; ++plane)
    for (int64_t r = 0; r < job.oh; ++r)
      for (int64_t c = 0; c < job.ow; ++c) {
        double all = average ? 0.0 : -1e30, absolute = 0.0;
        int64_t count = 0;
        for (int64_t i = 0; i < kernel; ++i)
          for (int64_t j = 0; j < kernel; ++j) {
            const int64_t row = r * stride - pad + i, column = c * stride - pad + j;
            if (row < 0 || row >= h || column < 0 || column >= w) continue;
            const double v = x[static_cast<size_t>((plane * h + row) * w + column)];
            all = average ? all + v : std::max(all, v);
            absolute += std::abs(v);
            ++count;
          }
        const float got = y.data()[(plane * job.oh + r) * job.ow + c];
        const double over = static_cast<double>(count_padding ? kernel * kernel : count);
        if (average)
          SI_CHECK_NEAR(got, all / over, static_cast<double>(kernel * kernel + 2) * kEps * absolute / over);
        else
          SI_CHECK_EQ(got, static_cast<float>(all));
      }
}

void test_nan(const si::TileKernels* isa) {
  std::vector<float> x(40, 1.0f), y(40);
  x[5] = std::numeric_limits<float>::quiet_NaN();
  si::PoolJob job{};
  job.h = 1;
  job.w = job.ow = 40;
  job.oh = 1;
  job.kernel[0] = 1;
  job.kernel[1] = 3;
  job.stride[0] = job.stride[1] = 1;
  job.padding[1] = 1;
  SI_CHECK_EQ(si::pool(isa, job, x.data(), y.data(), 1, 1), SI_OK);
  for (size_t c = 0; c < y.size(); ++c) SI_CHECK_EQ(std::isnan(y[c]), c >= 4 && c <= 6);
}

void test_elements(const si::TileKernels* isa, int64_t count) {
  Random random;
  const std::vector<float> a = random.tensor(count, false), b = random.tensor(count, false);
  for (si_activation kind : {SI_ACT_NONE, SI_ACT_RELU, SI_ACT_RELU6, SI_ACT_SILU, SI_ACT_TANH}) {
    Output y(count, 1), z(count, 2);
    SI_CHECK_EQ(si::add(isa, a.data(), b.data(), y.data(), count, kind, 2), SI_OK);
    SI_CHECK_EQ(si::activation(isa, a.data(), z.data(), count, kind, 2), SI_OK);
    for (int64_t i = 0; i < count; ++i) {
      const double one = a[static_cast<size_t>(i)], two = b[static_cast<size_t>(i)];
      check_element(y.data()[i], one + two, std::abs(one) + std::abs(two), 1, kind);
      check_element(z.data()[i], one, std::abs(one), 1, kind);
    }
    y.check_canaries("add");
    z.check_canaries("activation");
  }
  // In place, both ways.
  std::vector<float> c = a, d = b;
  SI_CHECK_EQ(si::add(isa, c.data(), b.data(), c.data(), count, SI_ACT_NONE, 1), SI_OK);
  SI_CHECK_EQ(si::add(isa, a.data(), d.data(), d.data(), count, SI_ACT_NONE, 1), SI_OK);
  SI_CHECK(c == d);
}

void test_mean(const si::TileKernels* isa, int64_t planes, int64_t pixels) {
  Random random;
  const std::vector<float> x = random.tensor(planes * pixels, false);
  Output y(planes, 1);
  SI_CHECK_EQ(si::global_average_pool(isa, x.data(), y.data(), planes, pixels, 2), SI_OK);
  y.check_canaries("mean");
  for (int64_t plane = 0; plane < planes; ++plane) {
    double sum = 0.0, absolute = 0.0;
    for (int64_t i = 0; i < pixels; ++i) {
      sum += x[static_cast<size_t>(plane * pixels + i)];
      absolute += std::abs(x[static_cast<size_t>(plane * pixels + i)]);
    }
    SI_CHECK_NEAR(y.data()[plane], sum / static_cast<double>(pixels), kEps * (absolute + 1.0));
  }
}

void test_softmax(const si::TileKernels* isa, int64_t outer, int64_t n, int64_t inner) {
  Random random;
  std::vector<float> x = random.tensor(outer * n * inner, false);
  for (float& v : x) v *= 40.0f;
  Output y(outer * n * inner, 1);
  SI_CHECK_EQ(si::softmax(isa, x.data(), y.data(), outer, n, inner, 2), SI_OK);
  y.check_canaries("softmax");
  for (int64_t o = 0; o < outer; ++o)
    for (int64_t c = 0; c < inner; ++c) {
      const auto at = [&](int64_t i) { return static_cast<size_t>((o * n + i) * inner + c); };
      double total = 0.0, most = -1e30;
      for (int64_t i = 0; i < n; ++i) most = std::max(most, static_cast<double>(x[at(i)]));
      for (int64_t i = 0; i < n; ++i) total += std::exp(static_cast<double>(x[at(i)]) - most);
      for (int64_t i = 0; i < n; ++i) {
        const double exact = std::exp(static_cast<double>(x[at(i)]) - most) / total;
        // The difference of two inputs of up to 40 is rounded, and what it is rounded by is an exponent.
        SI_CHECK_NEAR(y.data()[at(i)], exact, (100 + static_cast<double>(n)) * kEps * exact + 1e-37);
      }
    }
}

void test(const si::TileKernels* isa) {
  for (int64_t w : {3, 7, 14, 16, 17, 33, 56})
    for (int64_t stride : {1, 2, 3}) {
      test_pool(isa, false, false, w, w, 3, stride, 1, 1);
      test_pool(isa, false, false, 9, w, 2, stride, 0, 1);
      test_pool(isa, true, true, w, 8, 3, stride, 1, 1);
      test_pool(isa, true, false, 5, w, 3, stride, 1, 2);
    }
  test_pool(isa, false, false, 112, 112, 3, 2, 1, 1);
  test_nan(isa);
  for (int64_t count : {1, 15, 16, 17, 100, 40000}) test_elements(isa, count);
  for (int64_t pixels : {1, 7, 49, 50176}) test_mean(isa, 70, pixels);
  for (int64_t n : {1, 2, 17, 1000})
    for (int64_t inner : {1, 3, 16, 19}) test_softmax(isa, 3, n, inner);
}

}  // namespace

int main() {
  for (const si::TileKernels* isa : float_isas()) test(isa);
  return finish("network_test");
}
