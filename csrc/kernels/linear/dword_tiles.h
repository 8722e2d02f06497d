// How a linear call of quads or pairs is cut: its columns in tiles, whose x is packed as elements of one type, and
// those among threads.
//
// A Call has source, args and threads, and
//   most_width(), packed_rows()      of its tiles
//   pack(tile, k0, k1, to)           columns [k0, k1) of a tile's x; k0 is a multiple of 16
//   run_tile(first, last, tile, x)   units [first, last) by the columns of a tile, whose x is packed
#pragma once

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "kernels/source.h"

namespace si {

// Columns of a call that are computed together.
struct DwordTile {
  int64_t n0, width;
};

template <class Element, class Call>
class DwordTiles {
 public:
  explicit DwordTiles(const Call& call) : call_(call) {}

  si_status run() const {
    const int64_t full = call_.args.n / call_.most_width(), threads = call_.threads;
    if (threads == 1 || (full == count() && full % threads == 0) || full >= 8 * threads) return apart();
    constexpr int64_t kMost = kScratchFloats * static_cast<int64_t>(sizeof(float) / sizeof(Element));
    const int64_t most = std::max<int64_t>(1, kMost / room());
    for (int64_t first = 0; first < count(); first += most) SI_TRY(together(first, std::min(first + most, count())));
    return SI_OK;
  }

 private:
  int64_t room() const { return call_.packed_rows() * call_.most_width(); }
  int64_t count() const { return (call_.args.n + call_.most_width() - 1) / call_.most_width(); }
  DwordTile tile(int64_t index) const {
    const int64_t n0 = index * call_.most_width();
    return {n0, kDwordWidths[dword_width_index(std::min(call_.args.n - n0, call_.most_width()))]};
  }

  // Tiles by as many threads; each packs its own x.
  si_status apart() const {
    return parallel_for(call_.threads, count(), [&](int64_t index) -> si_status {
      const DwordTile each = tile(index);
      Element* x = nullptr;
      SI_TRY(thread_scratch(Scratch::kInput, call_.packed_rows() * each.width, &x));
      call_.pack(each, 0, call_.source.shape().K(), x);
      return call_.run_tile(0, call_.source.units(), each, x);
    });
  }

  // Few tiles, or none that divides among the threads: these share the packed x and divide the rows of each tile.
  si_status together(int64_t first_tile, int64_t last_tile) const {
    const TileSource& source = call_.source;
    const int64_t threads = call_.threads, items = (last_tile - first_tile) * threads, K = source.shape().K();
    Element* x = nullptr;
    SI_TRY(thread_scratch(Scratch::kInput, room() * (last_tile - first_tile), &x));
    constexpr int64_t kSlice = 16;
    const int64_t slices = (K + kSlice - 1) / kSlice;
    const auto at = [&](int64_t slice) { return std::min(K, slice * kSlice); };
    SI_TRY(parallel_for(call_.threads, items, [&](int64_t item) {
      const int64_t index = item / threads, part = item % threads;
      call_.pack(tile(first_tile + index), at(slices * part / threads), at(slices * (part + 1) / threads),
                 x + room() * index);
    }));
    return parallel_for(call_.threads, items, [&](int64_t item) -> si_status {
      const int64_t index = item / threads, part = item % threads;
      const int64_t first = source.split(0, source.units(), part, threads);
      const int64_t last = source.split(0, source.units(), part + 1, threads);
      return first < last ? call_.run_tile(first, last, tile(first_tile + index), x + room() * index) : SI_OK;
    });
  }

  const Call& call_;
};

}  // namespace si
