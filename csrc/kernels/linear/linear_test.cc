// Every registry row that computes a linear layer and runs here, against float64.
#include <algorithm>
#include <limits>
#include <thread>

#include "kernels/source.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  int64_t M, K, N;
  double density;
  bool integers, bias, channel_major;
  si_activation activation;
  int threads, kblock, misalignment, spare;  // spare: elements between the end of a token (or channel) and the next
  bool bfloat16 = false;                     // the panel format stores values so
  int64_t kept = 1;                          // of so many rows one is not zero throughout
};

void run(size_t row, const si_row_info& info, const Case& c) {
  Random random;
  const int n = info.format == SI_FORMAT_NM ? 2 : 1 << 20, m = info.format == SI_FORMAT_NM ? 4 : 1 << 20;
  std::vector<float> weight = random.weight(c.M, c.K, c.density, c.integers, n, m);
  if (c.bfloat16) round_to_bfloat16(weight);
  keep_rows(weight, c.K, c.kept);
  const si_weight_desc desc{2, {c.M, c.K, 0, 0}, 1};
  const si_value_type type = c.bfloat16 && info.format == SI_FORMAT_PANEL ? SI_BF16 : SI_F32;
  const si_pack_options options = pack_options(info.format, type, c.kblock);
  const Packed packed(weight, desc, options);
  const std::vector<float> bias = random.tensor(c.M, c.integers);

  const int64_t ldx = (c.channel_major ? c.N : c.K) + c.spare, ldy = (c.channel_major ? c.N : c.M) + c.spare;
  const int64_t x_lines = c.channel_major ? c.K : c.N, y_lines = c.channel_major ? c.M : c.N;
  std::vector<float> x_storage = random.tensor(x_lines * ldx + c.misalignment, c.integers);
  const float* x = x_storage.data() + c.misalignment;
  // Exactly as long as the tensor is: what a sanitizer sees beyond it is a fault.
  const int64_t y_size = y_lines == 0 ? 0 : (y_lines - 1) * ldy + (c.channel_major ? c.N : c.M);
  Output y(y_size, c.misalignment), again(y_size, c.misalignment);

  si_linear_args args = sized<si_linear_args>();
  args.x = x;
  args.bias = c.bias ? bias.data() : nullptr;
  args.n = c.N;
  args.ldx = ldx;
  args.ldy = ldy;
  args.layout = c.channel_major ? SI_CHANNEL_MAJOR : SI_TOKEN_MAJOR;
  args.activation = c.activation;
  args.row = static_cast<int32_t>(row);
  args.y = y.data();
  args.threads = c.threads;
  SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);
  args.y = again.data();
  args.threads = 1;
  SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);

  const std::string what = std::string(info.name) + " M" + std::to_string(c.M) + " K" + std::to_string(c.K) + " N" +
                           std::to_string(c.N) + " kblock " + std::to_string(c.kblock) +
                           (c.channel_major ? " channel-major" : " token-major");
  y.check_canaries(what);
  bool good = true;
  for (int64_t row_m = 0; row_m < c.M; ++row_m)
    for (int64_t token = 0; token < c.N; ++token) {
      double sum = c.bias ? static_cast<double>(bias[static_cast<size_t>(row_m)]) : 0.0, absolute = std::abs(sum);
      for (int64_t k = 0; k < c.K; ++k) {
        const double term = static_cast<double>(weight[static_cast<size_t>(row_m * c.K + k)]) *
                            static_cast<double>(c.channel_major ? x[k * ldx + token] : x[token * ldx + k]);
        sum += term;
        absolute += std::abs(term);
      }
      const int64_t at = c.channel_major ? row_m * ldy + token : token * ldy + row_m;
      if (c.integers && c.activation == SI_ACT_NONE)
        good = SI_CHECK_EQ(y.data()[at], static_cast<float>(sum)) && good;
      else
        good = check_element(y.data()[at], sum, absolute, c.K, c.activation) && good;
      // One thread and many give the same bits.
      good = SI_CHECK_EQ(std::memcmp(&y.data()[at], &again.data()[at], sizeof(float)), 0) && good;
    }
  if (!good) std::fprintf(stderr, "  in %s\n", what.c_str());
}

// Sums far outside an activation's curve, through the tiles and one token at a time.
void run_extremes(size_t row, const si_row_info& info) {
  const std::vector<float> x{-3.4e38f, -1e30f, -1e9f, -104.0f, -88.6f, -88.3f, -87.4f, 0.0f,
                             3.4e38f,  1e30f,  1e9f,  104.0f,  88.6f,  88.3f,  87.4f,  1e-30f};
  const Packed packed({1.0f}, {2, {1, 1, 0, 0}, 1}, pack_options(info.format));
  for (int activation = SI_ACT_NONE; activation <= SI_ACT_HARDSIGMOID; ++activation)
    for (size_t n : {size_t{1}, x.size()})
      for (size_t first = 0; first < x.size(); first += n) {
        std::vector<float> y(n);
        si_linear_args args = sized<si_linear_args>();
        args.x = x.data() + first;
        args.y = y.data();
        args.n = static_cast<int64_t>(n);
        args.ldx = args.ldy = 1;
        args.activation = static_cast<si_activation>(activation);
        args.row = static_cast<int32_t>(row);
        args.threads = 1;
        SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);
        for (size_t i = 0; i < n; ++i) {
          const double expected = activate64(static_cast<double>(x[first + i]), args.activation);
          SI_CHECK_NEAR(y[i], expected, 4 * std::numeric_limits<float>::epsilon() * (1 + std::abs(expected)));
        }
      }
}

}  // namespace

int main() {
  int rows = 0;
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (info.op != SI_OP_LINEAR || *info.reason != '\0' || !computes_float32(info)) continue;
    ++rows;
    run_extremes(row, info);
    Case base{13, 70, 33, 0.3, true, true, false, SI_ACT_NONE, 3, 0, 1, 3};
    for (bool channel_major : {false, true}) {
      base.channel_major = channel_major;
      // Columns around every vector width, tile width and the switch to one token at a time.
      for (int64_t N : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 200}) {
        Case c = base;
        c.N = N;
        run(row, info, c);
      }
      for (int64_t K : {1, 3, 4, 15, 16, 17, 64, 131})
        for (int64_t M : {1, 2, 3, 4, 5, 16, 17, 35})
          for (int64_t N : {1, 21}) {
            Case c = base;
            c.K = K;
            c.M = M;
            c.N = N;
            run(row, info, c);
          }
      for (double density : {0.0, 0.05, 0.5, 1.0})
        for (int64_t N : {1, 40}) {
          Case c = base;
          c.density = density;
          c.integers = false;
          c.N = N;
          c.K = 300;
          run(row, info, c);
        }
      for (int kblock : {16, 32, 48, 64, 128, 1024}) {
        Case c = base;
        c.K = 200;
        c.kblock = kblock;
        c.density = 0.6;
        run(row, info, c);
        c.N = 1;
        run(row, info, c);
      }
      for (int activation = SI_ACT_NONE; activation <= SI_ACT_HARDSIGMOID; ++activation)
        for (int64_t N : {1, 37}) {
          Case c = base;
          c.integers = false;
          c.bias = activation % 2 == 0;
          c.activation = static_cast<si_activation>(activation);
          c.N = N;
          run(row, info, c);
        }
      // Every kernel reads values of two bytes too; the weight is rounded beforehand, so the bound is the same.
      for (int64_t N : {1, 3, 8, 16, 30, 50, 100})
        for (double density : {0.1, 0.7}) {
          Case c = base;
          c.bfloat16 = true;
          c.integers = false;
          c.density = density;
          c.K = 300;
          c.N = N;
          run(row, info, c);
        }
      // Rows pruned whole, so that panels keep them in an order of their own.
      for (int64_t N : {1, 2, 12, 24, 100}) {
        Case c = base;
        c.M = 67;
        c.K = 310;
        c.N = N;
        c.kept = 3;  // dense enough that storing them out of order pays
        c.density = 0.9;
        for (int activation : {SI_ACT_NONE, SI_ACT_GELU}) {
          c.activation = static_cast<si_activation>(activation);
          c.integers = activation == SI_ACT_NONE;
          run(row, info, c);
        }
      }
      // Enough work for several threads, cut along tokens and along rows.
      for (int64_t N : {2, 20, 130}) {
        Case c = base;
        c.M = 203;
        c.K = 310;
        c.N = N;
        c.threads = 4;
        run(row, info, c);
      }
    }
  }
  SI_CHECK(rows >= 3);

  // A small call keeps to one thread, and no call asks the system for threads by the thousand.
  SI_CHECK_EQ(si::useful_threads({}, 8, 1000), 1);
  SI_CHECK_EQ(si::useful_threads({}, 8, int64_t{1} << 40), 8);
  SI_CHECK(si::useful_threads({}, std::numeric_limits<int>::max(), std::numeric_limits<int64_t>::max()) <=
           static_cast<int>(std::max(16u, std::thread::hardware_concurrency())));
  return finish("linear_test");
}
