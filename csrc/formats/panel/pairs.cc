#include "formats/panel/pairs.h"

#include <algorithm>

#include "formats/panel/dwords.h"
#include "formats/values.h"

namespace si {

namespace {

struct PairsLayout {
  SectionPlan plan;
  uint64_t entry, order, index, value;
};

PairsLayout layout_of(const WeightShape& shape, bool ordered, uint64_t indices, uint64_t pairs) {
  PairsLayout layout{};
  layout.entry = layout.plan.add(static_cast<uint64_t>(panels_per_group(shape) * shape.groups), sizeof(PanelEntry));
  if (ordered) layout.order = layout.plan.add(static_cast<uint64_t>(shape.M()), sizeof(uint32_t));
  layout.index = layout.plan.add(indices, sizeof(uint16_t));
  layout.value = layout.plan.add(pairs, sizeof(Pair));
  return layout;
}

}  // namespace

si_status pairs_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  SI_REQUIRE(options.kblock <= 0 && options.kblock >= SI_KBLOCK_MANY_TOKENS, SI_ERR_ARGUMENT,
             "expected no K blocks with pairs of bfloat16 values, got kblock ", options.kblock, "; try 0");
  SI_REQUIRE(options.scales == nullptr, SI_ERR_ARGUMENT,
             "expected scales for int8 values alone, got them with bfloat16; try value_type int8");
  SI_TRY(check_range(weight, shape, SI_BF16));
  const int64_t count = shape.M() * shape.K();
  Buffer<uint16_t> value;
  SI_TRY(value.allocate(count));
  uint64_t nnz = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = bfloat16_operand(weight[i]);
    if (!is_stored(bits)) continue;
    value[i] = bits;
    ++nnz;
  }
  const Tuning tuning = tuning_of(options.target != nullptr ? *options.target : host_target());
  Buffer<uint32_t> order;
  bool ordered = false;
  PanelCounts columns{};
  SI_TRY(order_of(value.data(), shape, tuning.row_order, &order, &ordered, &columns));
  constexpr int32_t g = 2;
  DwordCounts counts{};
  SI_TRY(count_dwords<Pair>(value.data(), shape, g, order, &counts));

  const PairsLayout layout = layout_of(shape, ordered, counts.indices, counts.dwords);
  BlobHeader header = make_header(SI_FORMAT_PANEL, shape);
  header.value_type = SI_BF16;
  header.params[kParamRows] = kPanelRows;
  header.params[kParamGroup] = g;
  header.params[kParamIndexBits] = 16;
  header.params[kParamOrder] = ordered ? 1 : 0;
  header.counts[0] = counts.indices;
  header.counts[1] = counts.dwords;
  header.nnz = nnz;
  SI_TRY(new_blob(header, layout.plan, out));
  if (ordered) std::copy(order.begin(), order.end(), out->at<uint32_t>(layout.order));
  SI_TRY(fill_dwords(value.data(), shape, g, order, out->at<PanelEntry>(layout.entry), out->at<uint16_t>(layout.index),
                     out->at<Pair>(layout.value)));
  seal_blob(out->data.get());
  return SI_OK;
}

si_status pairs_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  PanelView view{};
  SI_TRY(read_dwords_header(header, &view));
  const bool ordered = header.params[kParamOrder] == 1;
  const PairsLayout layout = layout_of(view.shape, ordered, view.columns, view.values);
  if (layout.plan.total() != bytes) return corrupt("panel: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));
  const auto* first = static_cast<const uint8_t*>(blob);
  view.entry = reinterpret_cast<const PanelEntry*>(first + layout.entry);
  view.order = ordered ? reinterpret_cast<const uint32_t*>(first + layout.order) : nullptr;
  view.index = reinterpret_cast<const uint16_t*>(first + layout.index);
  view.value = first + layout.value;
  if (ordered) SI_TRY(check_order(view));
  SI_TRY(check_dwords<Pair>(view));
  uint64_t found = 0;
  for (int64_t panel = 0; panel < view.panels; ++panel)
    dwords_visit<Pair>(view, panel, [&](int64_t, int, uint16_t) { ++found; });
  if (found != header.nnz) return corrupt("panel: the number of non-zero values does not match");
  *out = view;
  return SI_OK;
}

}  // namespace si
