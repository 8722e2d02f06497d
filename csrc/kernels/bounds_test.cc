// Linear and recurrent calls so large that scratch cannot hold all they pack: the same bits as in pieces, and no more
// scratch than is documented. Convolutions: kernels/conv/strips_test.cc.
#include <algorithm>

#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr size_t kBound = size_t{20} << 20;  // a thread

void check_held(int threads, const char* what) {
  if (!SI_CHECK(si_scratch_bytes() <= static_cast<size_t>(threads) * kBound))
    std::fprintf(stderr, "  %zu bytes of scratch after %s\n", si_scratch_bytes(), what);
  si_release_scratch();
}

Packed pack(const std::vector<float>& weight, int64_t M, int64_t K, const si_row_info& info) {
  return Packed(weight, {2, {M, K, 0, 0}, 1}, pack_options(info.format));
}

// Sixteen non-zeros a row.
std::vector<float> thin(int64_t M, int64_t K, Random& random) {
  std::vector<float> weight(static_cast<size_t>(M * K));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t i = 0; i < 16; ++i) weight[static_cast<size_t>(m * K + i * (K / 16))] = random.uniform();
  return weight;
}

// N tokens by `threads` threads, against `piece` tokens at a time by one.
void check_linear(size_t row, const si_row_info& info, int64_t M, int64_t K, int64_t N, si_layout layout, int threads,
                  int64_t piece) {
  Random random;
  const Packed packed = pack(thin(M, K, random), M, K, info);
  const std::vector<float> x = random.tensor(K * N, false), bias = random.tensor(M, false);
  std::vector<float> y(static_cast<size_t>(M * N)), expected(y.size());
  const bool tokens = layout == SI_TOKEN_MAJOR;
  si_linear_args args = sized<si_linear_args>();
  args.x = x.data();
  args.y = y.data();
  args.bias = bias.data();
  args.n = N;
  args.ldx = tokens ? K : N;
  args.ldy = tokens ? M : N;
  args.layout = layout;
  args.row = static_cast<int32_t>(row);
  args.threads = threads;
  SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);
  check_held(threads, info.name);
  args.threads = 1;
  for (int64_t n = 0; n < N; n += piece) {
    args.n = std::min(piece, N - n);
    args.x = x.data() + (tokens ? n * K : n);
    args.y = expected.data() + (tokens ? n * M : n);
    SI_CHECK_EQ(si_linear(packed.get(), &args), SI_OK);
  }
  if (!SI_CHECK(std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) == 0))
    std::fprintf(stderr, "  %s M %ld K %ld N %ld layout %d\n", info.name, static_cast<long>(M), static_cast<long>(K),
                 static_cast<long>(N), layout);
}

void check_recurrent(size_t row, const si_row_info& info) {
  const int64_t H = 600, M = 4 * H, batch = 1900, steps = 2;
  Random random;
  const Packed packed = pack(thin(M, H, random), M, H, info);
  const std::vector<float> gates = random.tensor(batch * M, false), start = random.tensor(batch * H, false);
  std::vector<float> h = start, c = start, y(static_cast<size_t>(steps * batch * H));
  std::vector<float> h_parts = start, c_parts = start, y_parts(y.size());
  // The second step reads the gates of the first: memory that the test need not have twice.
  si_recurrent_args args{sizeof(si_recurrent_args),
                         gates.data(),
                         nullptr,
                         h.data(),
                         c.data(),
                         y.data(),
                         1,
                         batch,
                         M,
                         H,
                         batch,
                         1,
                         nullptr,
                         SI_CELL_LSTM,
                         0,
                         static_cast<int32_t>(row),
                         2};
  for (int64_t step = 0; step < steps; ++step) {
    args.y = y.data() + step * batch * H;
    SI_CHECK_EQ(si_recurrent(packed.get(), &args), SI_OK);
  }
  check_held(2, info.name);
  for (int64_t step = 0; step < steps; ++step)
    for (int64_t b = 0; b < batch; b += 95) {
      args.batch = std::min<int64_t>(95, batch - b);
      args.gates = gates.data() + b * M;
      args.h = h_parts.data() + b * H;
      args.c = c_parts.data() + b * H;
      args.y = y_parts.data() + (step * batch + b) * H;
      SI_CHECK_EQ(si_recurrent(packed.get(), &args), SI_OK);
    }
  SI_CHECK(h == h_parts && c == c_parts && y == y_parts);
}

}  // namespace

int main() {
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    if (info.op != SI_OP_LINEAR || *info.reason != '\0' || std::strcmp(info.isa, "scalar") == 0) continue;
    if (!computes_float32(info)) continue;
    if (info.format == SI_FORMAT_NM) continue;  // its rows hold half of K
    for (si_layout layout : {SI_TOKEN_MAJOR, SI_CHANNEL_MAJOR}) {
      // Threads that share the packed x: one vector more than a number of whole tiles each.
      check_linear(row, info, 64, 4096, 16 * 73, layout, 2, 73);
      check_linear(row, info, 64, 4096, 8 * (24 * 6 + 1), layout, 2, 73);
      if (info.format == SI_FORMAT_PANEL) continue;  // of fewer than 2^16 columns
      // Tokens of which scratch holds a few vectors, or less than one.
      check_linear(row, info, 2, 100000, 40, layout, 1, 40);
      check_linear(row, info, 2, 1100000, 5, layout, 2, 1);
    }
    check_recurrent(row, info);
  }
  return finish("bounds_test");
}
