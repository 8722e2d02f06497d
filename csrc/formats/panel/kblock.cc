#include "formats/panel/kblock.h"

#include "formats/panel/panel.h"

namespace si {

namespace {

// Of a convolution: the channels whose taps are a block.
int64_t block_channels(const KBlockTuning& tuning, int64_t channels, double density) {
  if (channels >= tuning.many_channels) return tuning.of_many;
  return density >= tuning.dense ? tuning.of_few_dense : tuning.of_few;
}

// Where each column has a line of x to itself: a linear layer called with many tokens, a kernel of one tap.
int64_t block_columns(const KBlockTuning& tuning, double density) {
  for (int i = 0; i < 3; ++i)
    if (density >= tuning.column_density[i]) return tuning.columns[i];
  return 0;
}

}  // namespace

int32_t choose_kblock(const KBlockTuning& tuning, const WeightShape& shape, uint64_t values, bool many_tokens) {
  const int64_t channels = shape.dims[1], taps = shape.K() / channels;
  const double density = static_cast<double>(values) / static_cast<double>(shape.M() * shape.K());
  // One token, or few, would read patterns in short pieces, and gain nothing.
  if (shape.ndim == 2 && !many_tokens) return 0;
  const int64_t block = taps > 1 ? taps * block_channels(tuning, channels, density) : block_columns(tuning, density);
  return block > 0 && shape.K() > block && block <= kPanelMaxKBlock ? static_cast<int32_t>(block) : 0;
}

}  // namespace si
