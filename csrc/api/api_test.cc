// The C API's errors: what comes back for bad arguments, and that nothing crashes.
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "testing/problem.h"

using namespace si::testing;

namespace {

// Structs of callers that know fewer fields, or more.
void test_sizes() {
  const std::vector<float> weight(6 * 10, 1.0f), x(10, 2.0f);
  const si_weight_desc desc{2, {6, 10, 0, 0}, 1};
  si_pack_options options = pack_options(SI_FORMAT_PANEL);
  void* blob = nullptr;
  size_t bytes = 0;
  const auto pack = [&](size_t size) {
    options.struct_size = size;
    const si_status status = si_pack(weight.data(), &desc, &options, &blob, &bytes);
    if (status == SI_OK) si_free(blob);
    return status;
  };
  // The first version ended before `target`: what stands there is not read.
  options.target = reinterpret_cast<const si_target*>(0x10);
  SI_CHECK_EQ(pack(offsetof(si_pack_options, target)), SI_OK);
  options.target = nullptr;
  SI_CHECK_EQ(pack(sizeof options), SI_OK);
  for (size_t size : {size_t{0}, size_t{8}, offsetof(si_pack_options, target) - 1}) {
    SI_CHECK_EQ(pack(size), SI_ERR_ARGUMENT);
    SI_CHECK(says("si_pack: expected struct_size of at least") && says("sizeof"));
  }
  SI_CHECK_EQ(pack(SIZE_MAX), SI_ERR_ARGUMENT);
  si_target target = sized<si_target>();
  target.struct_size = 8;
  options.target = &target;
  SI_CHECK_EQ(pack(sizeof options), SI_ERR_ARGUMENT);
  SI_CHECK(says("si_pack: target"));

  const Packed packed(weight, desc, pack_options(SI_FORMAT_PANEL));
  struct {
    si_linear_args known;
    int64_t later[2];
  } newer{};
  std::vector<float> y(6);
  newer.known.struct_size = sizeof newer;
  newer.known.x = x.data();
  newer.known.y = y.data();
  newer.known.n = 1;
  newer.known.row = SI_ROW_BEST;
  newer.known.threads = 1;
  SI_CHECK_EQ(si_linear(packed.get(), &newer.known), SI_OK);
  SI_CHECK_EQ(y[5], 20.0f);
  newer.later[1] = 1;
  SI_CHECK_EQ(si_linear(packed.get(), &newer.known), SI_ERR_ARGUMENT);
  SI_CHECK(says("newer library"));
  newer.known.struct_size = offsetof(si_linear_args, x_type);
  newer.known.x_type = SI_F16;
  SI_CHECK_EQ(si_linear(packed.get(), &newer.known), SI_OK);
  newer.known.struct_size = sizeof newer.known;
  SI_CHECK_EQ(si_linear(packed.get(), &newer.known), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("reads x of float16"));
  newer.known.struct_size = 16;
  SI_CHECK_EQ(si_linear(packed.get(), &newer.known), SI_ERR_ARGUMENT);

  // Of a result, no more is written than the caller has room for.
  struct {
    si_row_info known;
    uint32_t beyond = 77;
  } row;
  row.known = sized<si_row_info>();
  row.known.struct_size = offsetof(si_row_info, x_types);
  row.known.x_types = 99;
  SI_CHECK_EQ(si_row(0, &row.known), SI_OK);
  SI_CHECK_EQ(row.known.x_types, 99u);
  SI_CHECK(*row.known.name != '\0');
  SI_CHECK_EQ(row.known.struct_size, offsetof(si_row_info, x_types));
  row.known.struct_size = sizeof row;
  SI_CHECK_EQ(si_row(0, &row.known), SI_OK);
  SI_CHECK_EQ(row.known.x_types, 1u << SI_F32);
  SI_CHECK_EQ(row.beyond, 77u);
  row.known.struct_size = 0;
  SI_CHECK_EQ(si_row(0, &row.known), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_row(0, nullptr), SI_ERR_ARGUMENT);
}

void test_targets() {
  si_target host = sized<si_target>(), named = sized<si_target>();
  SI_CHECK_EQ(si_target_named("host", &host), SI_OK);
  SI_CHECK(host.l1 > 0 && host.l2 > 0 && host.threads > 0);
  SI_CHECK_EQ(si_target_named("aarch64-dotprod", &named), SI_OK);
  SI_CHECK_EQ(named.features, SI_CPU_NEON | SI_CPU_FP16 | SI_CPU_DOTPROD);
  SI_CHECK_EQ(si_target_named("aarch64", &named), SI_ERR_ARGUMENT);
  SI_CHECK(says("got 'aarch64'") && says("host, x86-64-avx2"));
  SI_CHECK_EQ(si_target_named(nullptr, &named), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(si_target_at(si_target_count(), &named), SI_ERR_ARGUMENT);
  for (size_t i = 0; i < si_target_count(); ++i) {
    SI_CHECK_EQ(si_target_at(i, &named), SI_OK);
    si_target again = sized<si_target>();
    SI_CHECK_EQ(si_target_named(named.name, &again), SI_OK);
    SI_CHECK_EQ(again.features, named.features);
  }
  // What an instruction set needs has names, and the host has it where the instruction set runs.
  for (size_t i = 0; i < si_isa_count(); ++i) {
    si_isa_info isa = sized<si_isa_info>();
    SI_CHECK_EQ(si_isa(i, &isa), SI_OK);
    if (isa.supported) SI_CHECK_EQ(isa.features & ~host.features, 0u);
    for (size_t bit = 0; bit < 64; ++bit)
      if ((isa.features >> bit & 1) != 0) SI_CHECK(si_feature_name(bit) != nullptr);
  }
  SI_CHECK_EQ(std::string(si_feature_name(12)), "dotprod");
  SI_CHECK_EQ(std::string(si_feature_name(13)), "avx_vnni");
  SI_CHECK(si_feature_name(14) == nullptr);
}

void test_formats() {
  for (size_t i = 0; i < si_format_count(); ++i) {
    si_format_info format = sized<si_format_info>();
    SI_CHECK_EQ(si_format_at(i, &format), SI_OK);
    size_t row = 0;
    SI_CHECK_EQ(si_select(format.format, SI_OP_LINEAR, &row), SI_OK);
    SI_CHECK_EQ(si_select(format.format, SI_OP_CONV, &row), SI_OK);
    SI_CHECK((format.value_types & 1u << SI_F32) != 0);
  }
  si_format_info none = sized<si_format_info>();
  SI_CHECK_EQ(si_format_at(si_format_count(), &none), SI_ERR_ARGUMENT);
}

// Sizes whose bytes no pointer reaches are refused, not cut to what a size_t holds.
void test_extents() {
  const std::vector<float> weight(6 * 10, 1.0f);
  const Packed packed(weight, {2, {6, 10, 0, 0}, 1}, pack_options(SI_FORMAT_PANEL));
  float x = 0, y = 0;
  si_linear_args args = sized<si_linear_args>();
  args.x = &x;
  args.y = &y;
  args.row = SI_ROW_BEST;
  args.threads = 1;
  args.ldx = args.ldy = 10;
  for (int64_t n : {INT64_MAX, int64_t{1} << 60}) {
    args.n = n;
    SI_CHECK_EQ(si_linear(packed.get(), &args), SI_ERR_ARGUMENT);
    SI_CHECK(says("addresses"));
  }
  args.n = 2;
  args.ldx = INT64_MAX;
  SI_CHECK_EQ(si_linear(packed.get(), &args), SI_ERR_ARGUMENT);
  if (sizeof(void*) > 4) return;
  const si_weight_desc large{2, {1 << 20, 1 << 11, 0, 0}, 1};
  void* blob = nullptr;
  size_t bytes = 0;
  const si_pack_options options = pack_options(SI_FORMAT_CSR);
  SI_CHECK_EQ(si_pack(&x, &large, &options, &blob, &bytes), SI_ERR_ARGUMENT);
  SI_CHECK(says("32-bit addresses"));
}

// What is added before the activation: which weights take it, of which type, and what its bytes stand for.
void test_residuals() {
  const std::vector<float> weight(6 * 10, 1.0f), x(10, 1.0f), residual(6, 2.0f);
  std::vector<float> y(6);
  si_quantization quantization = sized<si_quantization>();
  quantization.x_scale = 1.0f;
  quantization.residual_scale = 0.5f;
  si_pack_options int8 = pack_options(SI_FORMAT_PANEL, SI_I8), pairs = pack_options(SI_FORMAT_PANEL, SI_BF16);
  pairs.g = 2;
  const si_weight_desc desc{2, {6, 10, 0, 0}, 1}, kernel{3, {6, 10, 1, 0}, 1};
  const auto linear = [&](const si_pack_options& options, auto&& change) {
    si_linear_args args = sized<si_linear_args>();
    args.x = x.data();
    args.y = y.data();
    args.n = 1;
    args.row = SI_ROW_BEST;
    args.threads = 1;
    args.quantization = options.value_type == SI_I8 ? &quantization : nullptr;
    args.residual = residual.data();
    change(args);
    return si_linear(Packed(weight, desc, options).get(), &args);
  };
  const auto conv = [&](const si_pack_options& options, si_value_type type) {
    si_conv_args args = sized<si_conv_args>();
    args.x = x.data();
    args.y = y.data();
    args.batch = args.h = args.w = 1;
    args.stride[0] = args.stride[1] = args.dilation[0] = args.dilation[1] = 1;
    args.row = SI_ROW_BEST;
    args.threads = 1;
    args.quantization = options.value_type == SI_I8 ? &quantization : nullptr;
    args.residual = residual.data();
    args.residual_type = type;
    return si_conv(Packed(weight, kernel, options).get(), &args);
  };
  const auto of_type = [](si_value_type type) { return [type](si_linear_args& args) { args.residual_type = type; }; };
  SI_CHECK_EQ(linear(int8, of_type(SI_F32)), SI_OK);
  SI_CHECK_NEAR(y[5], 12.0, 1e-5);
  SI_CHECK_EQ(conv(int8, SI_F32), SI_OK);
  SI_CHECK_NEAR(y[5], 12.0, 1e-5);
  SI_CHECK_EQ(conv(pack_options(SI_FORMAT_PANEL), SI_F32), SI_OK);
  SI_CHECK_EQ(y[5], 12.0f);
  // Of a caller whose structs end before it, there is none.
  SI_CHECK_EQ(linear(int8, [](si_linear_args& args) { args.struct_size = offsetof(si_linear_args, residual); }), SI_OK);
  SI_CHECK_NEAR(y[5], 10.0, 1e-5);
  for (si_value_type type : {SI_F16, SI_BF16, SI_I8, static_cast<si_value_type>(77)}) {
    SI_CHECK_EQ(linear(int8, of_type(type)), SI_ERR_UNSUPPORTED);
    SI_CHECK(says("si_linear: expected a residual in float32 or uint8"));
    SI_CHECK_EQ(conv(int8, type), SI_ERR_UNSUPPORTED);
  }
  SI_CHECK_EQ(conv(pack_options(SI_FORMAT_PANEL), SI_U8), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("expected a residual in float32, got uint8"));
  for (const si_pack_options& options : {pack_options(SI_FORMAT_PANEL), pack_options(SI_FORMAT_CSR), pairs}) {
    SI_CHECK_EQ(linear(options, of_type(SI_F32)), SI_ERR_UNSUPPORTED);
    SI_CHECK(says("expected no residual"));
  }
  SI_CHECK_EQ(conv(pairs, SI_F32), SI_ERR_UNSUPPORTED);
  SI_CHECK(says("pairs of bfloat16"));
  // What its bytes stand for is read where it is bytes, and only there.
  const float inf = std::numeric_limits<float>::infinity();
  for (float scale : {0.0f, -1.0f, inf, std::numeric_limits<float>::quiet_NaN(), 1e-30f, 1e30f}) {
    quantization.residual_scale = scale;
    SI_CHECK_EQ(linear(int8, of_type(SI_F32)), SI_OK);
    SI_CHECK_EQ(linear(int8, of_type(SI_U8)), SI_ERR_ARGUMENT);
    SI_CHECK(says("si_linear: expected residual_scale from 2^-60 to 2^48"));
    SI_CHECK_EQ(conv(int8, SI_U8), SI_ERR_ARGUMENT);
  }
  quantization.residual_scale = 0.5f;
  for (int32_t zero_point : {-1, 256, INT32_MIN}) {
    quantization.residual_zero_point = zero_point;
    SI_CHECK_EQ(conv(int8, SI_U8), SI_ERR_ARGUMENT);
    SI_CHECK(says("si_conv: expected residual_zero_point from 0 to 255"));
  }
  quantization.residual_zero_point = 0;
  // A struct of before: the scale that it lacks is zero.
  quantization.struct_size = offsetof(si_quantization, residual_scale);
  SI_CHECK_EQ(linear(int8, of_type(SI_F32)), SI_OK);
  SI_CHECK_EQ(linear(int8, of_type(SI_U8)), SI_ERR_ARGUMENT);
}

}  // namespace

int main() {
  test_residuals();
  test_sizes();
  test_targets();
  test_formats();
  test_extents();
  const std::vector<float> weight(6 * 10, 1.0f);
  const si_weight_desc desc{2, {6, 10, 0, 0}, 1};
  const si_pack_options panel = pack_options(SI_FORMAT_PANEL);
  const Packed packed(weight, desc, panel);
  const std::vector<float> x(40, 1.0f);
  std::vector<float> y(40);

  const auto linear = [&](auto&& change) {
    si_linear_args args{sizeof(si_linear_args),
                        x.data(),
                        y.data(),
                        nullptr,
                        3,
                        10,
                        6,
                        SI_TOKEN_MAJOR,
                        SI_ACT_NONE,
                        SI_ROW_BEST,
                        1,
                        SI_F32,
                        SI_F32,
                        nullptr,
                        nullptr,
                        SI_F32};
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
      SI_CHECK_EQ(status, *info.reason == '\0' && si::testing::computes_float32(info) ? SI_OK : SI_ERR_UNSUPPORTED);
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
      if (!si::testing::computes_float32(info)) continue;
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
      SI_CHECK_EQ(si_conv(far.get(), &args), SI_OK);
      SI_CHECK_EQ(out[63], mode == SI_PAD_ZEROS ? 1.0f : 9.0f);
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
  {
    const Packed opened(weight, desc, panel);
    std::vector<float> dense(weight.size());
    SI_CHECK_EQ(si_weights_unpack(opened.get(), dense.data()), SI_OK);
    SI_CHECK(dense == weight);
    SI_CHECK_EQ(si_weights_unpack(nullptr, dense.data()), SI_ERR_ARGUMENT);
    SI_CHECK_EQ(si_weights_unpack(opened.get(), nullptr), SI_ERR_ARGUMENT);
    SI_CHECK(says("si_weights_unpack: null result"));
  }

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
