// Every registry row of bfloat16 pairs that runs here, against float64 sums of the rounded operands, within the bound
// of sparseinfer.h.
#include <algorithm>
#include <cstring>

#include "formats/panel/pairs.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  int64_t M, C, N;  // N tokens, or images of a convolution
  bool x_half = true, y_half = true;
  si_activation activation = SI_ACT_RELU;
  int threads = 1;
  bool channel_major = false, bias = true, integers = false;
  int64_t kept = 1;  // of so many rows one is not zero throughout
  double density = 0.4;
  // Of a convolution: the image, the kernel, groups, stride, padding and dilation along both axes.
  int64_t h = 0, w = 0, kernel = 1, groups = 1, stride = 1, padding = 0, dilation = 1;
  si_padding mode = SI_PAD_ZEROS;

  bool conv() const { return h > 0; }
  int64_t K() const { return C / groups * kernel * kernel; }
};

constexpr float kInf = std::numeric_limits<float>::infinity();

// Values of float32 or bfloat16 with room around them that must not change.
class Tensor {
 public:
  Tensor(int64_t size, bool half)
      : half_(half), size_((half ? 2 : 4) * size), data_(static_cast<size_t>(size_ + 2 * kGuard), 0xa5) {}
  Tensor(const std::vector<float>& values, bool half) : Tensor(static_cast<int64_t>(values.size()), half) {
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t bits = si::float_to_bfloat16(values[i]);
      if (half)
        std::memcpy(at(static_cast<int64_t>(i)), &bits, sizeof bits);
      else
        std::memcpy(at(static_cast<int64_t>(i)), &values[i], sizeof values[i]);
    }
  }
  uint8_t* data() { return data_.data() + kGuard; }
  float number(int64_t i) {
    uint16_t bits;
    float value;
    std::memcpy(&bits, at(i), sizeof bits);
    if (half_) return si::bfloat16_to_float(bits);
    std::memcpy(&value, at(i), sizeof value);
    return value;
  }
  bool intact() const {
    const auto whole = [](uint8_t byte) { return byte == 0xa5; };
    return std::all_of(data_.begin(), data_.begin() + kGuard, whole) &&
           std::all_of(data_.end() - kGuard, data_.end(), whole);
  }
  bool same(const Tensor& other) const { return data_ == other.data_; }

 private:
  static constexpr int64_t kGuard = 64;
  uint8_t* at(int64_t i) { return data() + (half_ ? 2 : 4) * i; }
  bool half_;
  int64_t size_;
  std::vector<uint8_t> data_;
};

// An operand as the product takes it, computed in another way than the library does: the nearest of the two bfloat16
// that a value lies between, and zero below 2^-126.
double operand(float v) {
  if (!std::isfinite(v)) return static_cast<double>(v);
  if (std::abs(v) < 0x1p-126f) return 0.0;
  const double step = std::ldexp(1.0, std::ilogb(v) - 7);
  return std::nearbyint(static_cast<double>(v) / step) * step;
}

bool check(float y, double sum, double absolute, const Case& c) {
  const double eps = std::numeric_limits<float>::epsilon(), K = static_cast<double>(c.K());
  if (!std::isfinite(sum)) return SI_CHECK(!std::isfinite(y));
  const double expected = activate64(sum, c.activation);
  double bound = (K + 2) * eps * absolute + K * 0x1p-126;
  if (c.activation != SI_ACT_NONE) bound = 1.13 * bound + 4 * eps * (1 + std::abs(sum));
  if (c.y_half) bound += 0x1p-8 * (std::abs(expected) + bound) + 0x1p-126;
  // Sums of small integers are exact.
  if (c.integers && !c.y_half && (c.activation == SI_ACT_NONE || c.activation == SI_ACT_RELU)) bound = 0.0;
  return SI_CHECK_NEAR(y, expected, bound);
}

struct Problem {
  Case c;
  std::vector<float> weight, bias, x;
  int64_t ldx = 0, ldy = 0;

  explicit Problem(const Case& given) : c(given) {
    Random random;
    weight = random.weight(c.M, c.K(), c.density, c.integers, 4, 4);
    keep_rows(weight, c.K(), c.kept);
    bias = random.tensor(c.M, c.integers);
    ldx = (c.channel_major ? c.N : c.C) + 3;
    ldy = (c.channel_major ? c.N : c.M) + 3;
    x = random.tensor(c.conv() ? c.N * c.C * c.h * c.w : (c.channel_major ? c.C : c.N) * ldx, c.integers);
  }
  int64_t x_at(int64_t k, int64_t n) const { return c.channel_major ? k * ldx + n : n * ldx + k; }
  // As the call reads it: a bfloat16 has been rounded before.
  double x_of(int64_t at) const {
    const float v = x[static_cast<size_t>(at)];
    return operand(c.x_half ? si::bfloat16_to_float(si::float_to_bfloat16(v)) : v);
  }
  double weight_of(int64_t m, int64_t k) const { return operand(weight[static_cast<size_t>(m * c.K() + k)]); }
  double bias_of(int64_t m) const { return c.bias ? static_cast<double>(bias[static_cast<size_t>(m)]) : 0.0; }
};

void check_linear(const Problem& p, Tensor& y, bool& good) {
  const Case& c = p.c;
  for (int64_t m = 0; m < c.M; ++m)
    for (int64_t n = 0; n < c.N; ++n) {
      double sum = p.bias_of(m), absolute = std::abs(sum);
      for (int64_t k = 0; k < c.C; ++k) {
        const double w = p.weight_of(m, k);
        if (w == 0.0) continue;
        sum += w * p.x_of(p.x_at(k, n));
        absolute += std::abs(w * p.x_of(p.x_at(k, n)));
      }
      good = check(y.number(c.channel_major ? m * p.ldy + n : n * p.ldy + m), sum, absolute, c) && good;
    }
}

int64_t source_of(int64_t p, int64_t size, si_padding mode) {
  if (p >= 0 && p < size) return p;
  if (mode == SI_PAD_ZEROS) return -1;
  if (mode == SI_PAD_REPLICATE) return std::clamp<int64_t>(p, 0, size - 1);
  if (mode == SI_PAD_CIRCULAR) return (p + size) % size;
  return p < 0 ? -p : 2 * (size - 1) - p;
}

void check_conv(const Problem& p, Tensor& y, int64_t oh, int64_t ow, bool& good) {
  const Case& c = p.c;
  const int64_t taps = c.kernel * c.kernel;
  for (int64_t b = 0; b < c.N; ++b)
    for (int64_t m = 0; m < c.M; ++m)
      for (int64_t r = 0; r < oh; ++r)
        for (int64_t col = 0; col < ow; ++col) {
          double sum = p.bias_of(m), absolute = std::abs(sum);
          for (int64_t k = 0; k < c.K(); ++k) {
            const int64_t channel = m / (c.M / c.groups) * (c.C / c.groups) + k / taps;
            const int64_t kr = k % taps / c.kernel, kc = k % c.kernel;
            const int64_t row = source_of(r * c.stride + kr * c.dilation - c.padding, c.h, c.mode);
            const int64_t column = source_of(col * c.stride + kc * c.dilation - c.padding, c.w, c.mode);
            if (row < 0 || column < 0) continue;
            const double term = p.weight_of(m, k) * p.x_of(((b * c.C + channel) * c.h + row) * c.w + column);
            sum += term;
            absolute += std::abs(term);
          }
          good = check(y.number(((b * c.M + m) * oh + r) * ow + col), sum, absolute, c) && good;
        }
}

void run(size_t row, const si_row_info& info, const Problem& p) {
  const Case& c = p.c;
  si_pack_options options = pack_options(SI_FORMAT_PANEL, SI_BF16);
  options.g = 2;
  const si_weight_desc desc{c.conv() ? 4 : 2, {c.M, c.C / c.groups, c.kernel, c.kernel}, c.groups};
  const Packed packed(p.weight, desc, options);
  Tensor x(p.x, c.x_half);
  const auto call = [&](Tensor& y, int threads) {
    const auto fill = [&](auto& args) {
      args.x = x.data();
      args.y = y.data();
      args.bias = c.bias ? p.bias.data() : nullptr;
      args.activation = c.activation;
      args.row = static_cast<int32_t>(row);
      args.threads = threads;
      args.x_type = c.x_half ? SI_BF16 : SI_F32;
      args.y_type = c.y_half ? SI_BF16 : SI_F32;
    };
    if (c.conv()) {
      si_conv_args args = sized<si_conv_args>();
      args.batch = c.N;
      args.h = c.h;
      args.w = c.w;
      for (int i = 0; i < 2; ++i) args.stride[i] = c.stride, args.dilation[i] = c.dilation;
      for (int64_t& padding : args.padding) padding = c.padding;
      args.padding_mode = c.mode;
      fill(args);
      SI_CHECK_EQ(si_conv(packed.get(), &args), SI_OK);
      return;
    }
    si_linear_args args = sized<si_linear_args>();
    args.n = c.N;
    args.ldx = p.ldx;
    args.ldy = p.ldy;
    args.layout = c.channel_major ? SI_CHANNEL_MAJOR : SI_TOKEN_MAJOR;
    fill(args);
    SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);
  };
  const int64_t reach = c.dilation * (c.kernel - 1) + 1;
  const int64_t oh = c.conv() ? (c.h + 2 * c.padding - reach) / c.stride + 1 : 0;
  const int64_t ow = c.conv() ? (c.w + 2 * c.padding - reach) / c.stride + 1 : 0;
  const int64_t lines = c.channel_major ? c.M : c.N, length = c.channel_major ? c.N : c.M;
  const int64_t size = c.conv() ? c.N * c.M * oh * ow : lines == 0 ? 0 : (lines - 1) * p.ldy + length;
  Tensor y(size, c.y_half), again(size, c.y_half);
  call(y, c.threads);
  call(again, 1);
  bool good = SI_CHECK(y.intact()) && SI_CHECK(y.same(again));
  if (c.conv())
    check_conv(p, y, oh, ow, good);
  else
    check_linear(p, y, good);
  if (!good)
    std::fprintf(stderr, "  in %s M %ld C %ld N %ld, x %s, y %s, activation %d, %s\n", info.name,
                 static_cast<long>(c.M), static_cast<long>(c.C), static_cast<long>(c.N), c.x_half ? "half" : "float",
                 c.y_half ? "half" : "float", c.activation, c.channel_major ? "channel-major" : "token-major");
}

// Each case in both types of x and of y.
void run_types(size_t row, const si_row_info& info, Case c) {
  for (int types = 0; types < 4; ++types) {
    c.x_half = (types & 1) != 0;
    c.y_half = (types & 2) != 0;
    run(row, info, Problem(c));
  }
}

// Inf and NaN of x reach the results that depend on them and no others; what is below 2^-126 counts as zero.
void run_odd_values(size_t row, const si_row_info& info, Case c) {
  for (float odd : {kInf, std::nanf(""), 0x1p-130f, 0x1.fffffep-127f, 0x1p-126f, 3e38f})
    for (bool half : {false, true}) {
      c.x_half = half;
      c.y_half = false;
      Problem p(c);
      for (int64_t n = 0; n < c.N; n += 3) p.x[static_cast<size_t>(p.x_at(n % c.C, n))] = odd;
      run(row, info, p);
    }
}

void run_linear(size_t row, const si_row_info& info) {
  const Case base{13, 70, 33};
  for (bool channel_major : {false, true}) {
    const auto add = [&](auto change) {
      Case c = base;
      c.channel_major = channel_major;
      change(c);
      run_types(row, info, c);
    };
    // Columns around every width of a tile, and of the input.
    for (int64_t N : {0, 1, 2, 5, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 81, 100, 130}) add([&](Case& c) { c.N = N; });
    for (int64_t C : {1, 2, 3, 15, 16, 17, 131, 300})
      for (int64_t N : {1, 21, 64}) add([&](Case& c) { c.C = C, c.M = 1 + C % 9, c.N = N; });
    for (int activation = SI_ACT_NONE; activation <= SI_ACT_HARDSIGMOID; ++activation)
      for (int64_t N : {1, 70})
        add([&](Case& c) {
          c.activation = static_cast<si_activation>(activation);
          c.N = N;
          c.bias = activation != SI_ACT_NONE;
        });
    for (int64_t N : {1, 7, 40, 70}) {
      add([&](Case& c) { c.N = N, c.integers = true, c.activation = SI_ACT_NONE; });
      // Rows pruned whole; full weights; few values, in patterns of one row; several threads.
      add([&](Case& c) { c.N = N, c.M = 67, c.kept = 3, c.density = 0.9; });
      add([&](Case& c) { c.N = N, c.density = 1.0; });
      add([&](Case& c) { c.N = N, c.C = 300, c.density = 0.05; });
      add([&](Case& c) { c.N = N, c.M = 203, c.C = 310, c.threads = 4; });
      Case odd = base;
      odd.channel_major = channel_major;
      odd.N = N;
      odd.activation = SI_ACT_NONE;
      run_odd_values(row, info, odd);
    }
  }
}

void run_convs(size_t row, const si_row_info& info) {
  Case base{9, 6, 2};
  base.h = 9;
  base.w = 11;
  base.kernel = 3;
  base.padding = 1;
  const auto add = [&](auto change) {
    Case c = base;
    change(c);
    run_types(row, info, c);
  };
  add([](Case&) {});
  add([](Case& c) { c.padding = 0; });
  add([](Case& c) { c.stride = 2; });
  add([](Case& c) { c.stride = 3, c.padding = 2; });
  add([](Case& c) { c.dilation = 2, c.padding = 2; });
  add([](Case& c) { c.dilation = 3, c.padding = 4, c.stride = 2; });
  add([](Case& c) { c.groups = 3; });
  add([](Case& c) { c.groups = 3, c.kernel = 1, c.padding = 0; });
  add([](Case& c) { c.kernel = 1, c.padding = 0, c.stride = 2; });
  add([](Case& c) { c.kernel = 1, c.padding = 2; });
  add([](Case& c) { c.M = 37, c.C = 24, c.h = 15, c.w = 14, c.threads = 3, c.N = 1; });
  add([](Case& c) { c.M = 37, c.C = 24, c.h = 7, c.w = 7, c.threads = 3, c.N = 5; });
  add([](Case& c) { c.h = 40, c.w = 70, c.N = 1; });
  add([](Case& c) { c.h = 70, c.w = 1; });
  add([](Case& c) { c.h = 1, c.w = 1; });
  for (int mode = SI_PAD_REFLECT; mode <= SI_PAD_CIRCULAR; ++mode)
    for (int64_t stride : {1, 2})
      add([&](Case& c) { c.mode = static_cast<si_padding>(mode), c.stride = stride, c.padding = 2; });
  add([](Case& c) { c.kernel = 1, c.padding = 0, c.h = 7, c.w = 7, c.M = 21, c.C = 40; });
  add([](Case& c) { c.M = 67, c.kept = 3, c.density = 0.9; });
  add([](Case& c) { c.N = 0; });
  add([](Case& c) { c.bias = false, c.activation = SI_ACT_GELU; });
}

}  // namespace

int main() {
  int rows = 0;
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (!computes_bf16(info) || *info.reason != '\0') continue;
    ++rows;
    if (info.op == SI_OP_LINEAR)
      run_linear(row, info);
    else
      run_convs(row, info);
  }
  SI_CHECK(rows >= 2);
  return finish("bf16_test");
}
