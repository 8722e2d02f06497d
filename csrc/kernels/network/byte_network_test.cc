// Bytes added, looked up, pooled, averaged and turned into floats and back: every instruction set that runs here gives
// what the scalar loops do, which are held against plain arithmetic.
#include "kernels/network/byte_network.h"

#include <algorithm>
#include <cmath>

#include "kernels/quantized.h"
#include "kernels/source.h"
#include "testing/isas.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

std::vector<uint8_t> random_bytes(Random& random, int64_t count) {
  std::vector<uint8_t> out(static_cast<size_t>(count));
  for (uint8_t& v : out) v = static_cast<uint8_t>(random.engine());
  return out;
}

// What every instruction set writes, with untouched bytes after it.
template <class T, class Fn>
void alike(const char* what, int64_t count, const Fn& fn) {
  std::vector<std::vector<T>> all;
  for (const si::TileKernels* isa : byte_isas()) {
    std::vector<T> y(static_cast<size_t>(count) + 8, T{77});
    SI_CHECK_EQ(fn(isa, y.data()), SI_OK);
    for (size_t i = static_cast<size_t>(count); i < y.size(); ++i) SI_CHECK(y[i] == T{77});
    all.push_back(y);
    if (!SI_CHECK(all[0] == y)) std::fprintf(stderr, "  %s of %ld\n", what, static_cast<long>(count));
  }
}

void test_add() {
  Random random;
  for (int64_t count : {1, 15, 16, 63, 64, 65, 1000, 200001})
    for (si_activation activation : {SI_ACT_NONE, SI_ACT_RELU, SI_ACT_RELU6})
      for (int32_t zero : {0, 120, 255}) {
        const std::vector<uint8_t> a = random_bytes(random, count), b = random_bytes(random, count);
        const si::ByteSum sum{0.037f, 0.11f, 255 - zero, zero, si::to_byte(0.08f, zero, si::clamp_of(activation))};
        alike<uint8_t>("add", count, [&](const si::TileKernels* isa, uint8_t* y) {
          return si::add_bytes(isa, sum, a.data(), b.data(), y, count, 3);
        });
        // In place.
        alike<uint8_t>("add", count, [&](const si::TileKernels* isa, uint8_t* y) {
          std::copy(a.begin(), a.end(), y);
          return si::add_bytes(isa, sum, y, b.data(), y, count, 1);
        });
        std::vector<uint8_t> y(a.size());
        SI_CHECK_EQ(si::add_bytes(nullptr, sum, a.data(), b.data(), y.data(), count, 1), SI_OK);
        for (size_t i = 0; i < y.size(); ++i) {
          double v = (a[i] - (255 - zero)) * double{0.037f} + (b[i] - zero) * double{0.11f};
          if (activation != SI_ACT_NONE) v = std::max(v, 0.0);
          if (activation == SI_ACT_RELU6) v = std::min(v, 6.0);
          const double exact = std::clamp(v / double{0.08f} + zero, 0.0, 255.0);
          SI_CHECK(std::abs(y[i] - exact) <= 0.5 + 1e-3);
        }
      }
}

void test_lookup() {
  Random random;
  const std::vector<uint8_t> table = random_bytes(random, si::kBytesInTable);
  for (int64_t count : {1, 15, 16, 63, 64, 65, 1000, 200001}) {
    const std::vector<uint8_t> x = random_bytes(random, count);
    alike<uint8_t>("lookup", count, [&](const si::TileKernels* isa, uint8_t* y) {
      return si::lookup_bytes(isa, table.data(), x.data(), y, count, 3);
    });
    // In place.
    std::vector<uint8_t> y = x;
    SI_CHECK_EQ(si::lookup_bytes(si::widest_byte_kernels(), table.data(), y.data(), y.data(), count, 1), SI_OK);
    for (size_t i = 0; i < y.size(); ++i) SI_CHECK_EQ(y[i], table[x[i]]);
  }
}

void test_average_pool() {
  Random random;
  for (const bool counts : {false, true})
    for (int64_t stride : {1, 2}) {
      si::PoolJob job{};
      job.h = 9;
      job.w = 13;
      job.kernel[0] = 3;
      job.kernel[1] = 4;
      job.stride[0] = job.stride[1] = stride;
      job.padding[0] = 1;
      job.padding[1] = 2;
      job.oh = (9 + 2 - 3) / stride + 1;
      job.ow = (13 + 4 - 4) / stride + 1;
      job.average = true;
      job.count_padding = counts;
      si_quantization q = sized<si_quantization>();
      q.x_scale = 0.04f;
      q.x_zero_point = 77;
      q.y_scale = 0.03f;
      q.y_zero_point = 50;
      const std::vector<uint8_t> x = random_bytes(random, 5 * 9 * 13);
      const int64_t size = 5 * job.oh * job.ow;
      alike<uint8_t>("average pool", size, [&](const si::TileKernels* isa, uint8_t* y) {
        return si::average_pool_bytes(isa, job, q, x.data(), y, 5, 2);
      });
      std::vector<uint8_t> y(static_cast<size_t>(size));
      SI_CHECK_EQ(si::average_pool_bytes(nullptr, job, q, x.data(), y.data(), 5, 1), SI_OK);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t plane = i / (job.oh * job.ow), r = i / job.ow % job.oh, c = i % job.ow;
        double sum = 0;
        int covered = 0;
        for (int64_t row = r * stride - 1; row < r * stride + 2; ++row)
          for (int64_t column = c * stride - 2; column < c * stride + 2; ++column) {
            if (row < 0 || row >= 9 || column < 0 || column >= 13) continue;
            sum += x[static_cast<size_t>((plane * 9 + row) * 13 + column)] - 77;
            ++covered;
          }
        const double mean = sum * double{0.04f} / (counts ? 12 : covered);
        const double exact = std::clamp(mean / double{0.03f} + 50, 0.0, 255.0);
        SI_CHECK(std::abs(y[static_cast<size_t>(i)] - exact) <= 0.5 + 1e-3);
      }
    }
}

void test_borders() {
  Random random;
  for (int64_t count : {1, 16, 17, 250, 100000}) {
    std::vector<float> x = random.tensor(count, false);
    x[0] = std::numeric_limits<float>::quiet_NaN();
    for (int32_t zero : {0, 128}) {
      const si::ToByte to = si::to_byte(1.5f / 255, zero, si::clamp_of(SI_ACT_NONE));
      alike<uint8_t>("quantize", count, [&](const si::TileKernels* isa, uint8_t* y) {
        return si::quantize_floats(isa, to, x.data(), y, count, 2);
      });
      const std::vector<uint8_t> bytes = random_bytes(random, count);
      alike<float>("dequantize", count, [&](const si::TileKernels* isa, float* y) {
        return si::dequantize_bytes(isa, 0.3f, zero, bytes.data(), y, count, 2);
      });
      float y = 0.0f;
      SI_CHECK_EQ(si::dequantize_bytes(nullptr, 0.3f, zero, bytes.data(), &y, 1, 1), SI_OK);
      SI_CHECK_EQ(y, static_cast<float>(bytes[0] - zero) * 0.3f);
    }
  }
}

void test_max_pool() {
  Random random;
  for (int64_t w : {3, 7, 16, 33, 112})
    for (int64_t kernel : {1, 2, 3, 5})
      for (int64_t stride : {1, 2, 3})
        for (int64_t pad : {int64_t{0}, kernel / 2}) {
          if (w + 2 * pad < kernel) continue;
          si::PoolJob job{};
          job.h = 9;
          job.w = w;
          job.oh = (job.h + 2 * pad - kernel) / stride + 1;
          job.ow = (w + 2 * pad - kernel) / stride + 1;
          for (int i = 0; i < 2; ++i) job.kernel[i] = kernel, job.stride[i] = stride, job.padding[i] = pad;
          const std::vector<uint8_t> x = random_bytes(random, 5 * job.h * job.w);
          const int64_t size = 5 * job.oh * job.ow;
          alike<uint8_t>("max pool", size, [&](const si::TileKernels* isa, uint8_t* y) {
            return si::max_pool_bytes(isa, job, x.data(), y, 5, 2);
          });
          // Window by window of the first channel's last row.
          std::vector<uint8_t> y(static_cast<size_t>(size));
          SI_CHECK_EQ(si::max_pool_bytes(nullptr, job, x.data(), y.data(), 5, 1), SI_OK);
          const int64_t r = job.oh - 1;
          for (int64_t c = 0; c < job.ow; ++c) {
            int most = 0;
            for (int64_t i = std::max<int64_t>(0, r * stride - pad); i < std::min(job.h, r * stride - pad + kernel);
                 ++i)
              for (int64_t j = std::max<int64_t>(0, c * stride - pad); j < std::min(w, c * stride - pad + kernel); ++j)
                most = std::max<int>(most, x[static_cast<size_t>(i * w + j)]);
            SI_CHECK_EQ(int{y[static_cast<size_t>(r * job.ow + c)]}, most);
          }
        }
}

void test_average() {
  Random random;
  for (int64_t pixels : {1, 49, 64, 1000}) {
    const int64_t planes = 300;
    const std::vector<uint8_t> x = random_bytes(random, planes * pixels);
    si_quantization q = sized<si_quantization>();
    q.x_scale = 0.02f;
    q.x_zero_point = 90;
    q.y_scale = 0.015f;
    q.y_zero_point = 100;
    alike<uint8_t>("average", planes, [&](const si::TileKernels* isa, uint8_t* y) {
      return si::average_bytes(isa, q, x.data(), y, planes, pixels, 2);
    });
    uint8_t y = 0;
    SI_CHECK_EQ(si::average_bytes(nullptr, q, x.data(), &y, 1, pixels, 1), SI_OK);
    double sum = 0;
    for (int64_t i = 0; i < pixels; ++i) sum += x[static_cast<size_t>(i)] - 90;
    const double exact = std::clamp(sum / static_cast<double>(pixels) * 0.02 / 0.015 + 100, 0.0, 255.0);
    SI_CHECK(std::abs(y - exact) <= 0.5 + 1e-3);
  }
}

}  // namespace

int main() {
  test_add();
  test_lookup();
  test_average_pool();
  test_borders();
  test_max_pool();
  test_average();
  return finish("byte_network_test");
}
