#include "kernels/recurrent/recurrent.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/scratch.h"
#include "kernels/linear/linear.h"
#include "kernels/scalar/scalar.h"

namespace si {

namespace {

float sigmoid(float v) { return 1.0f / (1.0f + std::exp(-v)); }

void scalar_cell(si_cell cell, const CellJob& job) {
  const int64_t H = job.hidden;
  for (int64_t i = 0; i < H; ++i) {
    const auto sum = [&](int gate) { return job.x[gate * H + i] + job.s[gate * H + i]; };
    switch (cell) {
      case SI_CELL_LSTM:
        job.c[i] = sigmoid(sum(1)) * job.c[i] + sigmoid(sum(0)) * std::tanh(sum(2));
        job.h[i] = sigmoid(sum(3)) * std::tanh(job.c[i]);
        break;
      case SI_CELL_GRU: {
        const float z = sigmoid(sum(1)), n = std::tanh(job.x[2 * H + i] + sigmoid(sum(0)) * job.s[2 * H + i]);
        job.h[i] = (1.0f - z) * n + z * job.h[i];
        break;
      }
      case SI_CELL_RNN_TANH:
        job.h[i] = std::tanh(sum(0));
        break;
      case SI_CELL_RNN_RELU:
        job.h[i] = sum(0) < 0.0f ? 0.0f : sum(0);
        break;
    }
  }
}

}  // namespace

int64_t cell_gates(si_cell cell) {
  switch (cell) {
    case SI_CELL_LSTM:
      return 4;
    case SI_CELL_GRU:
      return 3;
    case SI_CELL_RNN_TANH:
    case SI_CELL_RNN_RELU:
      break;
  }
  return 1;
}

si_status recurrent(const TileKernels* isa, const si_weights& weights, const si_recurrent_args& args) {
  const int64_t H = weights.shape.K(), rows = weights.shape.M();
  // Sequences whose gates scratch holds at once; never so few that the last ones would run in a narrow tile.
  constexpr int64_t kFewest = 66;
  const int64_t most = std::max(kFewest, kScratchFloats / rows);
  float* state_part = nullptr;
  SI_TRY(thread_scratch(Scratch::kGates, std::min(most, args.batch) * rows, &state_part));
  si_linear_args step{};
  step.struct_size = sizeof step;
  step.y = state_part;
  step.bias = args.bias;
  step.ldx = H;
  step.ldy = rows;
  step.layout = SI_TOKEN_MAJOR;
  step.activation = SI_ACT_NONE;
  step.row = args.row;
  step.threads = args.threads;
  // Where step t begins in packed sequences: the sequences of all steps before it.
  int64_t offset = 0;
  if (args.batch_sizes != nullptr && args.reverse)
    for (int64_t t = 0; t < args.steps; ++t) offset += args.batch_sizes[t];
  for (int64_t i = 0; i < args.steps; ++i) {
    const int64_t t = args.reverse ? args.steps - 1 - i : i;
    const int64_t active = args.batch_sizes == nullptr ? args.batch : args.batch_sizes[t];
    if (args.batch_sizes != nullptr && args.reverse) offset -= active;
    const int64_t parts = (active + most - 1) / most;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = active * part / parts, last = active * (part + 1) / parts;
      step.x = args.h + first * H;
      step.n = last - first;
      SI_TRY(has_tiles(isa) ? linear(*isa, weights, step) : scalar_linear(weights, step));
      for (int64_t b = first; b < last && !measures_scratch(); ++b) {
        const int64_t row = args.batch_sizes == nullptr ? t * args.step_rows + b * args.batch_rows : offset + b;
        const CellJob job{args.gates + row * args.ldg, state_part + (b - first) * rows, args.h + b * H,
                          args.c == nullptr ? nullptr : args.c + b * H, H};
        if (has_tiles(isa))
          isa->cell(args.cell, job);
        else
          scalar_cell(args.cell, job);
        std::memcpy(args.y + row * args.ldy, job.h, static_cast<size_t>(H) * sizeof(float));
      }
    }
    if (args.batch_sizes != nullptr && !args.reverse) offset += active;
  }
  return SI_OK;
}

}  // namespace si
