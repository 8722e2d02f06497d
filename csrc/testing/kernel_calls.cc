// One call of one kernel on a fixed problem, for a tool that counts instructions (benchmarks/instructions.py):
//
//   kernel_calls            prints the names of the problems
//   kernel_calls NAME       runs that one, on one thread
#include <sparseinfer.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "testing/problem.h"

namespace {

using si::testing::pack_options;
using si::testing::Packed;
using si::testing::Random;

// A convolution has an image of size x size pixels and no stride, padded to keep it; size 0 is a linear layer of n
// tokens, token-major as torch gives them.
struct Problem {
  const char* name;
  int64_t M, C, kernel, n, size;
  double density;
};

constexpr Problem kProblems[] = {
    {"linear 256x512 N=1, 90%", 256, 512, 1, 1, 0, 0.1},     {"linear 256x512 N=8, 90%", 256, 512, 1, 8, 0, 0.1},
    {"linear 256x512 N=128, 90%", 256, 512, 1, 128, 0, 0.1}, {"conv 3x3 32->64 @28, 80%", 64, 32, 3, 0, 28, 0.2},
    {"conv 1x1 128->64 @28, 90%", 64, 128, 1, 0, 28, 0.1},
};

si_status run(const Problem& p) {
  Random random;
  const bool conv = p.size != 0;
  const int64_t K = p.C * p.kernel * p.kernel, columns = conv ? p.size * p.size : p.n;
  const si_weight_desc desc{conv ? 4 : 2, {p.M, p.C, p.kernel, p.kernel}, 1};
  const Packed packed(random.weight(p.M, K, p.density, false, 1, 1), desc, pack_options(SI_FORMAT_PANEL));
  const std::vector<float> x = random.tensor(p.C * columns, false), bias = random.tensor(p.M, false);
  std::vector<float> y(static_cast<size_t>(p.M * columns));
  if (!conv) {
    const si_linear_args args{sizeof(si_linear_args),
                              x.data(),
                              y.data(),
                              bias.data(),
                              p.n,
                              p.C,
                              p.M,
                              SI_TOKEN_MAJOR,
                              SI_ACT_NONE,
                              SI_ROW_BEST,
                              1,
                              SI_F32,
                              SI_F32,
                              nullptr,
                              nullptr,
                              SI_F32};
    return si_linear(packed.get(), &args);
  }
  const int64_t pad = p.kernel / 2;
  const si_conv_args args{sizeof(si_conv_args),
                          x.data(),
                          y.data(),
                          bias.data(),
                          1,
                          p.size,
                          p.size,
                          {1, 1},
                          {pad, pad, pad, pad},
                          {1, 1},
                          SI_PAD_ZEROS,
                          SI_ACT_NONE,
                          SI_ROW_BEST,
                          1,
                          SI_F32,
                          SI_F32,
                          nullptr,
                          nullptr,
                          SI_F32};
  return si_conv(packed.get(), &args);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Problem& problem : kProblems) {
    if (argc < 2)
      std::puts(problem.name);
    else if (std::strcmp(argv[1], problem.name) == 0)
      return run(problem) == SI_OK ? 0 : 1;
  }
  return argc < 2 ? 0 : 2;
}
