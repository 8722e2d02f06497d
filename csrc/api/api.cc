// The C API: checks every argument, turns exceptions into statuses, and hands over to the kernels.
#include <sparseinfer.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "core/cpu.h"
#include "core/error.h"
#include "core/parallel.h"
#include "formats/weights.h"
#include "kernels/conv/conv.h"
#include "kernels/linear/linear.h"
#include "kernels/recurrent/recurrent.h"
#include "kernels/registry.h"
#include "kernels/scalar/scalar.h"

namespace {

std::string& last_error() {
  thread_local std::string message;
  return message;
}

si_status failed(si_status status, const char* prefix, const char* message) noexcept {
  try {
    last_error() = prefix;
    last_error() += message;
  } catch (const std::bad_alloc&) {
    // The status has to do.
    last_error().clear();
  }
  return status;
}

template <class Fn>
si_status guarded(Fn&& fn) noexcept {
  try {
    fn();
    return SI_OK;
  } catch (const si::Error& error) {
    return failed(error.status, "", error.what());
  } catch (const std::bad_alloc&) {
    return failed(SI_ERR_MEMORY, "", "out of memory");
  } catch (const std::exception& error) {
    return failed(SI_ERR_INTERNAL, "internal error: ", error.what());
  }
}

using si::fail;
using si::require;

const si::Row& checked_row(const si_weights& weights, si_op op, int32_t row) {
  if (row == SI_ROW_BEST) return si::row_at(si::select_row(weights.format, op));
  if (row < 0 || static_cast<size_t>(row) >= si::row_count())
    fail(SI_ERR_ARGUMENT,
         "expected a registry row from 0 to " + std::to_string(si::row_count() - 1) + ", got " + std::to_string(row));
  const si::Row& chosen = si::row_at(static_cast<size_t>(row));
  if (chosen.format != weights.format || chosen.op != op)
    fail(SI_ERR_ARGUMENT, std::string("row ") + chosen.name + " does not run this weight's format and operation");
  if (!si::row_reason(chosen).empty())
    fail(SI_ERR_UNSUPPORTED, std::string("row ") + chosen.name + " cannot run: " + si::row_reason(chosen));
  return chosen;
}

void check_call(const si_weights* weights, const float* x, const float* y, bool empty, si_activation activation,
                int32_t threads) {
  require(weights != nullptr, SI_ERR_ARGUMENT, "expected packed weights, got a null handle");
  require(empty || (x != nullptr && y != nullptr), SI_ERR_ARGUMENT, "expected x and y, got a null pointer");
  if (activation < SI_ACT_NONE || activation > SI_ACT_TANH)
    fail(SI_ERR_ARGUMENT, "unknown activation " + std::to_string(activation));
  if (threads < 1) fail(SI_ERR_ARGUMENT, "expected threads >= 1, got " + std::to_string(threads));
  if (weights->format == SI_FORMAT_NM && weights->nm.value_type != SI_F32)
    fail(SI_ERR_UNSUPPORTED, "no CPU kernel computes in the value type of this nm weight; expected float32 values");
}

}  // namespace

const char* si_last_error(void) { return last_error().c_str(); }
const char* si_version(void) { return SPARSEINFER_VERSION; }

size_t si_isa_count(void) { return si::kIsaCount; }

si_status si_isa(size_t index, si_isa_info* out) {
  return guarded([&] {
    require(out != nullptr && index < si::kIsaCount, SI_ERR_ARGUMENT, "si_isa: index out of range or null result");
    const si::IsaState& state = si::isa_state(static_cast<si::Isa>(index));
    *out = {state.name, state.compiled, state.supported, state.reason.c_str()};
  });
}

const char* si_threads_backend(void) {
  const char* name = "";
  guarded([&] { name = si::parallel_backend(); });
  return name;
}

size_t si_row_count(void) { return si::row_count(); }

si_status si_row(size_t index, si_row_info* out) {
  return guarded([&] {
    require(out != nullptr && index < si::row_count(), SI_ERR_ARGUMENT, "si_row: index out of range or null result");
    const si::Row& row = si::row_at(index);
    *out = {row.name, row.format, row.op, "float32", si::isa_state(row.isa).name, si::row_reason(row).c_str()};
  });
}

si_status si_select(si_format format, si_op op, size_t* row) {
  return guarded([&] {
    require(row != nullptr, SI_ERR_ARGUMENT, "si_select: null result");
    *row = si::select_row(format, op);
  });
}

si_status si_pack(const float* weight, const si_weight_desc* desc, const si_pack_options* options, void** blob,
                  size_t* bytes) {
  return guarded([&] {
    require(weight != nullptr && desc != nullptr && options != nullptr && blob != nullptr && bytes != nullptr,
            SI_ERR_ARGUMENT, "si_pack: null pointer");
    const si::WeightShape shape = si::check_desc(*desc);
    const si_value_type type = options->value_type;
    const bool stored = type == SI_F32 || options->format == SI_FORMAT_NM || options->format == SI_FORMAT_BSR ||
                        (options->format == SI_FORMAT_PANEL && type == SI_BF16);
    if (!stored)
      fail(SI_ERR_ARGUMENT,
           "expected values of a type that the format stores: panel float32 and bfloat16, csr float32, "
           "nm and bsr float32, float16 and bfloat16");
    switch (options->format) {
      case SI_FORMAT_PANEL:
        *blob = si::panel_pack(weight, shape, options->kblock, type, bytes);
        return;
      case SI_FORMAT_CSR:
        *blob = si::csr_pack(weight, shape, bytes);
        return;
      case SI_FORMAT_NM:
        *blob = si::nm_pack(weight, shape, options->nm_n, options->nm_m, options->value_type, bytes);
        return;
      case SI_FORMAT_BSR:
        *blob = si::bsr_pack(weight, shape, options->block, options->value_type, bytes);
        return;
    }
    fail(SI_ERR_ARGUMENT, "unknown format " + std::to_string(options->format));
  });
}

void si_free(void* blob) { std::free(blob); }

si_status si_seal(void* blob, size_t bytes) {
  return guarded([&] {
    si::BlobHeader header{};
    require(blob != nullptr && bytes >= sizeof header, SI_ERR_ARGUMENT, "si_seal: no buffer, or less than a header");
    std::memcpy(&header, blob, sizeof header);
    require(header.total_bytes == bytes && bytes % 8 == 0, SI_ERR_ARGUMENT,
            "si_seal: expected the size that the header gives");
    si::seal_blob(static_cast<uint8_t*>(blob));
  });
}

si_status si_inspect(const void* blob, size_t bytes, si_weight_info* out) {
  return guarded([&] {
    require(out != nullptr, SI_ERR_ARGUMENT, "si_inspect: null result");
    *out = si::describe(si::open_weights(blob, bytes));
  });
}

si_status si_unpack(const void* blob, size_t bytes, float* weight) {
  return guarded([&] {
    require(weight != nullptr, SI_ERR_ARGUMENT, "si_unpack: null result");
    const si_weights weights = si::open_weights(blob, bytes);
    switch (weights.format) {
      case SI_FORMAT_PANEL:
        return si::panel_unpack(weights.panel, weight);
      case SI_FORMAT_CSR:
        return si::csr_unpack(weights.csr, weight);
      case SI_FORMAT_NM:
        return si::nm_unpack(weights.nm, weight);
      case SI_FORMAT_BSR:
        return si::bsr_unpack(weights.bsr, weight);
    }
  });
}

si_status si_weights_open(const void* blob, size_t bytes, si_weights** out) {
  return guarded([&] {
    require(out != nullptr, SI_ERR_ARGUMENT, "si_weights_open: null result");
    *out = new si_weights(si::open_weights(blob, bytes));
  });
}

void si_weights_close(si_weights* weights) { delete weights; }

si_status si_weights_info(const si_weights* weights, si_weight_info* out) {
  return guarded([&] {
    require(weights != nullptr && out != nullptr, SI_ERR_ARGUMENT, "si_weights_info: null pointer");
    *out = si::describe(*weights);
  });
}

si_status si_linear(const si_weights* weights, const si_linear_args* args) {
  return guarded([&] {
    require(args != nullptr, SI_ERR_ARGUMENT, "si_linear: null arguments");
    check_call(weights, args->x, args->y, args->n == 0, args->activation, args->threads);
    const int64_t M = weights->shape.M(), K = weights->shape.K();
    require(weights->shape.groups == 1, SI_ERR_ARGUMENT, "si_linear: expected an ungrouped weight");
    if (args->n < 0) fail(SI_ERR_ARGUMENT, "si_linear: expected n >= 0, got " + std::to_string(args->n));
    const bool tokens = args->layout == SI_TOKEN_MAJOR;
    require(tokens || args->layout == SI_CHANNEL_MAJOR, SI_ERR_ARGUMENT, "si_linear: unknown layout");
    const int64_t least_x = tokens ? K : args->n, least_y = tokens ? M : args->n;
    // The pitch of a single token (or channel) is never used.
    if ((tokens ? args->n : K) > 1 && args->ldx < least_x)
      fail(SI_ERR_ARGUMENT,
           "si_linear: expected ldx >= " + std::to_string(least_x) + ", got " + std::to_string(args->ldx));
    if ((tokens ? args->n : M) > 1 && args->ldy < least_y)
      fail(SI_ERR_ARGUMENT,
           "si_linear: expected ldy >= " + std::to_string(least_y) + ", got " + std::to_string(args->ldy));
    const si::Row& row = checked_row(*weights, SI_OP_LINEAR, args->row);
    if (const si::TileKernels* isa = si::tile_kernels(row.isa))
      si::linear(*isa, *weights, *args);
    else
      si::scalar_linear(*weights, *args);
  });
}

si_status si_conv_output_size(const si_weights* weights, const si_conv_args* args, int64_t* oh, int64_t* ow) {
  return guarded([&] {
    require(weights != nullptr && args != nullptr && oh != nullptr && ow != nullptr, SI_ERR_ARGUMENT,
            "si_conv_output_size: null pointer");
    const si::ConvGeometry geometry = si::conv_geometry(weights->shape, *args);
    *oh = geometry.oh;
    *ow = geometry.ow;
  });
}

si_status si_conv(const si_weights* weights, const si_conv_args* args) {
  return guarded([&] {
    require(args != nullptr, SI_ERR_ARGUMENT, "si_conv: null arguments");
    check_call(weights, args->x, args->y, args->batch == 0, args->activation, args->threads);
    if (args->batch < 0) fail(SI_ERR_ARGUMENT, "si_conv: expected batch >= 0, got " + std::to_string(args->batch));
    si::conv_geometry(weights->shape, *args);
    if (weights->shape.ndim == 3 && args->h != 1)
      fail(SI_ERR_ARGUMENT, "si_conv: expected h = 1 for a 3-dimensional weight, got " + std::to_string(args->h));
    const si::Row& row = checked_row(*weights, SI_OP_CONV, args->row);
    if (const si::TileKernels* isa = si::tile_kernels(row.isa))
      si::conv(*isa, *weights, *args);
    else
      si::scalar_conv(*weights, *args);
  });
}

si_status si_recurrent(const si_weights* weights, const si_recurrent_args* args) {
  return guarded([&] {
    require(args != nullptr, SI_ERR_ARGUMENT, "si_recurrent: null arguments");
    const bool empty = args->steps == 0 || args->batch == 0;
    check_call(weights, args->gates, args->y, empty, SI_ACT_NONE, args->threads);
    if (args->cell < SI_CELL_LSTM || args->cell > SI_CELL_RNN_RELU)
      fail(SI_ERR_ARGUMENT, "si_recurrent: unknown cell " + std::to_string(args->cell));
    const int64_t M = weights->shape.M(), H = weights->shape.K();
    if (weights->shape.ndim != 2 || M != si::cell_gates(args->cell) * H)
      fail(SI_ERR_ARGUMENT, "si_recurrent: expected a weight of " + std::to_string(si::cell_gates(args->cell)) +
                                " x H rows and H columns, got " + std::to_string(M) + " and " + std::to_string(H));
    if (args->steps < 0 || args->batch < 0)
      fail(SI_ERR_ARGUMENT, "si_recurrent: expected steps and batch >= 0, got " + std::to_string(args->steps) +
                                " and " + std::to_string(args->batch));
    require(empty || args->h != nullptr, SI_ERR_ARGUMENT, "si_recurrent: expected h, got a null pointer");
    require(empty || (args->c != nullptr) == (args->cell == SI_CELL_LSTM), SI_ERR_ARGUMENT,
            "si_recurrent: expected c for an LSTM, and for no other cell");
    require(empty || (args->ldg >= M && args->ldy >= H), SI_ERR_ARGUMENT,
            "si_recurrent: expected ldg and ldy of at least the elements of a row");
    if (args->batch_sizes != nullptr) {
      int64_t most = args->batch;
      for (int64_t t = 0; t < args->steps; ++t) {
        if (args->batch_sizes[t] < 1 || args->batch_sizes[t] > most)
          fail(SI_ERR_ARGUMENT, "si_recurrent: expected batch_sizes from 1 to " + std::to_string(most) + " at step " +
                                    std::to_string(t) + ", got " + std::to_string(args->batch_sizes[t]));
        most = args->batch_sizes[t];
      }
    } else {
      require(empty || (args->step_rows >= 0 && args->batch_rows >= 0), SI_ERR_ARGUMENT,
              "si_recurrent: expected step_rows and batch_rows >= 0");
    }
    const si::Row& row = checked_row(*weights, SI_OP_LINEAR, args->row);
    if (!empty) si::recurrent(si::tile_kernels(row.isa), *weights, *args);
  });
}
