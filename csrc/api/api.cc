// The C API: checks every argument and hands over to the kernels.
#include <sparseinfer.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "api/args.h"
#include "api/handle.h"
#include "api/quantization.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/target.h"
#include "formats/weights.h"
#include "kernels/conv/conv.h"
#include "kernels/conv/conv_bf16.h"
#include "kernels/conv/conv_int8.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_bf16.h"
#include "kernels/linear/linear_int8.h"
#include "kernels/recurrent/recurrent.h"
#include "kernels/registry.h"
#include "kernels/scalar/scalar.h"

namespace {

using si::fail;
using si::read_args;
using si::write_result;

// Sizes of the first versions of the argument structs that have a size.
constexpr size_t kTargetSize = sizeof(si_target);
constexpr size_t kPackOptionsSize = offsetof(si_pack_options, target);
constexpr size_t kLinearSize = offsetof(si_linear_args, x_type);
constexpr size_t kConvSize = offsetof(si_conv_args, x_type);
constexpr size_t kRecurrentSize = sizeof(si_recurrent_args);

// A handle of a caller's, as all that come from one are.
struct OpenWeights : si_weights {
  uint32_t magic;
};

si_status check_weights(const char* function, const si_weights* weights) {
  return si::check_handle(function, "packed weight", static_cast<const OpenWeights*>(weights));
}

si_status check_call(const void* x, const void* y, bool empty, si_activation activation, int32_t threads) {
  SI_REQUIRE(empty || (x != nullptr && y != nullptr), SI_ERR_ARGUMENT, "expected x and y, got a null pointer");
  SI_REQUIRE(activation >= SI_ACT_NONE && activation <= SI_ACT_HARDSIGMOID, SI_ERR_ARGUMENT, "unknown activation ",
             activation);
  SI_REQUIRE(threads >= 1, SI_ERR_ARGUMENT, "expected threads >= 1, got ", threads);
  return SI_OK;
}

// That `lines` lines of `length` elements, `pitch` elements apart, lie within what this machine can address.
si_status check_extent(const char* function, const char* name, int64_t lines, int64_t pitch, int64_t length) {
  constexpr int64_t kMost = PTRDIFF_MAX / static_cast<int64_t>(sizeof(float));
  const bool fits = length <= kMost &&
                    (lines <= 1 || (pitch <= kMost && (lines - 1) <= (kMost - length) / std::max<int64_t>(pitch, 1)));
  SI_REQUIRE(fits, SI_ERR_ARGUMENT, function, ": expected ", name, " within this machine's ", 8 * sizeof(size_t),
             "-bit addresses, got ", lines, " lines of ", length, " elements, ", pitch, " apart");
  return SI_OK;
}

// a * b of two factors that are not negative; INT64_MAX where it is larger.
int64_t product(int64_t a, int64_t b) { return b != 0 && a > INT64_MAX / b ? INT64_MAX : a * b; }

si_status check_linear(const si_weights* weights, const si_linear_args& args) {
  SI_TRY(check_call(args.x, args.y, args.n == 0, args.activation, args.threads));
  const int64_t M = weights->shape.M(), K = weights->shape.K();
  SI_REQUIRE(weights->shape.groups == 1, SI_ERR_ARGUMENT, "si_linear: expected an ungrouped weight");
  SI_REQUIRE(args.n >= 0, SI_ERR_ARGUMENT, "si_linear: expected n >= 0, got ", args.n);
  const bool tokens = args.layout == SI_TOKEN_MAJOR;
  SI_REQUIRE(tokens || args.layout == SI_CHANNEL_MAJOR, SI_ERR_ARGUMENT, "si_linear: unknown layout");
  const int64_t least_x = tokens ? K : args.n, least_y = tokens ? M : args.n;
  // The pitch of a single token (or channel) is never used.
  const int64_t lines_x = tokens ? args.n : K, lines_y = tokens ? args.n : M;
  SI_REQUIRE(lines_x <= 1 || args.ldx >= least_x, SI_ERR_ARGUMENT, "si_linear: expected ldx >= ", least_x, ", got ",
             args.ldx);
  SI_REQUIRE(lines_y <= 1 || args.ldy >= least_y, SI_ERR_ARGUMENT, "si_linear: expected ldy >= ", least_y, ", got ",
             args.ldy);
  SI_TRY(check_extent("si_linear", "x", lines_x, args.ldx, least_x));
  return check_extent("si_linear", "y", lines_y, args.ldy, least_y);
}

si_status check_conv(const si_weights* weights, const si_conv_args& args) {
  SI_TRY(check_call(args.x, args.y, args.batch == 0, args.activation, args.threads));
  SI_REQUIRE(args.batch >= 0, SI_ERR_ARGUMENT, "si_conv: expected batch >= 0, got ", args.batch);
  si::ConvGeometry geometry;
  SI_TRY(si::conv_geometry(weights->shape, args, &geometry));
  SI_REQUIRE(weights->shape.ndim != 3 || args.h == 1, SI_ERR_ARGUMENT,
             "si_conv: expected h = 1 for a 3-dimensional weight, got ", args.h);
  const int64_t image = product(args.h, args.w), pixels = product(geometry.oh, geometry.ow);
  SI_TRY(check_extent("si_conv", "x", product(args.batch, geometry.channels), image, image));
  return check_extent("si_conv", "y", product(args.batch, weights->shape.M()), pixels, pixels);
}

// What a call says of its residual and of its bytes.
template <class Args>
si_status check_bytes(const char* function, const si_weights& weights, si_op op, const Args& args, int64_t tokens,
                      si_quantization* out) {
  const bool added = args.residual != nullptr;
  if (added) SI_TRY(si::check_residual(function, weights, op, args.residual_type));
  return si::check_quantization(function, weights, args.quantization,
                                {args.y_type, added ? &args.residual_type : nullptr}, tokens, out);
}

si_status check_batch_sizes(const si_recurrent_args& args) {
  int64_t most = args.batch;
  for (int64_t t = 0; t < args.steps; ++t) {
    SI_REQUIRE(args.batch_sizes[t] >= 1 && args.batch_sizes[t] <= most, SI_ERR_ARGUMENT,
               "si_recurrent: expected batch_sizes from 1 to ", most, " at step ", t, ", got ", args.batch_sizes[t]);
    most = args.batch_sizes[t];
  }
  return SI_OK;
}

si_status check_recurrent(const si_weights* weights, const si_recurrent_args& args, bool empty) {
  SI_TRY(check_call(args.gates, args.y, empty, SI_ACT_NONE, args.threads));
  SI_REQUIRE(args.cell >= SI_CELL_LSTM && args.cell <= SI_CELL_RNN_RELU, SI_ERR_ARGUMENT, "si_recurrent: unknown cell ",
             args.cell);
  const int64_t M = weights->shape.M(), H = weights->shape.K();
  SI_REQUIRE(weights->shape.ndim == 2 && M == si::cell_gates(args.cell) * H, SI_ERR_ARGUMENT,
             "si_recurrent: expected a weight of ", si::cell_gates(args.cell), " x H rows and H columns, got ", M,
             " and ", H);
  SI_REQUIRE(args.steps >= 0 && args.batch >= 0, SI_ERR_ARGUMENT, "si_recurrent: expected steps and batch >= 0, got ",
             args.steps, " and ", args.batch);
  SI_REQUIRE(empty || args.h != nullptr, SI_ERR_ARGUMENT, "si_recurrent: expected h, got a null pointer");
  SI_REQUIRE(empty || (args.c != nullptr) == (args.cell == SI_CELL_LSTM), SI_ERR_ARGUMENT,
             "si_recurrent: expected c for an LSTM, and for no other cell");
  SI_REQUIRE(empty || (args.ldg >= M && args.ldy >= H), SI_ERR_ARGUMENT,
             "si_recurrent: expected ldg and ldy of at least the elements of a row");
  if (args.batch_sizes != nullptr) SI_TRY(check_batch_sizes(args));
  SI_REQUIRE(args.batch_sizes != nullptr || empty || (args.step_rows >= 0 && args.batch_rows >= 0), SI_ERR_ARGUMENT,
             "si_recurrent: expected step_rows and batch_rows >= 0");
  SI_TRY(check_extent("si_recurrent", "gates", product(args.steps, args.batch), args.ldg, M));
  return check_extent("si_recurrent", "y", product(args.steps, args.batch), args.ldy, H);
}

}  // namespace

const char* si_last_error(void) { return si::last_message(); }
const char* si_version(void) { return SPARSEINFER_VERSION; }
uint32_t si_abi_version(void) { return SI_ABI_VERSION; }

si_status si_get_error(si_error* out) {
  si_error error{};
  error.status = si::last_status();
  std::strncpy(error.text, si::last_message(), sizeof error.text - 1);
  return write_result("si_get_error", error, out);
}

const char* si_feature_name(size_t bit) {
  static constexpr const char* kNames[] = {
#define SI_FEATURE(constant, name) name,
#include "core/features.inc"
#undef SI_FEATURE
  };
  return bit < sizeof kNames / sizeof kNames[0] ? kNames[bit] : nullptr;
}

size_t si_target_count(void) { return si::target_count(); }

si_status si_target_at(size_t index, si_target* out) {
  SI_REQUIRE(index < si::target_count(), SI_ERR_ARGUMENT, "si_target_at: index out of range");
  return write_result("si_target_at", si::target_at(index), out);
}

si_status si_target_named(const char* name, si_target* out) {
  SI_REQUIRE(name != nullptr, SI_ERR_ARGUMENT, "si_target_named: null name");
  const si_target* found = si::target_named(name);
  if (found != nullptr) return write_result("si_target_named", *found, out);
  si::Message known;
  for (size_t i = 0; i < si::target_count(); ++i) {
    known.add(i == 0 ? "" : ", ");
    known.add(si::target_at(i).name);
  }
  return fail(SI_ERR_ARGUMENT, "expected a target of ", known.text(), ", got '", name, "'");
}

size_t si_isa_count(void) { return si::kIsaCount; }

si_status si_isa(size_t index, si_isa_info* out) {
  SI_REQUIRE(index < si::kIsaCount, SI_ERR_ARGUMENT, "si_isa: index out of range");
  const si::IsaState& state = si::isa_state(static_cast<si::Isa>(index));
  return write_result("si_isa",
                      {sizeof *out, state.name, state.compiled, state.supported, state.reason, state.features}, out);
}

const char* si_threads_backend(void) { return si::parallel_backend(); }

void si_release_scratch(void) { si::release_scratch(); }

size_t si_scratch_bytes(void) { return si::scratch_bytes(); }

size_t si_row_count(void) { return si::row_count(); }

si_status si_row(size_t index, si_row_info* out) {
  SI_REQUIRE(index < si::row_count(), SI_ERR_ARGUMENT, "si_row: index out of range");
  const si::Row& row = si::row_at(index);
  return write_result("si_row",
                      {sizeof *out, row.name, row.format, row.op, row.dtype, si::isa_state(row.isa).name,
                       si::row_reason(row), row.x_types, row.weight_types, row.y_types},
                      out);
}

si_status si_select(si_format format, si_op op, size_t* row) {
  SI_REQUIRE(row != nullptr, SI_ERR_ARGUMENT, "si_select: null result");
  return si::select_row(format, op, row);
}

size_t si_format_count(void) { return si::format_count(); }

si_status si_format_at(size_t index, si_format_info* out) {
  SI_REQUIRE(index < si::format_count(), SI_ERR_ARGUMENT, "si_format_at: index out of range");
  const si::Format& format = si::format_at(index);
  si_format_info info{sizeof *out, format.id, format.name, format.value_types, {}, {}};
  std::copy(format.params, format.params + 4, info.params);
  std::copy(format.sections, format.sections + 4, info.sections);
  return write_result("si_format_at", info, out);
}

si_status si_pack(const float* weight, const si_weight_desc* desc, const si_pack_options* options, void** blob,
                  size_t* bytes) {
  SI_REQUIRE(weight != nullptr && desc != nullptr && options != nullptr && blob != nullptr && bytes != nullptr,
             SI_ERR_ARGUMENT, "si_pack: null pointer");
  si_pack_options known;
  SI_TRY(read_args("si_pack", options, kPackOptionsSize, &known));
  si_target target;
  if (known.target != nullptr) {
    SI_TRY(read_args("si_pack: target", known.target, kTargetSize, &target));
    known.target = &target;
  }
  si::OwnedBlob packed;
  SI_TRY(si::pack_weights(weight, *desc, known, &packed));
  *bytes = packed.bytes;
  *blob = packed.data.release();
  return SI_OK;
}

void si_free(void* blob) { std::free(blob); }

si_status si_seal(void* blob, size_t bytes) {
  si::BlobHeader header{};
  SI_REQUIRE(blob != nullptr && bytes >= sizeof header, SI_ERR_ARGUMENT, "si_seal: no buffer, or less than a header");
  std::memcpy(&header, blob, sizeof header);
  SI_REQUIRE(header.total_bytes == bytes && bytes % 8 == 0, SI_ERR_ARGUMENT,
             "si_seal: expected the size that the header gives");
  si::seal_blob(static_cast<uint8_t*>(blob));
  return SI_OK;
}

si_status si_inspect(const void* blob, size_t bytes, si_weight_info* out) {
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, "si_inspect: null result");
  si_weights weights;
  SI_TRY(si::open_weights(blob, bytes, &weights));
  si_weight_info info{};
  si::describe(weights, &info);
  return write_result("si_inspect", info, out);
}

si_status si_unpack(const void* blob, size_t bytes, float* weight) {
  SI_REQUIRE(weight != nullptr, SI_ERR_ARGUMENT, "si_unpack: null result");
  si_weights weights;
  SI_TRY(si::open_weights(blob, bytes, &weights));
  return si::unpack_weights(weights, weight);
}

si_status si_weights_open(const void* blob, size_t bytes, si_weights** out) {
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, "si_weights_open: null result");
  si_weights weights;
  SI_TRY(si::open_weights(blob, bytes, &weights));
  void* const memory = std::malloc(sizeof(OpenWeights));
  SI_REQUIRE(memory != nullptr, SI_ERR_MEMORY, "out of memory");
  *out = new (memory) OpenWeights{weights, si::kOpenHandle};
  return SI_OK;
}

void si_weights_close(si_weights* weights) {
  auto* const open = static_cast<OpenWeights*>(weights);
  if (open == nullptr || open->magic != si::kOpenHandle) return;
  si::forget_handle(open);
  std::free(open);
}

si_status si_weights_info(const si_weights* weights, si_weight_info* out) {
  SI_TRY(check_weights("si_weights_info", weights));
  si_weight_info info{};
  si::describe(*weights, &info);
  return write_result("si_weights_info", info, out);
}

si_status si_weights_unpack(const si_weights* weights, float* weight) {
  SI_TRY(check_weights("si_weights_unpack", weights));
  SI_REQUIRE(weight != nullptr, SI_ERR_ARGUMENT, "si_weights_unpack: null result");
  return si::unpack_weights(*weights, weight);
}

si_status si_linear(const si_weights* weights, const si_linear_args* args) {
  const si::ScratchUse use;
  si_linear_args call;
  SI_TRY(read_args("si_linear", args, kLinearSize, &call));
  SI_TRY(check_weights("si_linear", weights));
  SI_TRY(check_linear(weights, call));
  si_quantization quantization{};
  SI_TRY(check_bytes("si_linear", *weights, SI_OP_LINEAR, call, call.n, &quantization));
  const si::Row* row = nullptr;
  SI_TRY(si::row_for_call(*weights, SI_OP_LINEAR, {call.x_type, call.y_type}, call.row, &row));
  const si::TileKernels* isa = si::tile_kernels(row->isa);
  if (si::is_type(weights->value_type, SI_I8)) {
    call.quantization = &quantization;
    return has_tiles(isa) ? si::linear_int8(*isa, *weights, call) : si::scalar_linear_int8(*weights, call);
  }
  if (weights->panel.pairs())
    return has_tiles(isa) ? si::linear_bf16(*isa, *weights, call) : si::scalar_linear_bf16(*weights, call);
  return has_tiles(isa) ? si::linear(*isa, *weights, call) : si::scalar_linear(*weights, call);
}

si_status si_conv_output_size(const si_weights* weights, const si_conv_args* args, int64_t* oh, int64_t* ow) {
  SI_TRY(check_weights("si_conv_output_size", weights));
  SI_REQUIRE(args != nullptr && oh != nullptr && ow != nullptr, SI_ERR_ARGUMENT, "si_conv_output_size: null pointer");
  si_conv_args call;
  SI_TRY(read_args("si_conv_output_size", args, kConvSize, &call));
  si::ConvGeometry geometry;
  SI_TRY(si::conv_geometry(weights->shape, call, &geometry));
  *oh = geometry.oh;
  *ow = geometry.ow;
  return SI_OK;
}

si_status si_conv(const si_weights* weights, const si_conv_args* args) {
  const si::ScratchUse use;
  si_conv_args call;
  SI_TRY(read_args("si_conv", args, kConvSize, &call));
  SI_TRY(check_weights("si_conv", weights));
  SI_TRY(check_conv(weights, call));
  si_quantization quantization{};
  SI_TRY(check_bytes("si_conv", *weights, SI_OP_CONV, call, -1, &quantization));
  const si::Row* row = nullptr;
  SI_TRY(si::row_for_call(*weights, SI_OP_CONV, {call.x_type, call.y_type}, call.row, &row));
  const si::TileKernels* isa = si::tile_kernels(row->isa);
  if (si::is_type(weights->value_type, SI_I8)) {
    call.quantization = &quantization;
    return has_tiles(isa) ? si::conv_int8(*isa, *weights, call) : si::scalar_conv_int8(*weights, call);
  }
  if (weights->panel.pairs())
    return has_tiles(isa) ? si::conv_bf16(*isa, *weights, call) : si::scalar_conv_bf16(*weights, call);
  return has_tiles(isa) ? si::conv(*isa, *weights, call) : si::scalar_conv(*weights, call);
}

si_status si_recurrent(const si_weights* weights, const si_recurrent_args* args) {
  const si::ScratchUse use;
  si_recurrent_args call;
  SI_TRY(read_args("si_recurrent", args, kRecurrentSize, &call));
  SI_TRY(check_weights("si_recurrent", weights));
  const bool empty = call.steps == 0 || call.batch == 0;
  SI_TRY(check_recurrent(weights, call, empty));
  if (!SI_HAS(recurrent)) return si::left_out("the function", "si_recurrent", "SPARSEINFER_OPERATORS");
  SI_REQUIRE(weights->value_type != SI_I8, SI_ERR_UNSUPPORTED,
             "si_recurrent: expected a weight of float32 or bfloat16 values, got int8; try float32");
  SI_REQUIRE(!weights->panel.pairs(), SI_ERR_UNSUPPORTED,
             "si_recurrent: expected a weight of single values, got pairs of bfloat16; try g of 0");
  const si::Row* row = nullptr;
  SI_TRY(si::row_for_call(*weights, SI_OP_LINEAR, {SI_F32, SI_F32}, call.row, &row));
  return empty ? SI_OK : si::recurrent(si::tile_kernels(row->isa), *weights, call);
}
