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
    return {tile, vector, {Tiles::kernel...}};
  }
};

// What networks of bytes need besides the tiles: by the vectors of those.
template <class V>
constexpr ByteNetworkKernels byte_network = {dequantize_all<V>, add_all<V>,         max_pool_bytes<V>,
                                             sum_bytes<V>,      depthwise_bytes<V>, lookup_all<V>};

// Of a variant whose rows compute int8 weights alone, or pairs of bfloat16 alone.
template <class V>
constexpr TileKernels narrow_table_of(Isa isa, const ByteKernels* bytes, const PairKernels* pairs,
                                      const ByteNetworkKernels* byte_network = nullptr) {
  TileKernels kernels{};
  kernels.width = V::kWidth;
  kernels.max_vectors = V::kMaxVectors;
  kernels.tuning = tuning_of(isa);
  kernels.transpose_in = transpose_in<V>;
  kernels.transpose_out = transpose_out<V>;
  kernels.activate = activate<V>;
  kernels.bytes = bytes;
  kernels.pairs = pairs;
  kernels.byte_network = byte_network;
  return kernels;
}

template <class V>
constexpr TileKernels table_of(Isa isa, const ByteKernels* bytes, const PairKernels* pairs = nullptr,
                               const ByteNetworkKernels* byte_network = nullptr) {
  TileKernels kernels{};
  kernels.width = V::kWidth;
  kernels.max_vectors = V::kMaxVectors;
  kernels.tuning = tuning_of(isa);
  kernels.formats[SI_FORMAT_PANEL] = V::Narrow::panel(panel_tile<V>, panel_vector<V>);
  kernels.formats[SI_FORMAT_CSR] = {csr_tile<V>, csr_vector<V>, {}};
  kernels.formats[SI_FORMAT_NM] = {nm_tile<V>, nm_vector<V>, {}};
  kernels.bytes = bytes;
  kernels.pairs = pairs;
  kernels.byte_network = byte_network;
  kernels.transpose_in = transpose_in<V>;
  kernels.transpose_out = transpose_out<V>;
  kernels.store_runs = store_runs<V>;
  kernels.copy_rows = copy_rows<V>;
  kernels.activate = activate<V>;
  kernels.cell = cell<V>;
  kernels.depthwise = depthwise<V>;
  kernels.pool = pool<V>;
  kernels.add = add<V>;
  kernels.clamp = clamp_all<V>;
  kernels.sum = sum<V>;
  kernels.softmax = softmax<V>;
  kernels.norm = norm<V>;
  kernels.attend = attend<V>;
  kernels.binary = binary<V>;
  kernels.unary = unary<V>;
  return kernels;
}

}  // namespace
}  // namespace si
