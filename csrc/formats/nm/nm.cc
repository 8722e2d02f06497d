#include "formats/nm/nm.h"

#include <algorithm>
#include <cstring>

#include "formats/values.h"

namespace si {

namespace {

enum NmParam { kParamN, kParamM, kParamOrder };

// kReshaped: one run of K columns, as the reshape to [M, K] has them. kChannelsLast: a run of channels for each tap.
enum NmOrder : uint32_t { kReshaped, kChannelsLast };

struct Layout {
  SectionPlan plan;
  uint64_t value, position;
};

// Both orders are one where there is one tap, and kReshaped is its name.
NmOrder order_of(const WeightShape& shape) { return shape.K() == shape.dims[1] ? kReshaped : kChannelsLast; }

NmColumns columns_of(const WeightShape& shape, NmOrder order) {
  return order == kReshaped ? NmColumns{1, shape.K()} : NmColumns{shape.K() / shape.dims[1], shape.dims[1]};
}

int64_t groups_in_tap(const NmColumns& columns, int32_t m) { return (columns.channels + m - 1) / m; }

// 1 to m channels; only the last group of a tap has fewer than m.
int32_t channels_in_group(const NmColumns& columns, int32_t m, int64_t of_tap) {
  return static_cast<int32_t>(std::min<int64_t>(m, columns.channels - of_tap * m));
}

Layout layout_of(const WeightShape& shape, const NmColumns& columns, int32_t n, int32_t m, si_value_type type) {
  const auto entries = static_cast<uint64_t>(n * shape.M() * columns.taps * groups_in_tap(columns, m));
  Layout layout{};
  layout.value = layout.plan.add(entries, static_cast<size_t>(element_bytes(type)));
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

// One group's weights, which lie `step` apart, in the value type; returns the set of the non-zero ones.
inline uint32_t encode_steps(const float* weight, int64_t step, int32_t channels, si_value_type type, uint32_t* bits) {
  uint32_t kept = 0;
  for (int32_t c = 0; c < channels; ++c) {
    bits[c] = encode_value(weight[c * step], type);
    kept |= static_cast<uint32_t>(is_nonzero(bits[c], type)) << c;
  }
  return kept;
}

uint32_t encode_group(const float* weight, int64_t taps, int32_t channels, si_value_type type, uint32_t* bits) {
  // A step that the compiler knows takes half the time.
  return taps == 1 ? encode_steps(weight, 1, channels, type, bits) : encode_steps(weight, taps, channels, type, bits);
}

// "row 1, columns 4-7", or "row 1, kernel position (0, 2), input channels 4-7".
void add_place(const WeightShape& shape, const NmColumns& columns, int64_t row, int64_t tap, int64_t first,
               int64_t last, Message* text) {
  text->add("row ");
  text->add(row);
  if (columns.taps > 1) {
    const int64_t width = shape.dims[shape.ndim - 1];
    text->add(", kernel position (");
    text->add(tap / width);
    text->add(", ");
    text->add(tap % width);
    text->add("), input channels ");
  } else {
    text->add(", columns ");
  }
  text->add(first);
  text->add("-");
  text->add(last);
}

// Counts the non-zeros, or fails with a message that counts the groups with more than n.
si_status count_nonzeros(const float* weight, const WeightShape& shape, const NmColumns& columns, int32_t n, int32_t m,
                         si_value_type type, uint64_t* count) {
  const int64_t M = shape.M(), K = shape.K(), groups = groups_in_tap(columns, m);
  uint32_t bits[kNmMaxM];
  uint64_t nnz = 0, too_full = 0;
  Message first;
  for (int64_t row = 0; row < M; ++row)
    for (int64_t tap = 0; tap < columns.taps; ++tap)
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t channel = group * m;
        const int32_t channels = channels_in_group(columns, m, group);
        const float* start = weight + row * K + channel * columns.taps + tap;
        const int kept = count_ones(encode_group(start, columns.taps, channels, type, bits));
        nnz += static_cast<uint64_t>(kept);
        if (kept <= n || too_full++ != 0) continue;
        add_place(shape, columns, row, tap, channel, channel + channels - 1, &first);
        first.add(" with ");
        first.add(kept);
      }
  SI_REQUIRE(too_full == 0, SI_ERR_ARGUMENT, "expected at most ", n, " non-zero", n == 1 ? "" : "s", " in every ", m,
             " consecutive ", columns.taps > 1 ? "input channels" : "columns", ", got ", too_full,
             too_full == 1 ? " group" : " groups", " with more; the first is ", first.text(), "; try the panel format");
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
  const NmOrder order = order_of(shape);
  const NmColumns columns = columns_of(shape, order);
  uint64_t nnz = 0;
  SI_TRY(count_nonzeros(weight, shape, columns, n, m, value_type, &nnz));

  const Layout layout = layout_of(shape, columns, n, m, value_type);
  BlobHeader header = make_header(SI_FORMAT_NM, shape);
  header.value_type = static_cast<uint32_t>(value_type);
  header.nnz = nnz;
  header.params[kParamN] = static_cast<uint32_t>(n);
  header.params[kParamM] = static_cast<uint32_t>(m);
  header.params[kParamOrder] = order;
  SI_TRY(new_blob(header, layout.plan, out));
  void* values = out->at<void>(layout.value);
  auto* positions = out->at<uint8_t>(layout.position);

  const int64_t M = shape.M(), K = shape.K(), groups = groups_in_tap(columns, m);
  const int64_t plane = M * columns.taps * groups;
  uint32_t bits[kNmMaxM];
  for (int64_t row = 0; row < M; ++row)
    for (int64_t tap = 0; tap < columns.taps; ++tap)
      for (int64_t group = 0; group < groups; ++group) {
        const int32_t channels = channels_in_group(columns, m, group);
        const float* start = weight + row * K + group * m * columns.taps + tap;
        const uint32_t kept = encode_group(start, columns.taps, channels, value_type, bits);
        SI_TRY(check_unchanged(count_ones(kept) <= n));
        const uint32_t stored = fill_positions(kept, n);
        int64_t at = (row * columns.taps + tap) * groups + group;
        for (int32_t position = 0; position < m; ++position) {
          if ((stored >> position & 1) == 0) continue;
          positions[at] = static_cast<uint8_t>(position);
          store_bits(values, at, value_type, (kept >> position & 1) != 0 ? bits[position] : 0);
          at += plane;
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
  const auto order = static_cast<NmOrder>(header.params[kParamOrder]);
  if (order != kReshaped && order != order_of(shape))
    return corrupt("nm: bad order of columns ", header.params[kParamOrder]);
  for (int i = kParamOrder + 1; i < 8; ++i)
    if (header.params[i] != 0) return corrupt("nm: a reserved parameter is not zero");
  if (header.counts[0] != 0 || header.counts[1] != 0) return corrupt("nm: a reserved count is not zero");
  const auto n = static_cast<int32_t>(n_field), m = static_cast<int32_t>(m_field);
  const auto type = static_cast<si_value_type>(header.value_type);
  const NmColumns columns = columns_of(shape, order);
  const Layout layout = layout_of(shape, columns, n, m, type);
  if (layout.plan.total() != bytes) return corrupt("nm: its size does not match its shape");
  SI_TRY(layout.plan.check_slack(blob));

  const auto* base = static_cast<const uint8_t*>(blob);
  NmView view{};
  view.shape = shape;
  view.n = n;
  view.m = m;
  view.columns = columns;
  view.groups_per_tap = groups_in_tap(columns, m);
  view.groups_per_row = columns.taps * view.groups_per_tap;
  view.last_planes = std::min(n, channels_in_group(columns, m, view.groups_per_tap - 1));
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
    const int32_t channels = channels_in_group(columns, m, entry % view.groups_per_tap);
    if (channels < m && kept >> channels != 0) return refuse("a non-zero value lies past the last column");
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
