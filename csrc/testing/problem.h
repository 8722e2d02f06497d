// What the kernel tests share: random pruned weights, and a result checked against float64 with the bound
// |y - y64| <= c (K + 2) eps (|W| |x| + |bias|).
#pragma once

#include <sparseinfer.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "formats/half.h"
#include "testing/c_api.h"
#include "testing/check.h"

namespace si::testing {

// Float32 sums, whatever their order, stay within K eps of the sum of absolute terms; 1 leaves no slack for a wrong
// term.
constexpr double kBound = 1.0;
constexpr float kCanary = 12345.5f;

struct Random {
  std::mt19937 engine{1};
  float uniform() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(engine); }
  // Small integers: every kernel must give the exact result, in any order of summation.
  float integer() { return static_cast<float>(std::uniform_int_distribution<int>(-3, 3)(engine)); }
  bool chance(double p) { return std::uniform_real_distribution<double>(0, 1)(engine) < p; }

  std::vector<float> tensor(int64_t n, bool integers) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& v : out) v = integers ? integer() : uniform();
    return out;
  }
  // At most `n` of every `m` columns are kept, so that every format can hold the weight.
  std::vector<float> weight(int64_t M, int64_t K, double density, bool integers, int n, int m) {
    std::vector<float> out(static_cast<size_t>(M * K));
    for (int64_t row = 0; row < M; ++row)
      for (int64_t k = 0, kept = 0; k < K; ++k) {
        if (k % m == 0) kept = 0;
        if (kept == n || !chance(density)) continue;
        const float v = integers ? integer() : uniform();
        out[static_cast<size_t>(row * K + k)] = v;
        kept += v != 0.0f;
      }
    return out;
  }
  // A convolution's: the columns are the input channels of each kernel position, as the nm format counts them.
  std::vector<float> conv_weight(int64_t M, int64_t channels, int64_t taps, double density, bool integers, int n,
                                 int m) {
    const std::vector<float> rows = weight(M * taps, channels, density, integers, n, m);
    const int64_t K = channels * taps;
    std::vector<float> out(rows.size());
    for (int64_t row = 0; row < M; ++row)
      for (int64_t k = 0; k < K; ++k)
        out[static_cast<size_t>(row * K + k)] =
            rows[static_cast<size_t>((row * taps + k % taps) * channels + k / taps)];
    return out;
  }
};

inline void round_to_bfloat16(std::vector<float>& weight) {
  for (float& v : weight) v = bfloat16_to_float(float_to_bfloat16(v));
}

// Zeroes all rows of a weight but one in `kept`.
inline void keep_rows(std::vector<float>& weight, int64_t K, int64_t kept) {
  for (size_t i = 0; i < weight.size(); ++i)
    if (static_cast<int64_t>(i) / K % kept != 0) weight[i] = 0.0f;
}

// The options that tests choose; what a format does not read is ignored.
inline si_pack_options pack_options(si_format format, si_value_type type = SI_F32, int32_t kblock = 0) {
  si_pack_options options = sized<si_pack_options>();
  options.format = format;
  options.value_type = type;
  options.kblock = format == SI_FORMAT_PANEL ? kblock : 0;
  options.nm_n = 2;
  options.nm_m = 4;
  options.block = 16;
  return options;
}

struct WeightsDeleter {
  void operator()(si_weights* w) const { si_weights_close(w); }
};

// A packed weight and its handle.
class Packed {
 public:
  Packed(const std::vector<float>& weight, const si_weight_desc& desc, const si_pack_options& options) {
    SI_CHECK_EQ(si_pack(weight.data(), &desc, &options, &blob_, &bytes_), SI_OK);
    si_weights* handle = nullptr;
    SI_CHECK_EQ(si_weights_open(blob_, bytes_, &handle), SI_OK);
    handle_.reset(handle);
  }
  ~Packed() {
    handle_.reset();
    si_free(blob_);
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  const si_weights* get() const { return handle_.get(); }

 private:
  void* blob_ = nullptr;
  size_t bytes_ = 0;
  std::unique_ptr<si_weights, WeightsDeleter> handle_;
};

// An output of `size` floats at a chosen misalignment, filled with NaN between two canaries.
class Output {
 public:
  Output(int64_t size, int64_t misalignment) : size_(size), offset_(kGuard + misalignment) {
    data_.assign(static_cast<size_t>(offset_ + size + kGuard), kCanary);
    for (int64_t i = 0; i < size; ++i) data()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  float* data() { return data_.data() + offset_; }
  void check_canaries(const std::string& what) {
    bool intact = true;
    for (int64_t i = 0; i < offset_; ++i) intact = intact && data_[static_cast<size_t>(i)] == kCanary;
    for (size_t i = static_cast<size_t>(offset_ + size_); i < data_.size(); ++i) intact = intact && data_[i] == kCanary;
    if (!SI_CHECK(intact)) std::fprintf(stderr, "  wrote outside y: %s\n", what.c_str());
  }

 private:
  static constexpr int64_t kGuard = 64;
  int64_t size_, offset_;
  std::vector<float> data_;
};

inline double activate64(double v, si_activation activation) {
  switch (activation) {
    case SI_ACT_NONE:
      return v;
    case SI_ACT_RELU:
      return v > 0 ? v : 0;
    case SI_ACT_RELU6:
      return v > 0 ? (v < 6 ? v : 6) : 0;
    case SI_ACT_GELU:
      return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    case SI_ACT_GELU_TANH:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case SI_ACT_SILU:
      return v / (1 + std::exp(-v));
    case SI_ACT_SIGMOID:
      return 1 / (1 + std::exp(-v));
    case SI_ACT_TANH:
      return std::tanh(v);
    case SI_ACT_HARDSWISH:
      return v * std::fmin(std::fmax(v + 3, 0.0), 6.0) / 6;
    case SI_ACT_HARDSIGMOID:
      return std::fmin(std::fmax(v + 3, 0.0), 6.0) / 6;
  }
  return v;
}

// One output element: `sum` in float64 and the sum of absolute terms. No activation here has a slope above 1.5, and
// each adds a rounding of its own, of the size of its result or of 2e-7 (the polynomial of erf).
inline bool check_element(float y, double sum, double absolute, int64_t K, si_activation activation) {
  const double eps = std::numeric_limits<float>::epsilon();
  const double bound = kBound * static_cast<double>(K + 2) * eps * absolute;
  if (activation == SI_ACT_NONE) return SI_CHECK_NEAR(y, sum, bound);
  const double expected = activate64(sum, activation);
  return SI_CHECK_NEAR(y, expected, 1.5 * bound + 4 * eps * (1 + std::abs(sum)));
}

// Rows of int8 weights, and of pairs of bfloat16, have tests of their own: int8_test.cc, bf16_test.cc.
inline bool computes_int8(const si_row_info& row) { return std::string(row.dtype) == "int8"; }
inline bool computes_bf16(const si_row_info& row) { return std::string(row.dtype) == "bfloat16"; }
inline bool computes_float32(const si_row_info& row) { return std::string(row.dtype) == "float32"; }

inline const char* reason_of(size_t row) {
  si_row_info info = sized<si_row_info>();
  SI_CHECK_EQ(si_row(row, &info), SI_OK);
  return info.reason;
}

}  // namespace si::testing
