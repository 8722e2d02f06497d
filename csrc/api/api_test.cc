// The C API's errors: what comes back for bad arguments, and that nothing crashes.
#include <cstring>
#include <string>
#include <vector>

#include "testing/problem.h"

using namespace si::testing;

namespace {

bool says(const char* part) { return std::strstr(si_last_error(), part) != nullptr; }

}  // namespace

int main() {
  const std::vector<float> weight(6 * 10, 1.0f);
  const si_weight_desc desc{2, {6, 10, 0, 0}, 1};
  const si_pack_options panel = pack_options(SI_FORMAT_PANEL);
  const Packed packed(weight, desc, panel);
  const std::vector<float> x(40, 1.0f);
  std::vector<float> y(40);

  const auto linear = [&](auto&& change) {
    si_linear_args args{sizeof(si_linear_args), x.data(),    y.data(),    nullptr, 3,      10,    6,
                        SI_TOKEN_MAJOR,         SI_ACT_NONE, SI_ROW_BEST, 1,       SI_F32, SI_F32};
    change(args);
    return si_linear(packed.get(), &args);
  };
  SI_CHECK_EQ(linear([](auto&) {}), SI_OK);
  SI_CHECK_EQ(y[0], 10.0f);
  SI_CHECK_EQ(linear([](auto& a) { a.n = -1; }), SI_ERR_ARGUMENT);
  SI_CHECK(says("n >= 0") && says("-1"));
  SI_CHECK_EQ(linear([](auto& a) { a.ldx = 9; }), SI_ERR_ARGUMENT);
  SI_CHECK(says("ldx >= 10") && says("got 9"));
  SI_CHECK_EQ(linear([](auto& a) { a.ldy = 5; }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.x = nullptr; }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.threads = 0; }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.row = 1000; }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.activation = static_cast<si_activation>(99); }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.layout = static_cast<si_layout>(7); }), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(linear([](auto& a) { a.n = 0, a.x = nullptr, a.y = nullptr; }), SI_OK);
  // A row of another operation, and every row that this machine lacks.
  for (size_t row = 0; row < si_row_count(); ++row) {
    si_row_info info = sized<si_row_info>();
    SI_CHECK_EQ(si_row(row, &info), SI_OK);
    const si_status status = linear([&](auto& a) { a.row = static_cast<int32_t>(row); });
    if (info.format != SI_FORMAT_PANEL || info.op != SI_OP_LINEAR)
      SI_CHECK_EQ(status, SI_ERR_ARGUMENT);
    else
      SI_CHECK_EQ(status, *info.reason == '\0' ? SI_OK : SI_ERR_UNSUPPORTED);
  }

  si_conv_args conv = sized<si_conv_args>();
  conv.x = x.data();
  conv.y = y.data();
  conv.batch = conv.h = conv.w = 1;
  conv.stride[0] = conv.stride[1] = conv.dilation[0] = conv.dilation[1] = 1;
  conv.row = SI_ROW_BEST;
  conv.threads = 1;
  SI_CHECK_EQ(si_conv(packed.get(), &conv), SI_ERR_ARGUMENT);
  SI_CHECK(says("3 or 4 dimensions"));
  const si_weight_desc kernel{4, {2, 3, 1, 10}, 1};
  const Packed filters(weight, kernel, panel);
  SI_CHECK_EQ(si_conv(filters.get(), &conv), SI_ERR_ARGUMENT);
  SI_CHECK(says("at least the kernel's 10"));
  conv.w = 12;
  conv.padding_mode = SI_PAD_REFLECT;
  conv.padding[2] = 12;
  SI_CHECK_EQ(si_conv(filters.get(), &conv), SI_ERR_ARGUMENT);
  SI_CHECK(says("reflect padding"));
  conv.padding[2] = 0;
  conv.stride[1] = 0;
  SI_CHECK_EQ(si_conv(filters.get(), &conv), SI_ERR_ARGUMENT);

  // Tensors of 64 values between which lies a padded image that no memory holds: its size must not wrap around.
  const si_weight_desc cross{4, {1, 1, 3, 3}, 1};
  const std::vector<float> ones(64, 1.0f);
  const Packed far(ones, cross, panel);
  for (si_padding mode : {SI_PAD_ZEROS, SI_PAD_REPLICATE})
    for (size_t row = 0; row < si_row_count(); ++row) {
      si_row_info info = sized<si_row_info>();
      SI_CHECK_EQ(si_row(row, &info), SI_OK);
      if (info.format != SI_FORMAT_PANEL || info.op != SI_OP_CONV || *info.reason != '\0') continue;
      std::vector<float> out(64);
      si_conv_args args = conv;
      args.x = ones.data();
      args.y = out.data();
      args.batch = 64;
      args.h = args.w = 1;
      for (int64_t& padding : args.padding) padding = int64_t{1} << 30;
      args.dilation[0] = args.dilation[1] = int64_t{1} << 30;
      args.stride[0] = args.stride[1] = 1;
      args.padding_mode = mode;
      args.row = static_cast<int32_t>(row);
      if (std::strcmp(info.isa, "scalar") == 0) {
        SI_CHECK_EQ(si_conv(far.get(), &args), SI_OK);
        SI_CHECK_EQ(out[63], mode == SI_PAD_ZEROS ? 1.0f : 9.0f);
      } else {
        SI_CHECK_EQ(si_conv(far.get(), &args), SI_ERR_UNSUPPORTED);
        SI_CHECK(says("fewer than 2^31 values"));
      }
    }

  void* blob = nullptr;
  size_t bytes = 0;
  si_weight_desc bad = desc;
  bad.ndim = 7;
  SI_CHECK_EQ(si_pack(weight.data(), &bad, &panel, &blob, &bytes), SI_ERR_ARGUMENT);
  bad = desc;
  bad.shape[0] = 0;
  SI_CHECK_EQ(si_pack(weight.data(), &bad, &panel, &blob, &bytes), SI_ERR_ARGUMENT);
  bad = {4, {6, 1, 2, 5}, 4};
  SI_CHECK_EQ(si_pack(weight.data(), &bad, &panel, &blob, &bytes), SI_ERR_ARGUMENT);
  SI_CHECK(says("divide"));
  si_pack_options options = panel;
  options.kblock = 17;
  SI_CHECK_EQ(si_pack(weight.data(), &desc, &options, &blob, &bytes), SI_ERR_ARGUMENT);
  options = panel;
  options.value_type = SI_F16;
  SI_CHECK_EQ(si_pack(weight.data(), &desc, &options, &blob, &bytes), SI_ERR_ARGUMENT);
  options.format = static_cast<si_format>(42);
  SI_CHECK_EQ(si_pack(weight.data(), &desc, &options, &blob, &bytes), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_weights_open(nullptr, 0, nullptr), SI_ERR_ARGUMENT);

  SI_CHECK_EQ(si_pack(weight.data(), &desc, &panel, &blob, &bytes), SI_OK);
  auto* const words = static_cast<uint64_t*>(blob);
  const uint64_t checksum = words[15];
  words[15] = 0;
  SI_CHECK_EQ(si_seal(blob, bytes), SI_OK);
  SI_CHECK_EQ(words[15], checksum);
  SI_CHECK_EQ(si_seal(nullptr, bytes), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_seal(blob, 127), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_seal(blob, bytes - 64), SI_ERR_ARGUMENT);
  si_free(blob);

  size_t row = 0;
  SI_CHECK_EQ(si_select(SI_FORMAT_PANEL, SI_OP_CONV, &row), SI_OK);
  SI_CHECK_EQ(si_select(static_cast<si_format>(42), SI_OP_CONV, &row), SI_ERR_UNSUPPORTED);
  return finish("api_test");
}
