#include "formats/bsr/bsr.h"

#include <cstring>

#include "core/error.h"
#include "formats/values.h"

namespace si {

namespace {

enum BsrParam { kParamBlock };

constexpr uint64_t kMostBlocks = 0x7fffffff;

struct Layout {
  SectionPlan plan;
  size_t row, column, value;
};

Layout layout_of(const BsrGrid& grid, uint64_t blocks, si_value_type type) {
  Layout layout{};
  layout.row = layout.plan.add(static_cast<uint64_t>(grid.row_blocks) + 1, sizeof(uint32_t));
  layout.column = layout.plan.add(blocks, sizeof(uint32_t));
  layout.value = layout.plan.add(blocks * static_cast<uint64_t>(grid.block * grid.block), value_bytes(type));
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

uint8_t* bsr_pack(const float* weight, const WeightShape& shape, int32_t block, si_value_type value_type,
                  size_t* bytes) {
  if (!is_block(block))
    fail(SI_ERR_ARGUMENT,
         "expected blocks of 16, 32, 64 or 128 for the bsr format, got " + std::to_string(block) + "; try block = 64");
  if (value_type != SI_F32 && value_type != SI_F16 && value_type != SI_BF16)
    fail(SI_ERR_ARGUMENT, "expected value type float32, float16 or bfloat16 for the bsr format, got number " +
                              std::to_string(static_cast<int>(value_type)) + "; try float32");
  check_range(weight, shape, value_type);
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
    fail(SI_ERR_ARGUMENT,
         "expected fewer than 2^31 blocks for the bsr format, got " + std::to_string(blocks) + "; try larger blocks");

  const Layout layout = layout_of(grid, blocks, value_type);
  BlobHeader header = make_header(SI_FORMAT_BSR, shape);
  header.value_type = static_cast<uint32_t>(value_type);
  header.nnz = nnz;
  header.params[kParamBlock] = static_cast<uint32_t>(block);
  header.counts[0] = blocks;
  BlobPtr blob = new_blob(header, layout.plan.total());
  auto* row = reinterpret_cast<uint32_t*>(blob.get() + layout.row);
  auto* column_of = reinterpret_cast<uint32_t*>(blob.get() + layout.column);
  void* values = blob.get() + layout.value;

  uint64_t stored = 0, kept = 0;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block) {
    row[row_block] = static_cast<uint32_t>(stored);
    for (int64_t column = 0; column < grid.column_blocks(); ++column) {
      if (count_block(weight, K, grid, row_block, column, value_type) == 0) continue;
      check_unchanged(stored < blocks);
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
  check_unchanged(stored == blocks && kept == nnz);
  row[grid.row_blocks] = static_cast<uint32_t>(stored);
  seal_blob(blob.get());
  *bytes = layout.plan.total();
  return blob.release();
}

BsrView bsr_validate(const BlobHeader& header, const void* blob, size_t bytes) {
  const WeightShape shape = shape_of(header);
  if (header.value_type > SI_BF16) corrupt("bsr: unknown value type " + std::to_string(header.value_type));
  const int64_t edge = header.params[kParamBlock];
  if (!is_block(edge)) corrupt("bsr: unknown block size " + std::to_string(edge));
  for (int i = kParamBlock + 1; i < 8; ++i)
    if (header.params[i] != 0) corrupt("bsr: a reserved parameter is not zero");
  const BsrGrid grid = grid_of(shape, edge);
  const uint64_t blocks = header.counts[0];
  if (blocks > kMostBlocks || header.counts[1] != 0) corrupt("bsr: counts out of range");
  const auto type = static_cast<si_value_type>(header.value_type);
  const auto area = static_cast<uint64_t>(edge * edge);
  if (blocks * area > bytes) corrupt("bsr: its size does not match its counts");
  const Layout layout = layout_of(grid, blocks, type);
  if (layout.plan.total() != bytes) corrupt("bsr: its size does not match its counts");
  layout.plan.check_slack(blob);

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
    corrupt("bsr: the row starts do not run from 0 to the count");
  uint64_t nnz = 0;
  for (int64_t row_block = 0; row_block < grid.row_blocks; ++row_block) {
    const auto where = [&] { return "bsr: block row " + std::to_string(row_block) + ": "; };
    const uint32_t first = view.row[row_block], last = view.row[row_block + 1];
    if (last < first || last > blocks) corrupt(where() + "row starts decrease");
    for (uint32_t i = first; i < last; ++i) {
      const int64_t column = view.column[i];
      if (column >= grid.column_blocks()) corrupt(where() + "a block column is out of range");
      if (i > first && view.column[i] <= view.column[i - 1]) corrupt(where() + "block columns do not increase");
      uint64_t kept = 0;
      for (int64_t r = 0; r < edge; ++r)
        for (int64_t c = 0; c < edge; ++c) {
          const uint32_t bits = load_bits(view.values, (i * edge + r) * edge + c, type);
          if (bits == 0) continue;
          if (!is_nonzero(bits, type)) corrupt(where() + "a value is -0");
          if (r >= grid.rows_in(row_block) || c >= grid.channels_in(column)) corrupt(where() + "padding is not zero");
          ++kept;
        }
      if (kept == 0) corrupt(where() + "a stored block is zero");
      nnz += kept;
    }
  }
  if (nnz != header.nnz) corrupt("bsr: the number of non-zero values does not match");
  return view;
}

void bsr_unpack(const BsrView& view, float* weight) {
  const int64_t K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(view.shape.M() * K) * sizeof(float));
  bsr_visit(view, [&](int64_t m, int64_t k, float value) { weight[m * K + k] = value; });
}

void bsr_sections(const BsrView& view, const void* blob, uint64_t (&offsets)[4]) {
  const void* starts[3] = {view.row, view.column, view.values};
  for (int i = 0; i < 3; ++i)
    offsets[i] = static_cast<uint64_t>(static_cast<const uint8_t*>(starts[i]) - static_cast<const uint8_t*>(blob));
  offsets[3] = 0;
}

}  // namespace si
