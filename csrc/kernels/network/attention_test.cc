// Norms and attention of every instruction set that runs here, and the scalar loops, against float64.
#include "kernels/network/attention.h"

#include <algorithm>

#include "testing/isas.h"
#include "testing/problem.h"

using namespace si::testing;

namespace {

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  int64_t batch, heads, queries, keys, dim;
  bool causal;
  // Of the mask: none, one for all, one a sequence, one a query, one a head and query.
  enum { kNone, kKeys, kBatch, kQueries, kHeads } mask;
  int64_t before;  // features of a token that stand before the heads, and after them
};

struct Exact {
  double y, bound;
};

// One feature of one query, in float64, and how far rounding may be from it: what a score is off by is relative in its
// exponential, and sums add one rounding an element. Operands of the products are off by `rounded`, relative to them.
Exact exact(const si::Attention& call, int64_t b, int64_t h, int64_t i, int64_t feature, double rounded) {
  const si::AttentionJob& job = call.job;
  const float* const q = job.q + b * call.q_step + i * job.ldq + h * job.dim;
  const int64_t keys = job.causal ? std::min(job.keys, i + 1) : job.keys;
  std::vector<double> scores;
  double most = -HUGE_VAL, off = 0.0;
  for (int64_t j = 0; j < keys; ++j) {
    const float* const k = job.k + b * call.k_step + j * job.ldk + h * job.dim;
    double score = 0.0, absolute = 0.0;
    for (int64_t d = 0; d < job.dim; ++d) {
      score += double{q[d]} * double{k[d]};
      absolute += std::abs(double{q[d]} * double{k[d]});
    }
    const double more =
        job.mask == nullptr ? 0.0 : double{job.mask[b * call.mask_step + h * call.mask_head + i * job.mask_ld + j]};
    scores.push_back(score * double{job.scale} + more);
    most = std::max(most, scores.back());
    if (!std::isinf(more))
      off = std::max(off, (kEps * static_cast<double>(job.dim + 3) + 2.0 * rounded) * absolute * double{job.scale} +
                              kEps * std::abs(more));
  }
  if (most == -HUGE_VAL) return {0.0, 0.0};
  double total = 0.0, y = 0.0, absolute = 0.0;
  for (int64_t j = 0; j < keys; ++j) {
    const double p = std::exp(scores[static_cast<size_t>(j)] - most);
    const double v = job.v[b * call.v_step + j * job.ldv + h * job.dim + feature];
    total += p;
    y += p * v;
    absolute += p * std::abs(v);
  }
  const double sums = kEps * (2.0 * static_cast<double>(keys) + 16.0);
  const double bound = absolute / total * (std::expm1(2.0 * off) * 2.0 + 2.0 * rounded + sums) + 1e-36;
  return {y / total, bound};
}

std::vector<float> mask_of(const Case& c, Random& random) {
  const int64_t rows = c.mask == Case::kKeys      ? 1
                       : c.mask == Case::kBatch   ? c.batch
                       : c.mask == Case::kQueries ? c.queries
                                                  : c.heads * c.queries;
  std::vector<float> mask = random.tensor(rows * c.keys, false);
  // Some keys are left out, and of one row all: its queries have nothing to look at.
  for (float& v : mask) v = random.chance(0.3) ? -kInf : 3.0f * v;
  if (rows > 1) std::fill(mask.begin() + (rows - 1) * c.keys, mask.end(), -kInf);
  return mask;
}

void test_attention(const si::TileKernels* isa, const Case& c, double rounded) {
  Random random;
  const int64_t used = c.heads * c.dim, width = used + 2 * c.before;
  const std::vector<float> q = random.tensor(c.batch * c.queries * width, false),
                           k = random.tensor(c.batch * c.keys * used, false),
                           v = random.tensor(c.batch * c.keys * width, false);
  const std::vector<float> mask = c.mask == Case::kNone ? std::vector<float>{} : mask_of(c, random);
  Output y(c.batch * c.queries * used, 1);
  si::Attention call{};
  call.batch = c.batch;
  call.heads = c.heads;
  call.q_step = c.queries * width;
  call.k_step = c.keys * used;
  call.v_step = c.keys * width;
  call.y_step = c.queries * used;
  call.job.q = q.data() + c.before;
  call.job.k = k.data();
  call.job.v = v.data() + 2 * c.before;
  call.job.y = y.data();
  call.job.ldq = call.job.ldv = width;
  call.job.ldk = call.job.ldy = used;
  call.job.queries = c.queries;
  call.job.keys = c.keys;
  call.job.dim = c.dim;
  call.job.scale = 1.7f;
  call.job.causal = c.causal;
  if (c.mask != Case::kNone) {
    call.job.mask = mask.data();
    call.job.mask_ld = c.mask >= Case::kQueries ? c.keys : 0;
    call.mask_step = c.mask == Case::kBatch ? c.keys : 0;
    call.mask_head = c.mask == Case::kHeads ? c.keys * c.queries : 0;
  }
  SI_CHECK_EQ(si::attend(isa, call, 2), SI_OK);
  y.check_canaries("attention");
  const std::vector<float> two(y.data(), y.data() + c.batch * c.queries * used);
  SI_CHECK_EQ(si::attend(isa, call, 1), SI_OK);
  SI_CHECK(two == std::vector<float>(y.data(), y.data() + c.batch * c.queries * used));
  const int64_t feature_step = std::max<int64_t>(1, c.dim / 3), query_step = std::max<int64_t>(1, c.queries / 11);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t i = c.queries - 1; i >= 0; i -= query_step)
        for (int64_t d = c.dim - 1; d >= 0; d -= feature_step) {
          const Exact want = exact(call, b, h, i, d, rounded);
          SI_CHECK_NEAR(y.data()[(b * c.queries + i) * used + h * c.dim + d], want.y, want.bound);
        }
}

// A key or value that is no number reaches the queries that look at it, and no others.
void test_nan(const si::TileKernels* isa) {
  const int64_t tokens = 21, dim = 8;
  Random random;
  std::vector<float> x = random.tensor(tokens * dim, false), y(static_cast<size_t>(tokens * dim));
  x[10 * dim + 3] = std::numeric_limits<float>::quiet_NaN();
  si::Attention call{};
  call.batch = call.heads = 1;
  call.job = {x.data(), x.data(), x.data(), y.data(), dim,  dim,     dim, dim,    tokens,
              tokens,   dim,      0,        1.0f,     true, nullptr, 0,   nullptr};
  SI_CHECK_EQ(si::attend(isa, call, 1), SI_OK);
  for (int64_t i = 0; i < tokens; ++i) SI_CHECK_EQ(std::isnan(y[static_cast<size_t>(i * dim)]), i >= 10);
}

void test_norm(const si::TileKernels* isa, int64_t rows, int64_t n, bool centred, bool affine, bool residual,
               double mean) {
  Random random;
  std::vector<float> x = random.tensor(rows * n, false);
  const std::vector<float> weight = random.tensor(n, false), bias = random.tensor(n, false),
                           more = random.tensor(rows * n, false);
  for (float& v : x) v += static_cast<float>(mean);
  Output y(rows * n, 1);
  si::NormJob job{};
  job.x = x.data();
  job.residual = residual ? more.data() : nullptr;
  job.weight = affine ? weight.data() : nullptr;
  job.bias = affine ? bias.data() : nullptr;
  job.y = y.data();
  job.rows = rows;
  job.n = n;
  job.eps = 1e-5f;
  job.centred = centred;
  SI_CHECK_EQ(si::norm(isa, job, 2), SI_OK);
  y.check_canaries("norm");
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0.0, squares = 0.0, largest = 0.0;
    const auto value = [&](int64_t i) {
      const auto at = static_cast<size_t>(row * n + i);
      return double{x[at]} + (residual ? double{more[at]} : 0.0);
    };
    for (int64_t i = 0; i < n; ++i) sum += value(i), largest = std::max(largest, std::abs(value(i)));
    const double shift = centred ? sum / static_cast<double>(n) : 0.0;
    for (int64_t i = 0; i < n; ++i) squares += (value(i) - shift) * (value(i) - shift);
    const double deviation = std::sqrt(squares / static_cast<double>(n) + double{1e-5f});
    for (int64_t i = 0; i < n; ++i) {
      const double scale = affine ? double{weight[static_cast<size_t>(i)]} : 1.0;
      const double moved = affine ? double{bias[static_cast<size_t>(i)]} : 0.0;
      const double normal = (value(i) - shift) / deviation;
      // The mean is off by as many roundings of the largest as are added up, and what is divided by likewise.
      const double off = kEps * static_cast<double>(n + 4) * (largest / deviation) * (1.0 + std::abs(normal));
      const double bound =
          std::abs(scale) * (off + kEps * static_cast<double>(n + 8) * std::abs(normal)) + kEps * std::abs(moved) * 2.0;
      SI_CHECK_NEAR(y.data()[row * n + i], normal * scale + moved, bound);
    }
  }
  // In place: the same.
  std::vector<float> own = x;
  job.x = job.y = own.data();
  SI_CHECK_EQ(si::norm(isa, job, 1), SI_OK);
  SI_CHECK(std::equal(own.begin(), own.end(), y.data()));
}

void test_attentions(const si::TileKernels* isa, double rounded) {
  for (const Case& c : {
           Case{1, 1, 1, 1, 1, false, Case::kNone, 0},         // the least
           Case{2, 3, 7, 7, 8, false, Case::kNone, 5},         // fewer than a vector
           Case{1, 2, 33, 65, 16, false, Case::kBatch, 0},     // other queries than keys
           Case{2, 2, 18, 18, 12, true, Case::kNone, 12},      // a part of a vector of features
           Case{2, 3, 19, 23, 20, false, Case::kHeads, 1},     //
           Case{2, 2, 16, 31, 4, true, Case::kBatch, 0},       // both masks
           Case{1, 2, 150, 150, 64, false, Case::kKeys, 64},   // several blocks of queries
           Case{1, 1, 9, 1100, 24, false, Case::kQueries, 0},  // several blocks of keys
           Case{1, 1, 1100, 1100, 5, true, Case::kNone, 0},    //
           Case{3, 1, 5, 513, 80, true, Case::kKeys, 3},       //
       })
    test_attention(isa, c, rounded);
  test_nan(isa);
}

void test(const si::TileKernels* isa) {
  test_attentions(isa, 0.0);
  for (int64_t n : {1, 3, 16, 17, 48, 100, 768})
    for (bool centred : {true, false})
      for (bool affine : {true, false}) test_norm(isa, 5, n, centred, affine, affine == centred, 0.0);
  test_norm(isa, 40, 768, true, true, true, 0.0);
  // Far from zero, where squares would have lost the differences.
  test_norm(isa, 3, 768, true, true, false, 100.0);
}

}  // namespace

int main() {
  for (const si::TileKernels* isa : float_isas()) test(isa);
  for (const si::TileKernels* isa : pair_isas()) test_attentions(isa, 1.0 / 256);
  return finish("attention_test");
}
