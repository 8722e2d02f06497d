#include "formats/bsr/bsr.h"

#include <cstring>

#include "formats/values.h"

namespace si {

namespace {

enum BsrParam { kParamBlock };

constexpr uint64_t kMostBlocks = 0x7fffffff;

struct Layout {
  SectionPlan plan;
  uint64_t row, column, value;
};

Layout layout_of(const BsrGrid& grid, uint64_t blocks, si_value_type type) {
  Layout layout{};
  layout.row = layout.plan.add(static_cast<uint64_t>(grid.row_blocks) + 1, sizeof(uint32_t));
  layout.column = layout.plan.add(blocks, sizeof(uint32_t));
  layout.value = layout.plan.add(blocks * static_cast<uint64_t>(grid.block * grid.block),
                                 static_cast<size_t>(element_bytes(type)));
  return layout;
}

bool is_block(int64_t edge) { return edge == 16 || edge == 32 || edge == 64 || edge == 128; }

BsrGrid grid_of(const WeightShape& shape, int64_t block) {
  BsrGrid grid{};
  grid.block = block;
  grid.channels = shape.dims[1];
  grid.taps = shape.K() / grid.channels;
  grid.channel_blocks = (grid.channels + block - 1) / block;
  grid.group_rows = shape.M() / shape.groups;
  grid.group_row_blocks = (grid.group_rows + block - 1) / block;
  grid.row_blocks = shape.groups * grid.group_row_blocks;
  return grid;
}

// Non-zeros of the block at (row_block, column_block) in the value type.
uint64_t count_block(const float* weight, int64_t K, const BsrGrid& grid, int64_t row_block, int64_t column_block,
                     si_value_type type) {
  uint64_t nnz = 0;
  for (int64_t r = 0; r < grid.rows_in(row_block); ++r) {
    const float* first = weight + (grid.first_row(row_block) + r) * K + grid.first_k(column_block);
    for (int64_t c = 0; c < grid.channels_in(column_block); ++c)
      nnz += is_nonzero(encode_value(first[c * grid.taps], type), type);
  }
  return nnz;
}

}  // namespace

si_status bsr_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  const int32_t block = options.block;
  const si_value_type value_type = options.value_type;
  SI_REQUIRE(is_block(block), SI_ERR_ARGUMENT, "expected blocks of 16, 32, 64 or 128 for the bsr format, got ", block,
             "; try block = 64");
  SI_TRY(check_range(weight, shape, value_type));
  const BsrGrid grid = grid_of(shape, block);
  const int64_t K = shape.K();
  uint64_t nnz = 0, blocks = 0;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block)
    for (int64_t column = 0; column < grid.column_blocks(); ++column) {
      const uint64_t count = count_block(weight, K, grid, row_block, column, value_type);
      nnz += count;
      blocks += count != 0;
    }
  if (blocks > kMostBlocks)
    return fail(SI_ERR_ARGUMENT, "expected fewer than 2^31 blocks for the bsr format, got ", blocks,
                "; try larger blocks");

  const Layout layout = layout_of(grid, blocks, value_type);
  BlobHeader header = make_header(SI_FORMAT_BSR, shape);
  header.value_type = static_cast<uint32_t>(value_type);
  header.nnz = nnz;
  header.params[kParamBlock] = static_cast<uint32_t>(block);
  header.counts[0] = blocks;
  SI_TRY(new_blob(header, layout.plan, out));
  auto* row = out->at<uint32_t>(layout.row);
  auto* column_of = out->at<uint32_t>(layout.column);
  void* values = out->at<void>(layout.value);

  uint64_t stored = 0, kept = 0;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block) {
    row[row_block] = static_cast<uint32_t>(stored);
    for (int64_t column = 0; column < grid.column_blocks(); ++column) {
      if (count_block(weight, K, grid, row_block, column, value_type) == 0) continue;
      SI_TRY(check_unchanged(stored < blocks));
      column_of[stored] = static_cast<uint32_t>(column);
      for (int64_t r = 0; r < grid.rows_in(row_block); ++r) {
        const float* first = weight + (grid.first_row(row_block) + r) * K + grid.first_k(column);
        const int64_t at = (static_cast<int64_t>(stored) * block + r) * block;
        for (int64_t c = 0; c < grid.channels_in(column); ++c) {
          const uint32_t bits = encode_value(first[c * grid.taps], value_type);
          const bool nonzero = is_nonzero(bits, value_type);
          store_bits(values, at + c, value_type, nonzero ? bits : 0);
          kept += nonzero;
        }
      }
      ++stored;
    }
  }
  SI_TRY(check_unchanged(stored == blocks && kept == nnz));
  row[grid.row_blocks] = static_cast<uint32_t>(stored);
  seal_blob(out->data.get());
  return SI_OK;
}

si_status bsr_validate(const BlobHeader& header, const void* blob, size_t bytes, BsrView* out) {
  const WeightShape shape = shape_of(header);
  if (header.value_type > SI_BF16) return corrupt("bsr: unknown value type ", header.value_type);
  const int64_t edge = header.params[kParamBlock];
  if (!is_block(edge)) return corrupt("bsr: unknown block size ", edge);
  for (int i = kParamBlock + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("bsr: a reserved parameter is not zero");
  const BsrGrid grid = grid_of(shape, edge);
  const uint64_t blocks = header.counts[0];
  if (blocks > kMostBlocks || header.counts[1] != 0) return corrupt("bsr: counts out of range");
  const auto type = static_cast<si_value_type>(header.value_type);
  const auto area = static_cast<uint64_t>(edge * edge);
  if (blocks * area > bytes) return corrupt("bsr: its size does not match its counts");
  const Layout layout = layout_of(grid, blocks, type);
  if (layout.plan.total() != bytes) return corrupt("bsr: its size does not match its counts");
  SI_TRY(layout.plan.check_slack(blob));

  const auto* base = static_cast<const uint8_t*>(blob);
  BsrView view{};
  view.shape = shape;
  view.grid = grid;
  view.value_type = type;
  view.row = reinterpret_cast<const uint32_t*>(base + layout.row);
  view.column = reinterpret_cast<const uint32_t*>(base + layout.column);
  view.values = base + layout.value;
  view.blocks = static_cast<int64_t>(blocks);
  if (view.row[0] != 0 || view.row[grid.row_blocks] != blocks)
    return corrupt("bsr: the row starts do not run from 0 to the count");
  uint64_t nnz = 0;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block) {
    const auto refuse = [&](const char* what) { return corrupt("bsr: block row ", row_block, ": ", what); };
    const uint32_t first = view.row[row_block], last = view.row[row_block + 1];
    if (last < first || last > blocks) return refuse("row starts decrease");
    for (uint32_t i = first; i < last; ++i) {
      const int64_t column = view.column[i];
      if (column >= grid.column_blocks()) return refuse("a block column is out of range");
      if (i > first && view.column[i] <= view.column[i - 1]) return refuse("block columns do not increase");
      uint64_t kept = 0;
      for (int64_t r = 0; r < edge; ++r)
        for (int64_t c = 0; c < edge; ++c) {
          const uint32_t bits = load_bits(view.values, (i * edge + r) * edge + c, type);
          if (bits == 0) continue;
          if (!is_nonzero(bits, type)) return refuse("a value is -0");
          if (r >= grid.rows_in(row_block) || c >= grid.channels_in(column)) return refuse("padding is not zero");
          ++kept;
        }
      if (kept == 0) return refuse("a stored block is zero");
      nnz += kept;
    }
  }
  if (nnz != header.nnz) return corrupt("bsr: the number of non-zero values does not match");
  *out = view;
  return SI_OK;
}

void bsr_unpack(const BsrView& view, float* weight) {
  const int64_t K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(view.shape.M() * K) * sizeof(float));
  bsr_visit_all(view, [&](int64_t m, int64_t k, float value) { weight[m * K + k] = value; });
}

void bsr_describe(const BsrView& view, const void* blob, si_weight_info* info) {
  info->params[1] = static_cast<int32_t>(view.blocks);
  section_offsets(blob, info->sections, view.row, view.column, view.values);
}

}  // namespace si
