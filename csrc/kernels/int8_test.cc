// Every registry row of int8 weights that runs here, against integer sums and float32 results computed from the bytes
// and the values alone; with an activation that is no clamp, within its bound.
#include <algorithm>
#include <cstring>

#include "testing/problem.h"

using namespace si::testing;

namespace {

enum Added { kNothing, kFloats, kBytes };  // the residual

struct Case {
  int64_t M, C, N;  // N tokens, or images of a convolution
  int32_t g;
  bool x_bytes, y_bytes;
  si_activation activation;
  int threads = 1;
  bool channel_major = false, each = false, bias = true;  // each: a scale of x for every token
  int64_t kept = 1;                                       // of so many rows one is not zero throughout
  double density = 0.4;
  // Of a convolution: the image, the kernel, groups, stride, padding and dilation along both axes.
  int64_t h = 0, w = 0, kernel = 1, groups = 1, stride = 1, padding = 0, dilation = 1;
  si_padding mode = SI_PAD_ZEROS;
  Added residual = kNothing;

  bool conv() const { return h > 0; }
  int64_t K() const { return C / groups * kernel * kernel; }
};

constexpr float kXScale = 0.03f, kYScale = 0.4f, kResidualScale = 0.17f;
constexpr int32_t kXZero = 117, kYZero = 9, kResidualZero = 101;

// A tensor of bytes or floats with room around it that must not change.
class Tensor {
 public:
  Tensor(int64_t size, bool bytes) : bytes_(bytes), size_(bytes ? size : 4 * size), data_(size_ + 2 * kGuard, 0xa5) {}
  void* data() { return data_.data() + kGuard; }
  float number(int64_t at) const {
    const uint8_t* from = data_.data() + kGuard;
    if (bytes_) return from[at];
    float value;
    std::memcpy(&value, from + 4 * at, sizeof value);
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
  bool bytes_;
  int64_t size_;
  std::vector<uint8_t> data_;
};

int32_t byte_of(float v, float scale, int32_t zero_point) {
  const double rounded = std::nearbyint(static_cast<double>(v * (1.0f / scale))) + zero_point;
  return static_cast<int32_t>(std::clamp(rounded, 0.0, 255.0));
}

struct Problem {
  Case c;
  std::vector<int> values;  // [M][K]
  std::vector<float> scales, bias, x_floats, x_scales, residual_floats;
  std::vector<uint8_t> x_bytes, residual_bytes;
  std::vector<int32_t> x_zeros;
  int64_t ldx = 0, ldy = 0;

  explicit Problem(const Case& given) : c(given) {
    Random random;
    const auto integer = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random.engine);
    };
    values.resize(static_cast<size_t>(c.M * c.K()));
    for (size_t i = 0; i < values.size(); ++i)
      if (static_cast<int64_t>(i) / c.K() % c.kept == 0 && random.chance(c.density)) values[i] = integer(-128, 127);
    for (int64_t m = 0; m < c.M; ++m) scales.push_back(0.001f * static_cast<float>(integer(1, 20)));
    bias = random.tensor(c.M, false);
    ldx = (c.channel_major ? c.N : c.C) + 3;
    ldy = (c.channel_major ? c.N : c.M) + 3;
    const int64_t size = c.conv() ? c.N * c.C * c.h * c.w : (c.channel_major ? c.C : c.N) * ldx;
    for (int64_t i = 0; i < size; ++i) {
      x_bytes.push_back(static_cast<uint8_t>(integer(0, 255)));
      x_floats.push_back(6.0f * random.uniform());
    }
    for (int64_t n = 0; n < c.N; ++n) {
      x_scales.push_back(0.01f * static_cast<float>(integer(1, 9)));
      x_zeros.push_back(integer(0, 255));
    }
  }
  float x_scale(int64_t n) const { return c.each ? x_scales[static_cast<size_t>(n)] : kXScale; }
  int32_t x_zero(int64_t n) const { return c.each ? x_zeros[static_cast<size_t>(n)] : kXZero; }
  int32_t x(int64_t at, int64_t n) const {
    const auto i = static_cast<size_t>(at);
    return c.x_bytes ? x_bytes[i] : byte_of(x_floats[i], x_scale(n), x_zero(n));
  }
  // The residual of y, of `size` elements.
  void add_residual(int64_t size) {
    Random random;
    for (int64_t i = 0; i < size; ++i) {
      residual_floats.push_back(9.0f * random.uniform());
      residual_bytes.push_back(static_cast<uint8_t>(std::uniform_int_distribution<int>(0, 255)(random.engine)));
    }
  }
  const void* residual_data() const {
    if (c.residual == kNothing) return nullptr;
    return c.residual == kBytes ? static_cast<const void*>(residual_bytes.data()) : residual_floats.data();
  }
  float with_residual(float v, int64_t at) const {
    const auto i = static_cast<size_t>(at);
    if (c.residual == kNothing) return v;
    if (c.residual == kFloats) return v + residual_floats[i];
    return std::fma(static_cast<float>(residual_bytes[i] - kResidualZero), kResidualScale, v);
  }
  const void* x_data() const { return c.x_bytes ? static_cast<const void*>(x_bytes.data()) : x_floats.data(); }

  // The result of row m for products whose int32 sum, less that of the zero point, is `sum`.
  void check(const Tensor& y, int64_t at, int64_t m, int64_t n, int64_t sum, bool& good) const {
    const float scale = scales[static_cast<size_t>(m)] * x_scale(n);
    const float product = std::fma(static_cast<float>(sum), scale, c.bias ? bias[static_cast<size_t>(m)] : 0.0f);
    const float v = with_residual(product, at);
    const bool clamp = c.activation == SI_ACT_NONE || c.activation == SI_ACT_RELU || c.activation == SI_ACT_RELU6;
    const auto result = static_cast<float>(activate64(static_cast<double>(v), c.activation));
    const double expected = c.y_bytes ? byte_of(result, kYScale, kYZero) : static_cast<double>(result);
    const double slack = c.y_bytes ? 1.0 : 1e-6 * (1 + std::abs(static_cast<double>(v)));
    good = (clamp ? SI_CHECK_EQ(static_cast<double>(y.number(at)), expected)
                  : SI_CHECK_NEAR(y.number(at), expected, slack)) &&
           good;
  }
};

int64_t source_of(int64_t p, int64_t size, si_padding mode) {
  if (p >= 0 && p < size) return p;
  if (mode == SI_PAD_ZEROS) return -1;
  if (mode == SI_PAD_REPLICATE) return std::clamp<int64_t>(p, 0, size - 1);
  if (mode == SI_PAD_CIRCULAR) return (p + size) % size;
  return p < 0 ? -p : 2 * (size - 1) - p;
}

void check_linear(const Problem& p, const Tensor& y, bool& good) {
  const Case& c = p.c;
  for (int64_t m = 0; m < c.M; ++m)
    for (int64_t n = 0; n < c.N; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < c.C; ++k)
        sum += int64_t{p.values[static_cast<size_t>(m * c.C + k)]} *
               (p.x(c.channel_major ? k * p.ldx + n : n * p.ldx + k, n) - p.x_zero(n));
      p.check(y, c.channel_major ? m * p.ldy + n : n * p.ldy + m, m, n, sum, good);
    }
}

void check_conv(const Problem& p, const Tensor& y, int64_t oh, int64_t ow, bool& good) {
  const Case& c = p.c;
  const int64_t per_group = c.C / c.groups;
  for (int64_t b = 0; b < c.N; ++b)
    for (int64_t m = 0; m < c.M; ++m)
      for (int64_t r = 0; r < oh; ++r)
        for (int64_t col = 0; col < ow; ++col) {
          int64_t sum = 0;
          for (int64_t k = 0; k < c.K(); ++k) {
            const int64_t taps = c.kernel * c.kernel, kr = k % taps / c.kernel, kc = k % c.kernel;
            const int64_t channel = m / (c.M / c.groups) * per_group + k / taps;
            const int64_t row = source_of(r * c.stride + kr * c.dilation - c.padding, c.h, c.mode);
            const int64_t column = source_of(col * c.stride + kc * c.dilation - c.padding, c.w, c.mode);
            if (row < 0 || column < 0) continue;
            sum += int64_t{p.values[static_cast<size_t>(m * c.K() + k)]} *
                   (p.x(((b * c.C + channel) * c.h + row) * c.w + column, 0) - kXZero);
          }
          p.check(y, ((b * c.M + m) * oh + r) * ow + col, m, 0, sum, good);
        }
}

void run(size_t row, const si_row_info& info, const Case& c) {
  Problem p(c);
  std::vector<float> weight;
  for (size_t i = 0; i < p.values.size(); ++i)
    weight.push_back(static_cast<float>(p.values[i]) * p.scales[i / static_cast<size_t>(c.K())]);
  si_pack_options options = pack_options(SI_FORMAT_PANEL, SI_I8);
  options.scales = p.scales.data();
  options.g = c.g;
  const si_weight_desc desc{c.conv() ? 4 : 2, {c.M, c.C / c.groups, c.kernel, c.kernel}, c.groups};
  const Packed packed(weight, desc, options);
  si_quantization q = sized<si_quantization>();
  q.x_scale = kXScale;
  q.x_zero_point = kXZero;
  q.y_scale = kYScale;
  q.y_zero_point = kYZero;
  q.residual_scale = kResidualScale;
  q.residual_zero_point = kResidualZero;
  q.x_scales = c.each ? p.x_scales.data() : nullptr;
  q.x_zero_points = c.each ? p.x_zeros.data() : nullptr;
  int64_t oh = 0, ow = 0;
  const auto call = [&](Tensor& y, int threads) {
    const auto fill = [&](auto& args) {
      args.x = p.x_data();
      args.y = y.data();
      args.bias = c.bias ? p.bias.data() : nullptr;
      args.activation = c.activation;
      args.row = static_cast<int32_t>(row);
      args.threads = threads;
      args.x_type = c.x_bytes ? SI_U8 : SI_F32;
      args.y_type = c.y_bytes ? SI_U8 : SI_F32;
      args.quantization = &q;
      args.residual = p.residual_data();
      args.residual_type = c.residual == kBytes ? SI_U8 : SI_F32;
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
  if (c.conv()) {
    oh = (c.h + 2 * c.padding - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
    ow = (c.w + 2 * c.padding - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
  }
  const int64_t lines = c.channel_major ? c.M : c.N, length = c.channel_major ? c.N : c.M;
  const int64_t size = c.conv() ? c.N * c.M * oh * ow : lines == 0 ? 0 : (lines - 1) * p.ldy + length;
  p.add_residual(size);
  Tensor y(size, c.y_bytes), again(size, c.y_bytes);
  call(y, c.threads);
  call(again, 1);
  bool good = SI_CHECK(y.intact()) && SI_CHECK(y.same(again));
  if (c.conv())
    check_conv(p, y, oh, ow, good);
  else
    check_linear(p, y, good);
  if (!good)
    std::fprintf(stderr, "  in %s M %ld C %ld N %ld g %d, x %s, y %s, activation %d, kernel %ld, residual %d\n",
                 info.name, static_cast<long>(c.M), static_cast<long>(c.C), static_cast<long>(c.N), c.g,
                 c.x_bytes ? "bytes" : "floats", c.y_bytes ? "bytes" : "floats", c.activation,
                 static_cast<long>(c.kernel), c.residual);
}

// Of each case both g, and both types of x and of y.
template <class Each>
void for_types(Case c, Each&& each) {
  for (int32_t g : {1, 4})
    for (int types = 0; types < 4; ++types) {
      c.g = g;
      c.x_bytes = (types & 1) != 0;
      c.y_bytes = (types & 2) != 0;
      each(c);
    }
}

void run_linear(size_t row, const si_row_info& info) {
  const auto one = [&](const Case& c) { for_types(c, [&](const Case& each) { run(row, info, each); }); };
  Case base{13, 70, 33, 1, true, true, SI_ACT_RELU};
  for (bool channel_major : {false, true}) {
    base.channel_major = channel_major;
    // Columns around every width of a tile.
    for (int64_t N : {0, 1, 2, 5, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 81, 100, 130}) {
      Case c = base;
      c.N = N;
      one(c);
    }
    for (int64_t C : {1, 3, 4, 5, 16, 131, 300})
      for (int64_t N : {1, 21, 64}) {
        Case c = base;
        c.C = C;
        c.M = 1 + C % 9;
        c.N = N;
        one(c);
      }
    for (int activation = SI_ACT_NONE; activation <= SI_ACT_HARDSIGMOID; ++activation)
      for (int64_t N : {1, 70}) {
        Case c = base;
        c.activation = static_cast<si_activation>(activation);
        c.N = N;
        c.bias = activation != SI_ACT_NONE;
        one(c);
      }
    // A residual of either type, in tiles of every width, whole and not, before every kind of activation.
    for (Added residual : {kFloats, kBytes})
      for (int64_t N : {0, 1, 2, 15, 16, 17, 32, 33, 64, 65, 130})
        for (si_activation activation : {SI_ACT_NONE, SI_ACT_RELU6, SI_ACT_GELU}) {
          Case c = base;
          c.residual = residual;
          c.N = N;
          c.activation = activation;
          c.each = N % 2 != 0 && activation == SI_ACT_NONE;
          one(c);
        }
    // A scale and a zero point of its own for each token; rows pruned whole; full weights; several threads.
    for (int64_t N : {1, 7, 40, 70}) {
      Case c = base;
      c.N = N;
      c.residual = N % 2 != 0 ? kFloats : kBytes;
      c.each = true;
      one(c);
      c.each = false;
      c.M = 67;
      c.kept = 3;
      c.density = 0.9;
      one(c);
      c = base;
      c.N = N;
      c.density = 1.0;
      one(c);
      c.M = 203;
      c.C = 310;
      c.threads = 4;
      one(c);
    }
  }
}

void run_convs(size_t row, const si_row_info& info) {
  Case base{9, 6, 2, 1, true, true, SI_ACT_RELU};
  base.h = 9;
  base.w = 11;
  base.kernel = 3;
  base.padding = 1;
  std::vector<Case> cases{base};
  const auto add = [&](auto change) { change(cases.emplace_back(base)); };
  add([](Case& c) { c.padding = 0; });
  add([](Case& c) { c.stride = 2; });
  add([](Case& c) { c.stride = 3, c.padding = 2; });
  add([](Case& c) { c.dilation = 2, c.padding = 2; });
  add([](Case& c) { c.groups = 3; });
  add([](Case& c) { c.groups = 3, c.kernel = 1, c.padding = 0; });
  add([](Case& c) { c.kernel = 1, c.padding = 0, c.h = 7, c.w = 7, c.M = 21, c.C = 40; });
  add([](Case& c) { c.kernel = 1, c.padding = 0, c.stride = 2; });
  add([](Case& c) { c.kernel = 1, c.padding = 2; });
  add([](Case& c) { c.kernel = 5, c.padding = 2, c.density = 1.0; });
  add([](Case& c) { c.M = 37, c.C = 24, c.h = 15, c.w = 14, c.threads = 3, c.N = 1; });
  add([](Case& c) { c.M = 37, c.C = 24, c.h = 7, c.w = 7, c.threads = 3, c.N = 5; });
  add([](Case& c) { c.h = 40, c.w = 70, c.N = 1; });
  add([](Case& c) { c.M = 67, c.C = 20, c.kept = 3, c.density = 0.9; });
  add([](Case& c) { c.N = 0; });
  add([](Case& c) { c.h = 1, c.w = 1; });
  add([](Case& c) { c.bias = false, c.activation = SI_ACT_NONE; });
  add([](Case& c) { c.activation = SI_ACT_GELU; });
  add([](Case& c) { c.activation = SI_ACT_RELU6; });
  // Few rows, which read the image as it stands, and many, for which tiles are packed: images of every remainder of a
  // tile, of one row, and with rows as long as those of the output and not.
  for (int64_t M : {5, 22}) {
    for (int64_t w : {7, 8, 16, 33})
      for (int64_t stride : {1, 2})
        for (int64_t padding : {0, 1}) add([&](Case& c) { c.M = M, c.w = w, c.stride = stride, c.padding = padding; });
    add([&](Case& c) { c.M = M, c.h = 1, c.w = 70, c.threads = 2; });
    add([&](Case& c) { c.M = M, c.h = 3, c.w = 130, c.padding = 0, c.stride = 2; });
    add([&](Case& c) { c.M = M, c.h = 8, c.w = 8, c.C = 7, c.kernel = 1, c.padding = 0, c.N = 3; });
    add([&](Case& c) { c.M = M, c.h = 9, c.w = 15, c.C = 7, c.kernel = 1, c.padding = 0, c.threads = 2; });
    add([&](Case& c) { c.M = 3 * M, c.h = 8, c.w = 24, c.groups = 3, c.kernel = 1, c.padding = 0, c.N = 1; });
    add([&](Case& c) { c.M = 3 * M, c.h = 12, c.w = 12, c.groups = 3, c.N = 1, c.threads = 3; });
  }
  for (Added residual : {kFloats, kBytes}) {
    add([&](Case& c) { c.residual = residual; });
    add([&](Case& c) { c.residual = residual, c.activation = SI_ACT_NONE, c.bias = false, c.stride = 2; });
    add([&](Case& c) { c.residual = residual, c.activation = SI_ACT_SILU, c.groups = 3; });
    add([&](Case& c) { c.residual = residual, c.M = 37, c.C = 24, c.h = 15, c.w = 14, c.threads = 3, c.N = 1; });
    add([&](Case& c) { c.residual = residual, c.M = 67, c.C = 20, c.kept = 3, c.density = 0.9; });
    add([&](Case& c) { c.residual = residual, c.kernel = 1, c.padding = 0, c.h = 8, c.w = 8, c.M = 21, c.C = 40; });
  }
  for (int mode = SI_PAD_REFLECT; mode <= SI_PAD_CIRCULAR; ++mode)
    for (int64_t stride : {1, 2})
      add([&](Case& c) { c.mode = static_cast<si_padding>(mode), c.stride = stride, c.padding = 2; });
  for (const Case& c : cases) for_types(c, [&](const Case& each) { run(row, info, each); });
}

}  // namespace

int main() {
  int rows = 0;
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (!computes_int8(info) || *info.reason != '\0') continue;
    ++rows;
    if (info.op == SI_OP_LINEAR)
      run_linear(row, info);
    else
      run_convs(row, info);
  }
  SI_CHECK(rows >= 2);
  return finish("int8_test");
}
