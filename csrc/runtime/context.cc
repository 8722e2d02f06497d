#include "runtime/context.h"

#include <ctime>
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

// Of a context and of what it keeps of its scratch, the same on every processor.
constexpr uint64_t kContextWords = 3 * kModelAlign;
static_assert(sizeof(si_context) <= kModelAlign && sizeof(CallScratch) <= 2 * kModelAlign,
              "files of C programs have it");

void* scratch_of(si_context* context) { return reinterpret_cast<uint8_t*>(context) + kModelAlign; }

}  // namespace

uint64_t context_bytes(const si_model& model) {
  const auto tensors = static_cast<uint64_t>(model.values.size());
  return kContextWords + aligned(tensors * sizeof(void*)) + model.arena_bytes;
}

si_context* place_context(const si_model& model, void* memory, int threads) {
  auto* at = static_cast<uint8_t*>(memory);
  auto* const context = new (at) si_context{};
  at += kContextWords;
  context->model = &model;
  context->magic = kOpenHandle;
  context->threads = threads;
  context->data = reinterpret_cast<void**>(at);
  context->arena = at + aligned(static_cast<uint64_t>(model.values.size()) * sizeof(void*));
  for (int64_t i = 0; i < model.values.size(); ++i) {
    const Value& value = model.values[i];
    // Those of a caller's have a place that no node looks at before a run.
    context->data[i] = value.place == Place::kArena      ? context->arena + value.offset
                       : value.place == Place::kConstant ? const_cast<uint8_t*>(model.values[value.root].data)
                                                         : context->arena;
  }
  return context;
}

uint64_t add_scratch(si_context* context) {
  auto* const scratch = new (scratch_of(context)) CallScratch{};
  {
    const CallScope scope(nullptr, nullptr, scratch);
    for (const Node& node : context->model->nodes) {
      // What fails tells so when it runs.
      if ((kWithScratch >> node.op->id & 1) != 0) static_cast<void>(run_node(*context, node));
    }
  }
  context->scratch = scratch;
  return scratch->place(context->arena + context->model->arena_bytes, context->threads);
}

si_status run_context(si_context* context, const void* const* inputs, void* const* outputs, double* seconds) {
  take_tensors(context, inputs, outputs);
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
  const ScratchUse use;
  const Buffer<Node>& nodes = context->model->nodes;
  for (int64_t i = 0; i < nodes.size(); ++i) {
    SI_TRY(run_node(*context, nodes[i]));
    observer(user, static_cast<size_t>(i), context->data[nodes[i].output]);
  }
  return SI_OK;
}

}  // namespace si
