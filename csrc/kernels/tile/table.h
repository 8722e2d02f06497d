// The table of an instruction set's kernels, made from its vector type.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/tile/activation.h"
#include "kernels/tile/attention_tile.h"
#include "kernels/tile/binary.h"
#include "kernels/tile/byte_depthwise.h"
#include "kernels/tile/byte_elementwise.h"
#include "kernels/tile/cell.h"
#include "kernels/tile/depthwise_tile.h"
#include "kernels/tile/elementwise.h"
#include "kernels/tile/move.h"
#include "kernels/tile/narrow_tile.h"
#include "kernels/tile/norm_tile.h"
#include "kernels/tile/panel_tile.h"
#include "kernels/tile/pool_tile.h"
#include "kernels/tile/rows_tile.h"
#include "kernels/tile/unary.h"

namespace si {
namespace {

// The narrow tiles of an instruction set, in the order of kNarrowWidths: vector types, the vectors of a tile, and the
// sets of accumulators that columns take in turn. V::Narrow names them.
template <class V, int kVectors, int kSets>
struct NarrowTile {
  static constexpr TileFn kernel = &panel_narrow<V, kVectors, kSets>;
};
struct NoTile {
  static constexpr TileFn kernel = nullptr;
};
template <class... Tiles>
struct NarrowTiles {
  static constexpr FormatKernels panel(TileFn tile, VectorFn vector) {
    static_assert(sizeof...(Tiles) == kNarrowCount, "a narrow tile, or NoTile, for each width");
    if constexpr (kSmall)
      return {tile, vector, {}};
    else
      return {tile, vector, {Tiles::kernel...}};
  }
};

// What networks of bytes need besides the tiles: by the vectors of those.
template <class V>
constexpr ByteNetworkKernels byte_network = {
    SI_CHOSEN(dequantize, dequantize_all<V>, nullptr),      SI_CHOSEN(add, add_all<V>, nullptr),
    SI_CHOSEN(max_pool, max_pool_bytes<V>, nullptr),        SI_CHOSEN(global_average_pool, sum_bytes<V>, nullptr),
    SI_CHOSEN(depthwise_conv, depthwise_bytes<V>, nullptr), SI_CHOSEN(lookup, lookup_all<V>, nullptr)};

// Those of the kernels whose operators are in.
constexpr ByteKernels chosen(ByteKernels kernels) {
  if constexpr (kSmall) {
    for (int i = 1; i < kDwordWidthCount; ++i) kernels.tile[i] = nullptr;
    kernels.most_width = kDwordWidths[0];
  }
  if (!SI_HAS(conv)) kernels.copy = nullptr;
  if (!SI_HAS(conv)) kernels.copy_rows = nullptr;
  if (SI_HAS(linear) || SI_HAS(conv)) return kernels;
  ByteKernels none{};
  none.quantize = kernels.quantize;
  return none;
}

constexpr PairKernels chosen(PairKernels kernels) {
  if constexpr (kSmall) {
    for (int i = 1; i < kDwordWidthCount; ++i) kernels.tile[i] = nullptr;
    kernels.most_width = kDwordWidths[0];
  }
  if (!SI_HAS(conv)) kernels.copy = nullptr;
  return SI_HAS(linear) || SI_HAS(conv) ? kernels : PairKernels{};
}

// Of a variant whose rows compute int8 weights alone, or pairs of bfloat16 alone.
template <class V>
constexpr TileKernels narrow_table_of(Isa isa, const ByteKernels* bytes, const PairKernels* pairs,
                                      const ByteNetworkKernels* byte_network = nullptr) {
  TileKernels kernels{};
  kernels.width = V::kWidth;
  kernels.max_vectors = kSmall ? kSmallVectors<V> : V::kMaxVectors;
  kernels.tuning = tuning_of(isa);
  if constexpr (SI_HAS(linear)) {
    kernels.transpose_in = transpose_in<V>;
    kernels.transpose_out = transpose_out<V>;
  }
  kernels.activate = activate<V>;
  if constexpr (SI_HAS(int8)) kernels.bytes = bytes;
  if constexpr (SI_HAS(bfloat16)) kernels.pairs = pairs;
  if constexpr (SI_HAS(int8)) kernels.byte_network = byte_network;
  return kernels;
}

template <class V>
constexpr TileKernels table_of(Isa isa, const ByteKernels* bytes, const PairKernels* pairs = nullptr,
                               const ByteNetworkKernels* byte_network = nullptr) {
  TileKernels kernels{};
  kernels.width = V::kWidth;
  kernels.max_vectors = kSmall ? kSmallVectors<V> : V::kMaxVectors;
  kernels.tuning = tuning_of(isa);
  kernels.floats = true;
  if constexpr (SI_HAS(linear) || SI_HAS(conv)) {
    if constexpr (SI_HAS(panel) && (SI_HAS(float32) || SI_HAS(bfloat16)))
      kernels.formats[SI_FORMAT_PANEL] = V::Narrow::panel(panel_tile<V>, panel_vector<V>);
    if constexpr (SI_HAS(csr)) kernels.formats[SI_FORMAT_CSR] = {csr_tile<V>, csr_vector<V>, {}};
    if constexpr (SI_HAS(nm)) kernels.formats[SI_FORMAT_NM] = {nm_tile<V>, nm_vector<V>, {}};
  }
  if constexpr (SI_HAS(int8)) kernels.bytes = bytes;
  if constexpr (SI_HAS(bfloat16)) kernels.pairs = pairs;
  if constexpr (SI_HAS(int8)) kernels.byte_network = byte_network;
  if constexpr (SI_HAS(linear)) {
    kernels.transpose_in = transpose_in<V>;
    kernels.transpose_out = transpose_out<V>;
  }
  kernels.activate = activate<V>;
  if constexpr (SI_HAS(conv)) {
    kernels.store_runs = store_runs<V>;
    kernels.copy_rows = copy_rows<V>;
  }
  if constexpr (SI_HAS(recurrent)) kernels.cell = cell<V>;
  if constexpr (SI_HAS(depthwise_conv)) kernels.depthwise = depthwise<V>;
  if constexpr (SI_HAS(max_pool) || SI_HAS(average_pool)) kernels.pool = pool<V>;
  if constexpr (SI_HAS(add) || SI_HAS(conv)) kernels.add = add<V>;
  if constexpr (SI_HAS(activation)) kernels.clamp = clamp_all<V>;
  if constexpr (SI_HAS(global_average_pool) || SI_HAS(reduce)) kernels.sum = sum<V>;
  if constexpr (SI_HAS(softmax)) kernels.softmax = softmax<V>;
  if constexpr (SI_HAS(layer_norm)) kernels.norm = norm<V>;
  if constexpr (SI_HAS(attention)) kernels.attend = attend<V>;
  if constexpr (SI_HAS(binary) || SI_HAS(reduce)) kernels.binary = binary<V>;
  if constexpr (SI_HAS(unary)) kernels.unary = unary<V>;
  return kernels;
}

}  // namespace
}  // namespace si
