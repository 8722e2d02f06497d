// Recurrent steps with every linear row that runs here, against float64, and the errors of si_recurrent.
#include <algorithm>

#include "testing/problem.h"

using namespace si::testing;

namespace {

struct Case {
  si_cell cell = SI_CELL_LSTM;
  int64_t H = 13, steps = 5, batch = 3;
  bool reverse = false, batch_first = false, packed = false, bias = true;
  int threads = 2;
  double density = 0.3;
};

double sigmoid64(double v) { return 1 / (1 + std::exp(-v)); }

void run(size_t row, const si_row_info& info, const Case& c) {
  Random random;
  const int64_t gates = c.cell == SI_CELL_LSTM ? 4 : c.cell == SI_CELL_GRU ? 3 : 1, M = gates * c.H;
  const int n = info.format == SI_FORMAT_NM ? 2 : 1 << 20, m = info.format == SI_FORMAT_NM ? 4 : 1 << 20;
  const std::vector<float> weight = random.weight(M, c.H, c.density, false, n, m);
  const si_weight_desc desc{2, {M, c.H, 0, 0}, 1};
  const Packed packed(weight, desc, pack_options(info.format));
  const std::vector<float> bias = random.tensor(M, false);
  std::vector<int64_t> sizes;
  int64_t rows = c.steps * c.batch;
  if (c.packed) {
    rows = 0;
    for (int64_t t = 0; t < c.steps; ++t) {
      sizes.push_back(std::max<int64_t>(1, c.batch - t / 2));
      rows += sizes.back();
    }
  }
  const int64_t ldg = M + 3, ldy = c.H + 5;
  const std::vector<float> x = random.tensor(std::max<int64_t>(rows, 1) * ldg, false);
  const std::vector<float> h0 = random.tensor(c.batch * c.H, false), c0 = random.tensor(c.batch * c.H, false);

  si_recurrent_args args = sized<si_recurrent_args>();
  args.gates = x.data();
  args.bias = c.bias ? bias.data() : nullptr;
  args.steps = c.steps;
  args.batch = c.batch;
  args.ldg = ldg;
  args.ldy = ldy;
  args.step_rows = c.batch_first ? 1 : c.batch;
  args.batch_rows = c.batch_first ? c.steps : 1;
  args.batch_sizes = c.packed ? sizes.data() : nullptr;
  args.cell = c.cell;
  args.reverse = c.reverse;
  args.row = static_cast<int32_t>(row);
  const int64_t y_size = rows == 0 ? 0 : (rows - 1) * ldy + c.H;
  Output y(y_size, 1), again(y_size, 1);
  std::vector<float> h = h0, state = c0, h_again = h0, state_again = c0;
  const auto call = [&](Output& to, std::vector<float>& h_state, std::vector<float>& c_state, int threads) {
    args.y = to.data();
    args.h = h_state.data();
    args.c = c.cell == SI_CELL_LSTM ? c_state.data() : nullptr;
    args.threads = threads;
    SI_CHECK_EQ(si_recurrent(packed.get(), &args), SI_OK);
  };
  call(y, h, state, c.threads);
  call(again, h_again, state_again, 1);

  const std::string what = std::string(info.name) + " cell " + std::to_string(c.cell) + " H" + std::to_string(c.H) +
                           " steps " + std::to_string(c.steps) + " batch " + std::to_string(c.batch) +
                           (c.packed ? " packed" : "") + (c.reverse ? " reverse" : "");
  y.check_canaries(what);
  bool good = SI_CHECK(h == h_again);
  // Errors of a step go on into the next; with gates of moderate size each step passes on at most about what it got.
  const double bound = 64 * static_cast<double>(c.H + 2) * static_cast<double>(c.steps + 1) *
                       static_cast<double>(std::numeric_limits<float>::epsilon());
  for (int64_t b = 0; b < c.batch; ++b) {
    std::vector<double> hidden(h0.begin() + b * c.H, h0.begin() + (b + 1) * c.H);
    std::vector<double> memory(c0.begin() + b * c.H, c0.begin() + (b + 1) * c.H);
    for (int64_t i = 0; i < c.steps; ++i) {
      const int64_t t = c.reverse ? c.steps - 1 - i : i;
      if (c.packed && b >= sizes[static_cast<size_t>(t)]) continue;
      int64_t at = t * args.step_rows + b * args.batch_rows;
      if (c.packed) {
        at = b;
        for (int64_t before = 0; before < t; ++before) at += sizes[static_cast<size_t>(before)];
      }
      std::vector<double> s(static_cast<size_t>(M));
      for (int64_t r = 0; r < M; ++r) {
        double sum = c.bias ? static_cast<double>(bias[static_cast<size_t>(r)]) : 0.0;
        for (int64_t k = 0; k < c.H; ++k)
          sum += static_cast<double>(weight[static_cast<size_t>(r * c.H + k)]) * hidden[static_cast<size_t>(k)];
        s[static_cast<size_t>(r)] = sum;
      }
      const auto xs = [&](int64_t gate, int64_t u) {
        return static_cast<double>(x[static_cast<size_t>(at * ldg + gate * c.H + u)]);
      };
      const auto ss = [&](int64_t gate, int64_t u) { return s[static_cast<size_t>(gate * c.H + u)]; };
      for (int64_t u = 0; u < c.H; ++u) {
        const auto sum = [&](int64_t gate) { return xs(gate, u) + ss(gate, u); };
        double& hu = hidden[static_cast<size_t>(u)];
        double& cu = memory[static_cast<size_t>(u)];
        if (c.cell == SI_CELL_LSTM) {
          cu = sigmoid64(sum(1)) * cu + sigmoid64(sum(0)) * std::tanh(sum(2));
          hu = sigmoid64(sum(3)) * std::tanh(cu);
        } else if (c.cell == SI_CELL_GRU) {
          const double z = sigmoid64(sum(1)), next = std::tanh(xs(2, u) + sigmoid64(sum(0)) * ss(2, u));
          hu = (1 - z) * next + z * hu;
        } else {
          hu = c.cell == SI_CELL_RNN_TANH ? std::tanh(sum(0)) : std::max(sum(0), 0.0);
        }
        const double limit = bound * (1 + std::abs(hu));
        good = SI_CHECK_NEAR(y.data()[at * ldy + u], hu, limit) && good;
      }
    }
    for (int64_t u = 0; u < c.H; ++u) {
      const double hu = hidden[static_cast<size_t>(u)], cu = memory[static_cast<size_t>(u)];
      good = SI_CHECK_NEAR(h[static_cast<size_t>(b * c.H + u)], hu, bound * (1 + std::abs(hu))) && good;
      if (c.cell == SI_CELL_LSTM)
        good = SI_CHECK_NEAR(state[static_cast<size_t>(b * c.H + u)], cu, bound * (1 + std::abs(cu))) && good;
    }
  }
  if (!good) std::fprintf(stderr, "  in %s\n", what.c_str());
}

void test_errors() {
  const std::vector<float> weight(16, 1.0f);
  const Packed packed(weight, {2, {8, 2, 0, 0}, 1}, pack_options(SI_FORMAT_PANEL));
  float gates[16] = {}, h[4] = {}, c[4] = {}, y[4] = {};
  int64_t sizes[2] = {2, 1};
  const si_recurrent_args good{
      sizeof(si_recurrent_args), gates, nullptr, h, c, y, 1, 1, 8, 2, 1, 1, nullptr, SI_CELL_LSTM, 0, SI_ROW_BEST, 1};
  SI_CHECK_EQ(si_recurrent(packed.get(), &good), SI_OK);
  const auto refused = [&](auto&& change) {
    si_recurrent_args args = good;
    change(args);
    SI_CHECK_EQ(si_recurrent(packed.get(), &args), SI_ERR_ARGUMENT);
  };
  SI_CHECK_EQ(si_recurrent(nullptr, &good), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_recurrent(packed.get(), nullptr), SI_ERR_ARGUMENT);
  refused([](auto& a) { a.gates = nullptr; });
  refused([](auto& a) { a.y = nullptr; });
  refused([](auto& a) { a.h = nullptr; });
  refused([](auto& a) { a.c = nullptr; });
  refused([](auto& a) { a.cell = SI_CELL_GRU; });
  refused([](auto& a) { a.cell = static_cast<si_cell>(4); });
  refused([](auto& a) { a.steps = -1; });
  refused([](auto& a) { a.batch = -1; });
  refused([](auto& a) { a.ldg = 7; });
  refused([](auto& a) { a.ldy = 1; });
  refused([](auto& a) { a.step_rows = -1; });
  refused([](auto& a) { a.threads = 0; });
  refused([](auto& a) { a.row = 1000; });
  refused([&](auto& a) { a.batch_sizes = sizes; });  // two sequences of one
  sizes[0] = 0;
  refused([&](auto& a) { a.batch_sizes = sizes; });
}

}  // namespace

int main() {
  int rows = 0;
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (info.op != SI_OP_LINEAR || *info.reason != '\0' || !computes_float32(info)) continue;
    ++rows;
    for (int cell = SI_CELL_LSTM; cell <= SI_CELL_RNN_RELU; ++cell)
      for (bool reverse : {false, true}) {
        Case base;
        base.cell = static_cast<si_cell>(cell);
        base.reverse = reverse;
        run(row, info, base);
        for (int64_t H : {1, 4, 16, 33}) {
          Case c = base;
          c.H = H;
          run(row, info, c);
        }
        Case c = base;
        c.batch_first = true;
        c.bias = false;
        run(row, info, c);
        c.batch = 1;
        run(row, info, c);
        c = base;
        c.packed = true;
        c.steps = 7;
        run(row, info, c);
        for (int64_t none : {0, 1}) {
          c = base;
          (none == 0 ? c.steps : c.batch) = 0;
          run(row, info, c);
        }
      }
    // Enough work a step for several threads.
    Case wide;
    wide.H = 128, wide.batch = 12, wide.steps = 3, wide.threads = 3;
    run(row, info, wide);
  }
  SI_CHECK(rows >= 3);
  test_errors();
  return finish("recurrent_test");
}
