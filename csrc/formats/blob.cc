#include "formats/blob.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace si {

namespace {

constexpr char kMagic[8] = {'S', 'P', 'A', 'R', 'S', 'I', 'N', 'F'};
constexpr size_t kChecksumOffset = offsetof(BlobHeader, checksum);

SI_INLINE uint64_t checksum_word(uint64_t state, const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof word);
  state = (state ^ word) * 0x100000001b3ULL;
  return state ^ state >> 32;
}

uint64_t blob_checksum(const uint8_t* blob, size_t bytes) {
  const uint64_t state = checksum_words(kChecksumStart, blob, kChecksumOffset);
  return checksum_words(state, blob + sizeof(BlobHeader), bytes - sizeof(BlobHeader));
}

uint64_t round_up(uint64_t value) { return (value + kSectionAlign - 1) / kSectionAlign * kSectionAlign; }

}  // namespace

uint64_t checksum_words(uint64_t state, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) state = checksum_word(state, data + i);
  return state;
}

void check_blob_sums(const BlobBytes* blobs, int64_t count, bool* matches) {
  constexpr int kLanes = kSmall ? 1 : 4;
  struct Lane {
    uint64_t state;
    const uint8_t* at;
    uint64_t words;
    int64_t blob;
  } lanes[kLanes] = {};
  int64_t next = 0;
  const auto start = [&](Lane* lane) {
    for (; next < count; ++next) {
      const BlobBytes& blob = blobs[next];
      matches[next] = false;
      if (blob.bytes <= sizeof(BlobHeader) || blob.bytes % sizeof(uint64_t) != 0) continue;
      *lane = {checksum_words(kChecksumStart, blob.data, kChecksumOffset), blob.data + sizeof(BlobHeader),
               (blob.bytes - sizeof(BlobHeader)) / sizeof(uint64_t), next};
      ++next;
      return;
    }
    lane->words = 0;
  };
  for (Lane& lane : lanes) start(&lane);
  for (;;) {
    uint64_t steps = UINT64_MAX;
    const Lane* any = nullptr;
    for (const Lane& lane : lanes)
      if (lane.words != 0) {
        steps = std::min(steps, lane.words);
        any = &lane;
      }
    if (any == nullptr) return;
    // A lane that is done reads along with another; its sum is of no interest.
    const uint8_t* from[kLanes];
    uint64_t state[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      from[i] = lanes[i].words != 0 ? lanes[i].at : any->at;
      state[i] = lanes[i].state;
    }
    for (uint64_t word = 0; word < steps; ++word) SI_UNROLL
    for (int i = 0; i < kLanes; ++i) state[i] = checksum_word(state[i], from[i] + word * sizeof(uint64_t));
    for (int i = 0; i < kLanes; ++i) {
      Lane& lane = lanes[i];
      if (lane.words == 0) continue;
      lane.state = state[i];
      lane.at += steps * sizeof(uint64_t);
      lane.words -= steps;
      if (lane.words != 0) continue;
      const auto& header = *reinterpret_cast<const BlobHeader*>(blobs[lane.blob].data);
      matches[lane.blob] = header.checksum == lane.state;
      start(&lane);
    }
  }
}

uint64_t SectionPlan::add(uint64_t elements, size_t element_bytes) {
  const uint64_t offset = total_;
  // Far above anything real and far below where the sum could wrap.
  if (total_ == UINT64_MAX || elements > (uint64_t{1} << 40)) {
    total_ = UINT64_MAX;
    return offset;
  }
  const uint64_t end = offset + elements * element_bytes;
  total_ = round_up(end + kSectionSlack);
  slack_[count_++] = {end, total_};
  return offset;
}

si_status SectionPlan::check_slack(const void* blob) const {
  const auto* bytes = static_cast<const uint8_t*>(blob);
  for (int i = 0; i < count_; ++i)
    if (std::any_of(bytes + slack_[i].first, bytes + slack_[i].last, [](uint8_t byte) { return byte != 0; }))
      return corrupt("a byte past the end of a section is not zero");
  return SI_OK;
}

si_status check_desc(const si_weight_desc& desc, WeightShape* out) {
  SI_REQUIRE(desc.ndim >= 2 && desc.ndim <= 4, SI_ERR_ARGUMENT, "expected a weight of 2 to 4 dimensions, got ",
             desc.ndim);
  WeightShape shape;
  shape.ndim = desc.ndim;
  shape.groups = desc.groups;
  uint64_t elements = 1;
  for (int i = 0; i < desc.ndim; ++i) {
    SI_REQUIRE(desc.shape[i] >= 1 && desc.shape[i] <= 0x7fffffff, SI_ERR_ARGUMENT,
               "expected weight dimensions from 1 to 2^31-1, got ", desc.shape[i], " in dimension ", i);
    shape.dims[i] = desc.shape[i];
    elements *= static_cast<uint64_t>(desc.shape[i]);
    SI_REQUIRE(elements <= (uint64_t{1} << 32), SI_ERR_ARGUMENT,
               "expected a weight of at most 2^32 elements, got more");
  }
  // Kernels gather x by signed 32-bit indices.
  SI_REQUIRE(shape.K() <= 0x7fffffff, SI_ERR_ARGUMENT, "expected at most 2^31-1 input columns, got ", shape.K());
  SI_REQUIRE(desc.groups >= 1 && shape.dims[0] % desc.groups == 0, SI_ERR_ARGUMENT, "expected groups to divide the ",
             shape.dims[0], " output rows, got ", desc.groups);
  SI_REQUIRE(desc.groups == 1 || desc.ndim > 2, SI_ERR_ARGUMENT, "expected groups = 1 for a linear weight, got ",
             desc.groups);
  *out = shape;
  return SI_OK;
}

BlobHeader make_header(si_format format, const WeightShape& shape) {
  BlobHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kBlobVersion;
  header.format = static_cast<uint32_t>(format);
  header.ndim = static_cast<uint32_t>(shape.ndim);
  for (int i = 0; i < 4; ++i) header.shape[i] = static_cast<uint32_t>(shape.dims[i]);
  header.groups = static_cast<uint32_t>(shape.groups);
  return header;
}

si_status new_blob(const BlobHeader& header, const SectionPlan& plan, OwnedBlob* out) {
  const uint64_t bytes = plan.total();
  SI_REQUIRE(bytes != UINT64_MAX, SI_ERR_ARGUMENT, "weight too large to pack: over 2^40 elements in a section");
  out->data.reset();
  if (bytes <= SIZE_MAX) {
    out->bytes = static_cast<size_t>(bytes);
    out->data.reset(static_cast<uint8_t*>(std::aligned_alloc(kSectionAlign, out->bytes)));
  }
  SI_REQUIRE(out->data != nullptr, SI_ERR_MEMORY, "out of memory: ", bytes, " bytes for a packed weight");
  std::memset(out->data.get(), 0, out->bytes);
  BlobHeader filled = header;
  filled.total_bytes = bytes;
  std::memcpy(out->data.get(), &filled, sizeof filled);
  return SI_OK;
}

void seal_blob(uint8_t* blob) {
  BlobHeader header;
  std::memcpy(&header, blob, sizeof header);
  header.checksum = blob_checksum(blob, static_cast<size_t>(header.total_bytes));
  std::memcpy(blob, &header, sizeof header);
}

WeightShape shape_of(const BlobHeader& header) {
  WeightShape shape;
  shape.ndim = static_cast<int32_t>(header.ndim);
  for (int i = 0; i < 4; ++i) shape.dims[i] = header.shape[i];
  shape.groups = header.groups;
  return shape;
}

si_status check_header(const void* blob, size_t bytes, bool is_summed) {
  SI_REQUIRE(blob != nullptr, SI_ERR_ARGUMENT, "expected a packed weight, got a null pointer");
  if (reinterpret_cast<uintptr_t>(blob) % alignof(BlobHeader) != 0)
    return fail(SI_ERR_ARGUMENT, "expected a packed weight aligned to 8 bytes; try copying it to a fresh buffer");
  if (bytes < sizeof(BlobHeader)) return corrupt("expected at least ", sizeof(BlobHeader), " bytes, got ", bytes);
  const auto& header = *static_cast<const BlobHeader*>(blob);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return corrupt("it does not begin with SPARSINF");
  if (header.version != kBlobVersion) return corrupt("expected version ", kBlobVersion, ", got ", header.version);
  if (header.total_bytes != bytes || bytes % kSectionAlign != 0)
    return corrupt("expected ", header.total_bytes, " bytes, got ", bytes);
  if (header.flags != 0 || header.reserved != 0) return corrupt("a reserved field is not zero");
  if (!is_summed && header.checksum != blob_checksum(static_cast<const uint8_t*>(blob), bytes))
    return corrupt("its checksum does not match");
  si_weight_desc desc{};
  if (header.ndim < 2 || header.ndim > 4) return corrupt("expected 2 to 4 dimensions, got ", header.ndim);
  desc.ndim = static_cast<int32_t>(header.ndim);
  for (int i = 0; i < 4; ++i) {
    desc.shape[i] = header.shape[i];
    if (i >= desc.ndim && header.shape[i] != 0) return corrupt("a dimension past the last is not zero");
  }
  desc.groups = header.groups;
  WeightShape shape;
  if (check_desc(desc, &shape) != SI_OK) return corrupt(last_message());
  return SI_OK;
}

}  // namespace si
