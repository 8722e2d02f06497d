// Fuzz target: any bytes as a packed buffer. What is accepted is described, unpacked and run by every operation that
// its shape allows, on memory of exactly the size that the call may touch.
//
// Built as libFuzzer's target where the compiler has it, else with standalone.cc: `make fuzz-native`. Seeds are the
// golden buffers of csrc/formats/.
#include <sparseinfer.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "formats/blob.h"

namespace {

constexpr int64_t kMostFloats = 1 << 18;  // of a tensor
constexpr int64_t kMostWork = 1 << 21;    // multiply-adds of a call

// The header's last 16 bytes are written anew, so that mutations get past the checksum; what they held chooses the
// calls.
class Choices {
 public:
  explicit Choices(const uint8_t* bytes) { std::memcpy(state_, bytes, sizeof state_); }
  int64_t below(int64_t limit) {
    state_[0] = (state_[0] ^ state_[1]) * 0x9e3779b97f4a7c15ULL + 0xbf58476d1ce4e5b9ULL;
    state_[1] = state_[1] << 7 | state_[1] >> 57;
    return static_cast<int64_t>((state_[0] >> 33) % static_cast<uint64_t>(limit));
  }
  bool chance(int64_t one_in) { return below(one_in) == 0; }

 private:
  uint64_t state_[2];
};

void expect(bool ok) {
  if (!ok) std::abort();
}

// Refusals are as good as results; an internal error is a fault of ours.
bool ran(si_status status) {
  expect(status != SI_ERR_INTERNAL);
  return status == SI_OK;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::vector<float> tensor(Choices& choices, int64_t floats) {
  std::vector<float> out(static_cast<size_t>(floats));
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i % 7) - 3.0f;
  if (!out.empty() && choices.chance(4)) out[0] = 3.4e38f;
  out.shrink_to_fit();
  return out;
}

int32_t any_row(Choices& choices) {
  const auto rows = static_cast<int64_t>(si_row_count());
  return static_cast<int32_t>(choices.chance(3) ? SI_ROW_BEST : choices.below(rows));
}

si_activation any_activation(Choices& choices) {
  return static_cast<si_activation>(choices.below(SI_ACT_HARDSIGMOID + 1));
}

// Of int8 weights: bytes or floats in and out. Both are computed from tensors of floats, which hold as many bytes.
si_quantization any_quantization(Choices& choices, const std::vector<float>& x_scales) {
  si_quantization out{};
  out.struct_size = sizeof out;
  out.x_scale = choices.chance(8) ? 0.0f : 0.1f;
  out.y_scale = choices.chance(8) ? -1.0f : 0.3f;
  out.x_zero_point = static_cast<int32_t>(choices.below(257));
  out.y_zero_point = static_cast<int32_t>(choices.below(257));
  out.residual_scale = choices.chance(8) ? 0.0f : 0.2f;
  out.residual_zero_point = static_cast<int32_t>(choices.below(257));
  if (!x_scales.empty()) out.x_scales = x_scales.data();
  return out;
}

template <class Args>
void quantize_call(Args& args, const si_quantization& quantization, Choices& choices) {
  args.x_type = choices.chance(2) ? SI_U8 : SI_F32;
  args.y_type = choices.chance(2) ? SI_U8 : SI_F32;
  args.quantization = &quantization;
}

// A tensor as y. Kernels that add no residual, or none of bytes, refuse it.
template <class Args>
void add_residual(Args& args, const std::vector<float>& residual, Choices& choices) {
  if (!choices.chance(2)) return;
  args.residual = residual.data();
  args.residual_type = choices.chance(2) ? SI_U8 : SI_F32;
}

// Of pairs of bfloat16, and of other weights to be refused: those tensors hold as many halves.
template <class Args>
void narrow_call(Args& args, Choices& choices) {
  args.x_type = choices.chance(2) ? SI_BF16 : SI_F32;
  args.y_type = choices.chance(2) ? SI_BF16 : SI_F32;
}

void run_linear(const si_weights* weights, int64_t M, int64_t K, int64_t nnz, bool int8, Choices& choices) {
  const int64_t most = std::min({kMostFloats / M, kMostFloats / K, kMostWork / (nnz + M)});
  const int64_t n = choices.below(std::clamp<int64_t>(most, 1, 200));
  si_linear_args args{};
  args.struct_size = sizeof args;
  args.layout = choices.chance(2) ? SI_TOKEN_MAJOR : SI_CHANNEL_MAJOR;
  const bool tokens = args.layout == SI_TOKEN_MAJOR;
  const int64_t spare = choices.below(3);
  args.n = n;
  args.ldx = (tokens ? K : n) + spare;
  args.ldy = (tokens ? M : n) + spare;
  const auto floats = [&](int64_t lines, int64_t length, int64_t pitch) {
    return lines == 0 || length == 0 ? 0 : (lines - 1) * pitch + length;
  };
  const int64_t x_floats = tokens ? floats(n, K, args.ldx) : floats(K, n, args.ldx);
  const int64_t y_floats = tokens ? floats(n, M, args.ldy) : floats(M, n, args.ldy);
  const std::vector<float> x = tensor(choices, x_floats), bias = tensor(choices, M);
  const std::vector<float> residual = tensor(choices, y_floats);
  std::vector<float> y(static_cast<size_t>(y_floats));
  args.x = x.data();
  args.y = y.data();
  args.bias = choices.chance(2) ? bias.data() : nullptr;
  args.activation = any_activation(choices);
  args.row = any_row(choices);
  args.threads = static_cast<int32_t>(1 + choices.below(3));
  const std::vector<float> x_scales(choices.chance(2) ? static_cast<size_t>(n) : 0, 0.2f);
  const si_quantization quantization = any_quantization(choices, x_scales);
  if (int8)
    quantize_call(args, quantization, choices);
  else if (choices.chance(2))
    narrow_call(args, choices);
  add_residual(args, residual, choices);
  ran(si_linear(weights, &args));
}

void run_conv(const si_weights* weights, const si_weight_desc& desc, int64_t nnz, bool int8, Choices& choices) {
  const int64_t channels = desc.shape[1] * desc.groups, M = desc.shape[0];
  const int64_t kh = desc.ndim == 4 ? desc.shape[2] : 1, kw = desc.shape[desc.ndim - 1];
  si_conv_args args{};
  args.struct_size = sizeof args;
  args.batch = choices.below(4);
  args.h = desc.ndim == 4 ? 1 + choices.below(kh + 9) : 1;
  args.w = 1 + choices.below(choices.chance(8) ? 5000 : kw + 40);
  const int64_t far = choices.chance(16) ? int64_t{1} << 30 : 4;
  for (int axis = 0; axis < 2; ++axis) {
    const bool used = axis == 1 || desc.ndim == 4;
    args.stride[axis] = used ? 1 + choices.below(far) : 1;
    args.dilation[axis] = used ? 1 + choices.below(far) : 1;
    for (int end = 0; end < 2; ++end) args.padding[2 * axis + end] = used ? choices.below(far + 1) : 0;
  }
  args.padding_mode = static_cast<si_padding>(choices.below(SI_PAD_CIRCULAR + 1));
  args.activation = any_activation(choices);
  args.row = any_row(choices);
  args.threads = static_cast<int32_t>(1 + choices.below(3));
  int64_t oh = 0, ow = 0;
  if (!ran(si_conv_output_size(weights, &args, &oh, &ow))) return;
  const auto too_large = [](int64_t most, std::initializer_list<int64_t> sizes) {
    double product = 1.0;
    for (int64_t size : sizes) product *= static_cast<double>(size);
    return product > static_cast<double>(most);
  };
  if (too_large(kMostFloats, {args.batch, M, oh, ow}) ||
      too_large(kMostFloats, {args.batch, channels, args.h, args.w}) ||
      too_large(kMostWork, {args.batch, nnz + M, oh, ow}) || too_large(kMostWork, {channels, kh, kw}))
    return;
  const std::vector<float> x = tensor(choices, args.batch * channels * args.h * args.w), bias = tensor(choices, M);
  std::vector<float> y(static_cast<size_t>(args.batch * M * oh * ow));
  const std::vector<float> residual = tensor(choices, args.batch * M * oh * ow);
  args.x = x.data();
  args.y = y.data();
  args.bias = choices.chance(2) ? bias.data() : nullptr;
  const si_quantization quantization = any_quantization(choices, {});
  if (int8)
    quantize_call(args, quantization, choices);
  else if (choices.chance(2))
    narrow_call(args, choices);
  add_residual(args, residual, choices);
  ran(si_conv(weights, &args));
}

void run_recurrent(const si_weights* weights, int64_t M, int64_t H, int64_t nnz, Choices& choices) {
  const int64_t gates = M / H;
  if (M % H != 0 || (gates != 1 && gates != 3 && gates != 4) || M > 4096) return;
  const int64_t batch = 1 + choices.below(std::clamp<int64_t>(kMostWork / 8 / (nnz + M), 1, 70));
  std::vector<int64_t> batch_sizes;
  for (int64_t left = choices.below(6), size = batch; left > 0; --left)
    batch_sizes.push_back(size = 1 + choices.below(size));
  si_recurrent_args args{};
  args.struct_size = sizeof args;
  args.steps = static_cast<int64_t>(batch_sizes.size());
  args.batch = batch;
  const bool packed = choices.chance(2), batch_first = choices.chance(2);
  int64_t rows = args.steps * batch;
  if (packed) {
    rows = 0;
    for (int64_t size : batch_sizes) rows += size;
    args.batch_sizes = batch_sizes.data();
  }
  args.step_rows = batch_first ? 1 : batch;
  args.batch_rows = batch_first ? args.steps : 1;
  args.ldg = M;
  args.ldy = H;
  const std::vector<float> x = tensor(choices, rows * M), bias = tensor(choices, M);
  std::vector<float> h = tensor(choices, batch * H), c = h, y(static_cast<size_t>(rows * H));
  args.gates = x.data();
  args.bias = choices.chance(2) ? bias.data() : nullptr;
  args.h = h.data();
  args.y = y.data();
  args.cell = gates == 4   ? SI_CELL_LSTM
              : gates == 3 ? SI_CELL_GRU
                           : (choices.chance(2) ? SI_CELL_RNN_TANH : SI_CELL_RNN_RELU);
  args.c = args.cell == SI_CELL_LSTM ? c.data() : nullptr;
  args.reverse = static_cast<int32_t>(choices.below(2));
  args.row = any_row(choices);
  args.threads = static_cast<int32_t>(1 + choices.below(3));
  ran(si_recurrent(weights, &args));
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The allocation ends where the buffer does, so that a sanitizer sees any access past it.
  const std::unique_ptr<uint8_t, Free> blob(static_cast<uint8_t*>(std::malloc(std::max<size_t>(size, 1))));
  std::memcpy(blob.get(), data, size);
  const uint8_t none[16] = {};
  Choices choices(size >= sizeof(si::BlobHeader) ? data + sizeof(si::BlobHeader) - sizeof none : none);
  if (size >= sizeof(si::BlobHeader)) {
    auto& header = *reinterpret_cast<si::BlobHeader*>(blob.get());
    if (!choices.chance(64)) header.reserved = 0;
    if (!choices.chance(64)) header.total_bytes = size;
    if (!choices.chance(64)) ran(si_seal(blob.get(), size));
  }
  si_weight_info info{};
  info.struct_size = sizeof info;
  const bool sound = ran(si_inspect(blob.get(), size, &info));
  si_weights* weights = nullptr;
  expect(ran(si_weights_open(blob.get(), size, &weights)) == sound);
  if (!sound) return 0;
  int64_t K = 1;
  for (int i = 1; i < info.desc.ndim; ++i) K *= info.desc.shape[i];
  const int64_t M = info.desc.shape[0];
  if (M <= kMostFloats / K) {
    std::vector<float> dense(static_cast<size_t>(M * K));
    expect(ran(si_unpack(blob.get(), size, dense.data())));
  }
  if (M <= kMostFloats && K <= kMostFloats) {
    for (int call = 0; call < 3; ++call) {
      if (info.desc.groups == 1) run_linear(weights, M, K, info.nnz, info.value_type == SI_I8, choices);
      if (info.desc.ndim >= 3) run_conv(weights, info.desc, info.nnz, info.value_type == SI_I8, choices);
      if (info.desc.ndim == 2) run_recurrent(weights, M, K, info.nnz, choices);
    }
  }
  si_weights_close(weights);
  return 0;
}
