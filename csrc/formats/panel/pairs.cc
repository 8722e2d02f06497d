#include "formats/panel/pairs.h"

#include <algorithm>

#include "formats/panel/dwords.h"
#include "formats/values.h"

namespace si {

si_status pairs_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  SI_REQUIRE(options.kblock <= 0 && options.kblock >= SI_KBLOCK_MANY_TOKENS, SI_ERR_ARGUMENT,
             "expected no K blocks with pairs of bfloat16 values, got kblock ", options.kblock, "; try 0");
  SI_REQUIRE(options.scales == nullptr, SI_ERR_ARGUMENT,
             "expected scales for int8 values alone, got them with bfloat16; try value_type int8");
  SI_TRY(check_range(weight, shape, SI_BF16));
  const int64_t count = shape.M() * shape.K();
  Buffer<uint16_t> value;
  SI_TRY(value.allocate(count));
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = bfloat16_operand(weight[i]);
    if (is_stored(bits)) value[i] = bits;
  }
  const Tuning tuning = tuning_of(options.target != nullptr ? *options.target : host_target());
  Buffer<uint32_t> order;
  bool ordered = false;
  PanelCounts columns{};
  SI_TRY(order_of(value.data(), shape, tuning.row_order, &order, &ordered, &columns));
  constexpr int32_t g = 2;
  DwordCounts counts{};
  SI_TRY(count_dwords<Pair>(value.data(), shape, g, order, &counts));
  SI_TRY(new_dwords<Pair>(value.data(), shape, SI_BF16, g, order, ordered, counts, out));
  seal_blob(out->data.get());
  return SI_OK;
}

si_status pairs_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  PanelView view{};
  SI_TRY(open_dwords<Pair>(header, blob, bytes, &view));
  const uint64_t found = count_of<uint16_t>(static_cast<const uint16_t*>(view.value), 2 * view.values,
                                            [](uint16_t v) { return is_stored(v); });
  if (found != header.nnz) return corrupt("panel: the number of non-zero values does not match");
  *out = view;
  return SI_OK;
}

}  // namespace si
