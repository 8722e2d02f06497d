#include "runtime/context.h"

#include <algorithm>
#include <ctime>
#include <iterator>
#include <new>

#include "runtime/operators.h"

namespace si {

namespace {

double now() {
  std::timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Puts the caller's tensors in their places.
void take_tensors(si_context* context, const void* const* inputs, void* const* outputs) {
  const si_model& model = *context->model;
  for (int64_t i = 0; i < model.values.size(); ++i) {
    const Value& value = model.values[i];
    if (value.place == Place::kInput) context->data[i] = const_cast<void*>(inputs[value.offset]);
    if (value.place == Place::kOutput) context->data[i] = outputs[value.offset];
  }
}

si_status run_node(const si_context& context, const Node& node) {
  return node.shares ? SI_OK : node.op->run({*context.model, node, context.data, context.threads});
}

}  // namespace

uint64_t context_bytes(const si_model& model) {
  const auto tensors = static_cast<uint64_t>(model.values.size());
  return aligned(sizeof(si_context)) + aligned(tensors * sizeof(void*)) + model.arena_bytes;
}

CallScratch measure_scratch(const si_model& model, int threads) {
  CallScratch measured{};
  const ScratchSeat seat(&measured);
  for (const Node& node : model.nodes) {
    const bool takes =
        std::find(std::begin(kWithScratch), std::end(kWithScratch), node.op->id) != std::end(kWithScratch);
    // What fails tells so when it runs.
    if (takes) static_cast<void>(node.op->run({model, node, model.nowhere.data(), threads}));
  }
  return measured;
}

uint64_t scratch_bytes(const CallScratch& measured, int threads) {
  const uint64_t bytes = measured.bytes(threads);
  return bytes == 0 ? 0 : aligned(sizeof(CallScratch)) + bytes;
}

si_context* place_context(const si_model& model, void* memory, int threads, const CallScratch* scratch) {
  auto* at = static_cast<uint8_t*>(memory);
  auto* const context = new (at) si_context{};
  at += aligned(sizeof(si_context));
  context->model = &model;
  context->magic = kOpenHandle;
  context->threads = threads;
  context->data = reinterpret_cast<void**>(at);
  context->arena = at + aligned(static_cast<uint64_t>(model.values.size()) * sizeof(void*));
  for (int64_t i = 0; i < model.values.size(); ++i) {
    const Value& value = model.values[i];
    context->data[i] = value.place == Place::kArena      ? context->arena + value.offset
                       : value.place == Place::kConstant ? const_cast<uint8_t*>(model.values[value.root].data)
                                                         : nullptr;
  }
  if (scratch != nullptr && scratch->bytes(threads) > 0) {
    at = context->arena + model.arena_bytes;
    context->scratch = new (at) CallScratch(*scratch);
    context->scratch->memory = at + aligned(sizeof(CallScratch));
  }
  return context;
}

si_status run_context(si_context* context, const void* const* inputs, void* const* outputs, double* seconds) {
  take_tensors(context, inputs, outputs);
  const ScratchSeat seat(context->scratch);
  const ScratchUse use;
  double since = seconds != nullptr ? now() : 0.0;
  const Buffer<Node>& nodes = context->model->nodes;
  for (int64_t i = 0; i < nodes.size(); ++i) {
    SI_TRY(run_node(*context, nodes[i]));
    if (seconds == nullptr) continue;
    const double end = now();
    seconds[i] = end - since;
    since = end;
  }
  return SI_OK;
}

si_status watch_context(si_context* context, const void* const* inputs, void* const* outputs, si_observer observer,
                        void* user) {
  take_tensors(context, inputs, outputs);
  const ScratchSeat seat(context->scratch);
  const ScratchUse use;
  const Buffer<Node>& nodes = context->model->nodes;
  for (int64_t i = 0; i < nodes.size(); ++i) {
    SI_TRY(run_node(*context, nodes[i]));
    observer(user, static_cast<size_t>(i), context->data[nodes[i].output]);
  }
  return SI_OK;
}

}  // namespace si
