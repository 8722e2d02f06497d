#include "formats/nm/nm.h"

#include <algorithm>
#include <cstring>

#include "formats/values.h"

namespace si {

namespace {

enum NmParam { kParamN, kParamM };

struct Layout {
  SectionPlan plan;
  uint64_t value, position;
};

int64_t groups_in_row(const WeightShape& shape, int32_t m) { return (shape.K() + m - 1) / m; }

// 1 to m columns; only the last group of a row has fewer than m.
int32_t columns_in_group(const WeightShape& shape, int32_t m, int64_t group) {
  return static_cast<int32_t>(std::min<int64_t>(m, shape.K() - group * m));
}

Layout layout_of(const WeightShape& shape, int32_t n, int32_t m, si_value_type type) {
  const auto entries = static_cast<uint64_t>(n * shape.M() * groups_in_row(shape, m));
  Layout layout{};
  layout.value = layout.plan.add(entries, value_bytes(type));
  layout.position = layout.plan.add(entries, sizeof(uint8_t));
  return layout;
}

int count_ones(uint32_t word) {
  int ones = 0;
  for (; word != 0; word &= word - 1) ++ones;
  return ones;
}

// `kept` with the lowest positions outside it added, n in all: the one set of positions that a group may store.
uint32_t fill_positions(uint32_t kept, int32_t n) {
  for (int count = count_ones(kept); count < n; ++count) kept |= kept + 1;
  return kept;
}

// One group's columns in the value type; returns the set of the non-zero ones.
uint32_t encode_group(const float* weight, int32_t columns, si_value_type type, uint32_t* bits) {
  uint32_t kept = 0;
  for (int32_t c = 0; c < columns; ++c) {
    bits[c] = encode_value(weight[c], type);
    kept |= static_cast<uint32_t>(is_nonzero(bits[c], type)) << c;
  }
  return kept;
}

// Counts the non-zeros, or fails with a message that counts the groups with more than n.
si_status count_nonzeros(const float* weight, const WeightShape& shape, int32_t n, int32_t m, si_value_type type,
                         uint64_t* count) {
  const int64_t M = shape.M(), K = shape.K(), G = groups_in_row(shape, m);
  uint32_t bits[kNmMaxM];
  uint64_t nnz = 0, too_full = 0;
  Message first;
  for (int64_t row = 0; row < M; ++row)
    for (int64_t group = 0; group < G; ++group) {
      const int64_t k = group * m;
      const int32_t columns = columns_in_group(shape, m, group);
      const int kept = count_ones(encode_group(weight + row * K + k, columns, type, bits));
      nnz += static_cast<uint64_t>(kept);
      if (kept <= n || too_full++ != 0) continue;
      first.add("row ");
      first.add(row);
      first.add(", columns ");
      first.add(k);
      first.add("-");
      first.add(k + columns - 1);
      first.add(" with ");
      first.add(kept);
    }
  SI_REQUIRE(too_full == 0, SI_ERR_ARGUMENT, "expected at most ", n, " non-zero", n == 1 ? "" : "s", " in every ", m,
             " consecutive columns, got ", too_full, too_full == 1 ? " group" : " groups", " with more; the first is ",
             first.text(), "; try the panel format");
  *count = nnz;
  return SI_OK;
}

}  // namespace

si_status nm_pack(const float* weight, const WeightShape& shape, const si_pack_options& options, OwnedBlob* out) {
  const int32_t n = options.nm_n, m = options.nm_m;
  const si_value_type value_type = options.value_type;
  SI_REQUIRE(m >= 2 && m <= kNmMaxM && n >= 1 && n <= m, SI_ERR_ARGUMENT,
             "expected 1 <= n <= m and 2 <= m <= 32 for the nm format, got n = ", n, ", m = ", m, "; try n = 2, m = 4");
  SI_TRY(check_range(weight, shape, value_type));
  uint64_t nnz = 0;
  SI_TRY(count_nonzeros(weight, shape, n, m, value_type, &nnz));

  const Layout layout = layout_of(shape, n, m, value_type);
  BlobHeader header = make_header(SI_FORMAT_NM, shape);
  header.value_type = static_cast<uint32_t>(value_type);
  header.nnz = nnz;
  header.params[kParamN] = static_cast<uint32_t>(n);
  header.params[kParamM] = static_cast<uint32_t>(m);
  SI_TRY(new_blob(header, layout.plan, out));
  void* values = out->at<void>(layout.value);
  auto* positions = out->at<uint8_t>(layout.position);

  const int64_t M = shape.M(), K = shape.K(), G = groups_in_row(shape, m);
  uint32_t bits[kNmMaxM];
  for (int64_t row = 0; row < M; ++row)
    for (int64_t group = 0; group < G; ++group) {
      const int32_t columns = columns_in_group(shape, m, group);
      const uint32_t kept = encode_group(weight + row * K + group * m, columns, value_type, bits);
      SI_TRY(check_unchanged(count_ones(kept) <= n));
      const uint32_t stored = fill_positions(kept, n);
      int64_t at = row * G + group;
      for (int32_t position = 0; position < m; ++position) {
        if ((stored >> position & 1) == 0) continue;
        positions[at] = static_cast<uint8_t>(position);
        store_bits(values, at, value_type, (kept >> position & 1) != 0 ? bits[position] : 0);
        at += M * G;
      }
    }
  seal_blob(out->data.get());
  return SI_OK;
}

si_status nm_validate(const BlobHeader& header, const void* blob, size_t bytes, NmView* out) {
  const WeightShape shape = shape_of(header);
  if (header.value_type > SI_BF16) return corrupt("nm: unknown value type ", header.value_type);
  const uint32_t n_field = header.params[kParamN], m_field = header.params[kParamM];
  if (m_field < 2 || m_field > kNmMaxM || n_field < 1 || n_field > m_field)
    return corrupt("nm: bad pattern ", n_field, ":", m_field);
  for (int i = kParamM + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("nm: a reserved parameter is not zero");
  if (header.counts[0] != 0 || header.counts[1] != 0) return corrupt("nm: a reserved count is not zero");
  const auto n = static_cast<int32_t>(n_field), m = static_cast<int32_t>(m_field);
  const auto type = static_cast<si_value_type>(header.value_type);
  const Layout layout = layout_of(shape, n, m, type);
  if (layout.plan.total() != bytes) return corrupt("nm: its size does not match its shape");
  SI_TRY(layout.plan.check_slack(blob));

  const auto* base = static_cast<const uint8_t*>(blob);
  NmView view{};
  view.shape = shape;
  view.n = n;
  view.m = m;
  view.groups_per_row = groups_in_row(shape, m);
  view.last_planes = std::min(n, columns_in_group(shape, m, view.groups_per_row - 1));
  view.value_type = type;
  view.values = base + layout.value;
  view.positions = base + layout.position;
  const int64_t plane = shape.M() * view.groups_per_row;
  uint64_t nnz = 0;
  for (int64_t entry = 0; entry < plane; ++entry) {
    const auto refuse = [&](const char* what) {
      return corrupt("nm: row ", entry / view.groups_per_row, ", group ", entry % view.groups_per_row, ": ", what);
    };
    uint32_t kept = 0, stored = 0;
    for (int64_t at = entry; at < n * plane; at += plane) {
      const uint32_t position = view.positions[at];
      if (position >= m_field) return refuse("a position is out of range");
      if (stored >> position != 0) return refuse("positions do not increase");
      stored |= uint32_t{1} << position;
      const uint32_t bits = load_bits(view.values, at, type);
      if (is_nonzero(bits, type))
        kept |= uint32_t{1} << position;
      else if (bits != 0)
        return refuse("a value is -0");
    }
    const int32_t columns = columns_in_group(shape, m, entry % view.groups_per_row);
    if (columns < m && kept >> columns != 0) return refuse("a non-zero value lies past the last column");
    if (stored != fill_positions(kept, n)) return refuse("a filler is not at the lowest unused position");
    nnz += static_cast<uint64_t>(count_ones(kept));
  }
  if (nnz != header.nnz) return corrupt("nm: the number of non-zero values does not match");
  *out = view;
  return SI_OK;
}

void nm_unpack(const NmView& view, float* weight) {
  const int64_t M = view.shape.M(), K = view.shape.K();
  std::memset(weight, 0, static_cast<size_t>(M * K) * sizeof(float));
  for (int64_t row = 0; row < M; ++row)
    nm_visit(view, row, [&](int64_t k, float value) { weight[row * K + k] = value; });
}

void nm_describe(const NmView& view, const void* blob, si_weight_info* info) {
  section_offsets(blob, info->sections, view.values, view.positions);
}

}  // namespace si
