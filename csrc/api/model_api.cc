// The C API of models: checks every argument and hands over to the runtime.
#include <sparseinfer.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "api/args.h"
#include "api/handle.h"
#include "core/error.h"
#include "core/parallel.h"
#include "runtime/context.h"
#include "runtime/operators.h"
#include "runtime/selftest.h"

namespace {

constexpr size_t kFirstOptions = offsetof(si_open_options, threads) + sizeof(int32_t);
constexpr size_t kFirstContextOptions = offsetof(si_context_options, shared_scratch);

using si::fail;
using si::write_result;

si_status check_model(const char* function, const si_model* model) {
  return si::check_handle(function, "model", model);
}

// A context whose model is closed cannot run.
si_status check_context(const char* function, const si_context* context) {
  SI_TRY(si::check_handle(function, "context", context));
  return check_model(function, context->model);
}

si_status describe_tensor(const char* function, const si::Value& value, si_tensor_info* out) {
  si_tensor_info info{};
  info.name = value.name;
  info.type = static_cast<si_value_type>(value.type);
  info.ndim = value.ndim;
  std::copy(value.dims, value.dims + si::kMostDims, info.shape);
  info.bytes = value.bytes;
  info.kind = static_cast<si_tensor_kind>(value.kind);
  info.format = "";
  info.per_batch = value.per_batch;
  if (value.packed != nullptr) {
    info.type = static_cast<si_value_type>(reinterpret_cast<const si::BlobHeader*>(value.data)->value_type);
    info.format = si::format_of(value.packed->format)->name;
    info.nnz = value.packed->nnz;
  }
  return write_result(function, info, out);
}

// That a run has all the pointers that it needs.
si_status check_pointers(const char* function, const si_context* context, const void* const* inputs,
                         void* const* outputs) {
  SI_TRY(check_context(function, context));
  const int64_t given = context->model->inputs, taken = context->model->file.header->outputs;
  SI_REQUIRE(outputs != nullptr && (given == 0 || inputs != nullptr), SI_ERR_ARGUMENT, function,
             ": expected arrays of inputs and outputs, got a null pointer");
  for (int64_t i = 0; i < given; ++i)
    SI_REQUIRE(inputs[i] != nullptr, SI_ERR_ARGUMENT, function, ": expected input ", i, ", got a null pointer");
  for (int64_t i = 0; i < taken; ++i)
    SI_REQUIRE(outputs[i] != nullptr, SI_ERR_ARGUMENT, function, ": expected output ", i, ", got a null pointer");
  return SI_OK;
}

// A model that `fill` makes; none where it fails.
template <class Fill>
si_status new_model(si_model** out, Fill fill) {
  void* const memory = std::malloc(sizeof(si_model));
  SI_REQUIRE(memory != nullptr, SI_ERR_MEMORY, "out of memory");
  auto* const model = new (memory) si_model;
  const si_status status = fill(model);
  if (status == SI_OK)
    *out = model;
  else
    si_model_close(model);
  return status;
}

si_status check_alone(const char* function, const si::ContextUse& use) {
  SI_REQUIRE(use.alone(), SI_ERR_ARGUMENT, function,
             ": expected a context that runs no other call, got one that does; try a context for each thread");
  return SI_OK;
}

}  // namespace

si_status si_model_seal(void* file, size_t bytes) {
  si_model model;
  SI_TRY(si::open_model(file, bytes, false, 1, &model));
  static_cast<si::FileHeader*>(file)->arena_bytes = model.arena_bytes;
  static_cast<si::FileHeader*>(file)->checksum = si::file_checksum(model.file);
  return SI_OK;
}

si_status si_model_open(const void* file, size_t bytes, si_model** out) {
  return si_model_open_with(file, bytes, nullptr, out);
}

si_status si_model_open_with(const void* file, size_t bytes, const si_open_options* options, si_model** out) {
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, "si_model_open: null result");
  si_open_options own{};
  own.threads = 1;
  if (options != nullptr) SI_TRY(si::read_args("si_model_open_with", options, kFirstOptions, &own));
  SI_REQUIRE(own.threads >= 1, SI_ERR_ARGUMENT, "si_model_open_with: expected threads >= 1, got ", own.threads);
  return new_model(out, [&](si_model* model) { return si::open_model(file, bytes, true, own.threads, model); });
}

si_status si_model_at_batch(const si_model* model, int64_t batch, si_model** out) {
  SI_TRY(check_model("si_model_at_batch", model));
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, "si_model_at_batch: null pointer");
  return new_model(out, [&](si_model* made) { return si::model_at_batch(*model, batch, made); });
}

void si_model_close(si_model* model) {
  if (model == nullptr || model->magic != si::kOpenHandle) return;
  si::forget_handle(model);
  model->~si_model();
  std::free(model);
}

si_status si_model_describe(const si_model* model, si_model_info* out) {
  SI_TRY(check_model("si_model_describe", model));
  const si::FileHeader& header = *model->file.header;
  si_model_info info{};
  info.bytes = header.total_bytes;
  info.inputs = static_cast<size_t>(model->inputs);
  info.outputs = header.outputs;
  info.nodes = header.nodes;
  info.arena_bytes = model->arena_bytes;
  info.context_bytes = si::context_bytes(*model);
  info.metadata = model->file.metadata;
  info.metadata_bytes = header.metadata_bytes;
  info.tensors = header.tensors;
  info.golden_bytes = model->batch == header.batch ? header.golden_bytes : 0;
  info.version = header.version;
  info.batch = model->batch;
  info.most_batch = header.most_batch;
  return write_result("si_model_describe", info, out);
}

si_status si_model_input(const si_model* model, size_t index, si_tensor_info* out) {
  SI_TRY(check_model("si_model_input", model));
  for (const si::Value& value : model->values)
    if (value.kind == si::kInput && value.offset == index) return describe_tensor("si_model_input", value, out);
  return fail(SI_ERR_ARGUMENT, "si_model_input: expected an input below ", model->inputs, ", got ", index);
}

si_status si_model_output(const si_model* model, size_t index, si_tensor_info* out) {
  SI_TRY(check_model("si_model_output", model));
  const uint32_t count = model->file.header->outputs;
  SI_REQUIRE(index < count, SI_ERR_ARGUMENT, "si_model_output: expected an output below ", count, ", got ", index);
  return describe_tensor("si_model_output", model->value(model->file.outputs[index]), out);
}

si_status si_model_tensor(const si_model* model, size_t index, si_tensor_info* out) {
  SI_TRY(check_model("si_model_tensor", model));
  const auto count = static_cast<size_t>(model->values.size());
  SI_REQUIRE(index < count, SI_ERR_ARGUMENT, "si_model_tensor: expected a tensor below ", count, ", got ", index);
  return describe_tensor("si_model_tensor", model->values[static_cast<int64_t>(index)], out);
}

si_status si_model_node(const si_model* model, size_t index, si_node_info* out) {
  SI_TRY(check_model("si_model_node", model));
  const auto count = static_cast<size_t>(model->nodes.size());
  SI_REQUIRE(index < count, SI_ERR_ARGUMENT, "si_model_node: expected a node below ", count, ", got ", index);
  const si::Node& node = model->nodes[static_cast<int64_t>(index)];
  const si::Value* weight = model->operand(node, 1);
  si_node_info info{};
  info.name = node.name;
  info.op = node.op->name;
  info.format = "";
  if (weight != nullptr && weight->packed != nullptr) {
    info.format = si::format_of(weight->packed->format)->name;
    info.nnz = weight->packed->nnz;
    info.weights = weight->packed->shape.M() * weight->packed->shape.K();
  }
  info.multiply_adds = node.multiply_adds;
  info.runs = node.shares ? 0 : 1;
  const bool bytes = model->operand(node, 0)->type == si::kUint8 || model->value(node.output).type == si::kUint8;
  const bool pairs = weight != nullptr && weight->packed != nullptr && weight->packed->panel.pairs();
  info.type = bytes ? SI_U8 : pairs ? SI_BF16 : SI_F32;
  info.activation = node.activation;
  info.operands = node.operands;
  info.operand = node.operand;
  info.output = node.output;
  return write_result("si_model_node", info, out);
}

uint64_t si_context_bytes(const si_model* model, int32_t threads) {
  if (check_model("si_context_bytes", model) != SI_OK || threads < 1) return 0;
  const uint64_t bytes = si::context_bytes(*model);
  // All of a context but its arena.
  si::Buffer<uint8_t> memory;
  if (memory.allocate(static_cast<int64_t>(bytes - model->arena_bytes)) != SI_OK) return 0;
  return bytes + si::add_scratch(si::place_context(*model, memory.data(), threads));
}

si_status si_context_create(const si_model* model, void* memory, size_t bytes, int32_t threads, si_context** out) {
  si_context_options options{};
  options.struct_size = sizeof options;
  options.threads = threads;
  return si_context_create_with(model, memory, bytes, &options, out);
}

si_status si_context_create_with(const si_model* model, void* memory, size_t bytes, const si_context_options* options,
                                 si_context** out) {
  SI_TRY(check_model("si_context_create", model));
  SI_REQUIRE(out != nullptr, SI_ERR_ARGUMENT, "si_context_create: null result");
  si_context_options own{};
  SI_TRY(si::read_args("si_context_create_with", options, kFirstContextOptions, &own));
  SI_REQUIRE(own.threads >= 1, SI_ERR_ARGUMENT, "si_context_create: expected threads >= 1, got ", own.threads);
  SI_REQUIRE(own.shared_scratch == 0 || own.shared_scratch == 1, SI_ERR_ARGUMENT,
             "si_context_create_with: expected shared_scratch to be 0 or 1, got ", own.shared_scratch);
  uint64_t least = si::context_bytes(*model);
  bool fits = memory != nullptr && reinterpret_cast<uintptr_t>(memory) % si::kModelAlign == 0 && bytes >= least;
  si_context* const context = fits ? si::place_context(*model, memory, own.threads) : nullptr;
  if (own.shared_scratch == 0 && fits) {
    least += si::add_scratch(context);
    fits = bytes >= least;
  } else if (own.shared_scratch == 0 && si::kMessages) {
    least = si_context_bytes(model, own.threads);
  }
  SI_REQUIRE(fits, SI_ERR_ARGUMENT, "si_context_create: expected ", least, " bytes at a multiple of ", si::kModelAlign,
             ", got ", bytes);
  if (own.parallel_for == nullptr) si::start_threads(own.threads);
  context->parallel_for = own.parallel_for;
  context->user = own.user;
  *out = context;
  return SI_OK;
}

si_status si_context_run(si_context* context, const void* const* inputs, void* const* outputs, double* seconds) {
  SI_TRY(check_pointers("si_context_run", context, inputs, outputs));
  const si::ContextUse use(context);
  SI_TRY(check_alone("si_context_run", use));
  return si::run_context(context, inputs, outputs, seconds);
}

si_status si_context_watch(si_context* context, const void* const* inputs, void* const* outputs, si_observer observer,
                           void* user) {
  SI_TRY(check_pointers("si_context_watch", context, inputs, outputs));
  SI_REQUIRE(observer != nullptr, SI_ERR_ARGUMENT, "si_context_watch: expected an observer, got a null pointer");
  const si::ContextUse use(context);
  SI_TRY(check_alone("si_context_watch", use));
  return si::watch_context(context, inputs, outputs, observer, user);
}

si_status si_context_selftest(si_context* context, double* worst) {
  SI_TRY(check_context("si_context_selftest", context));
  const si::ContextUse use(context);
  SI_TRY(check_alone("si_context_selftest", use));
  return si::selftest(context, worst);
}
