#include "formats/panel/quads.h"

#include <algorithm>
#include <cmath>

#include "formats/panel/dwords.h"

namespace si {

namespace {

// A weight as int8, row by row, with the scale of each output row.
struct Quantized {
  Buffer<float> scale;
  Buffer<int8_t> value;
};

si_status quantize(const float* weight, const WeightShape& shape, const float* given, Quantized* out) {
  const int64_t M = shape.M(), K = shape.K();
  SI_TRY(out->scale.allocate(M));
  SI_TRY(out->value.allocate(M * K));
  for (int64_t m = 0; m < M; ++m) {
    const float* from = weight + m * K;
    float most = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
      SI_REQUIRE(std::isfinite(from[k]), SI_ERR_ARGUMENT, "expected finite weights for int8 values, got ", from[k],
                 " in row ", m, ", column ", k, "; try float32");
      most = std::max(most, std::fabs(from[k]));
    }
    float scale = 1.0f;
    if (given != nullptr)
      scale = given[m];
    else if (most > 0.0f)
      scale = std::max(most / 127.0f, kLeastScale);
    SI_REQUIRE(sound_scale(scale), SI_ERR_ARGUMENT, "expected a scale from 2^-60 to 2^48 for each row, got ", scale,
               " for row ", m, given != nullptr ? "; try max|w| / 127 of the row" : "; try float32");
    out->scale[m] = scale;
    int8_t* to = out->value.data() + m * K;
    for (int64_t k = 0; k < K; ++k)
      to[k] = static_cast<int8_t>(std::clamp(std::nearbyint(from[k] / scale), -128.0f, 127.0f));
  }
  return SI_OK;
}

}  // namespace

si_status quads_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  const int64_t M = shape.M(), K = shape.K();
  SI_REQUIRE(options.kblock <= 0 && options.kblock >= SI_KBLOCK_MANY_TOKENS, SI_ERR_ARGUMENT,
             "expected no K blocks with int8 values, got kblock ", options.kblock, "; try 0");
  SI_REQUIRE(options.g == 0 || options.g == 1 || options.g == 4, SI_ERR_ARGUMENT, "expected g of 1, 4 or 0, got ",
             options.g, "; try 0, which chooses");
  Quantized quantized;
  SI_TRY(quantize(weight, shape, options.scales, &quantized));
  const int8_t* value = quantized.value.data();
  const Tuning tuning = tuning_of(options.target != nullptr ? *options.target : host_target());
  Buffer<uint32_t> order;
  bool ordered = false;
  PanelCounts columns{};
  SI_TRY(order_of(value, shape, tuning.row_order, &order, &ordered, &columns));

  int32_t g = options.g == 4 ? 4 : 1;
  DwordCounts counts{};
  SI_TRY(count_dwords<Quad>(value, shape, g, order, &counts));
  if (options.g == 0) {
    DwordCounts blocks{};
    SI_TRY(count_dwords<Quad>(value, shape, 4, order, &blocks));
    // Columns that lie together need no interleaving.
    if (blocks.dwords <= counts.dwords) g = 4, counts = blocks;
  }

  SI_TRY(new_dwords<Quad>(value, shape, SI_I8, g, order, ordered, counts, out));
  const DwordsLayout layout = dwords_layout<Quad>(shape, ordered, counts);
  auto* scale = out->at<float>(layout.scale);
  auto* row_sum = out->at<int32_t>(layout.row_sum);
  for (int64_t position = 0; position < M; ++position) {
    const int64_t row = order[position];
    scale[position] = quantized.scale[row];
    for (int64_t k = 0; k < K; ++k) row_sum[position] += value[row * K + k];
  }
  seal_blob(out->data.get());
  return SI_OK;
}

namespace {

// The scales are sound and the sums of the rows are those of their values.
si_status check_rows(const PanelView& view, uint64_t nnz) {
  uint64_t found = 0;
  for (int64_t panel = 0; panel < view.panels; ++panel) {
    int32_t sum[kPanelRows] = {};
    dwords_visit<Quad>(view, panel, [&](int64_t, int row, int8_t value) {
      sum[row] += value;
      ++found;
    });
    for (int row = 0; row < view.entry[panel].rows; ++row) {
      const int64_t position = view.row_of(panel) + row;
      if (view.row_sum[position] != sum[row]) return corrupt("panel: the sum of row ", position, " does not match");
      if (!sound_scale(view.scale[position])) return corrupt("panel: the scale of row ", position, " is out of range");
    }
  }
  if (found != nnz) return corrupt("panel: the number of non-zero values does not match");
  return SI_OK;
}

}  // namespace

si_status quads_validate(const BlobHeader& header, const void* blob, size_t bytes, PanelView* out) {
  const uint32_t g = header.params[kParamGroup];
  if (g != 1 && g != 4) return corrupt("panel: unknown g ", g);
  PanelView view{};
  SI_TRY(open_dwords<Quad>(header, blob, bytes, &view));
  SI_TRY(check_rows(view, header.nnz));
  *out = view;
  return SI_OK;
}

}  // namespace si
