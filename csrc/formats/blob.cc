#include "formats/blob.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace si {

namespace {

constexpr char kMagic[8] = {'S', 'P', 'A', 'R', 'S', 'I', 'N', 'F'};
constexpr size_t kChecksumOffset = offsetof(BlobHeader, checksum);

// FNV-1a over little-endian 64-bit words, with the high half folded down after each: a product carries a change only
// upwards, so without the fold a sign flipped in two words would cancel. Each step is a bijection of the state, so any
// change within one word always changes the sum. It finds damage, not malice: the structural checks of each format do
// that.
uint64_t checksum_words(uint64_t state, const uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    state = (state ^ word) * 0x100000001b3ULL;
    state ^= state >> 32;
  }
  return state;
}

uint64_t blob_checksum(const uint8_t* blob, size_t bytes) {
  const uint64_t state = checksum_words(0xcbf29ce484222325ULL, blob, kChecksumOffset);
  return checksum_words(state, blob + sizeof(BlobHeader), bytes - sizeof(BlobHeader));
}

size_t round_up(size_t value) { return (value + kSectionAlign - 1) / kSectionAlign * kSectionAlign; }

}  // namespace

void corrupt(const std::string& what) {
  fail(SI_ERR_CORRUPT, "packed weight is corrupt: " + what + "; try packing the dense weight again");
}

void check_unchanged(bool fits) {
  require(fits, SI_ERR_ARGUMENT, "expected a weight that stays as it is while it is packed; try packing a copy");
}

size_t SectionPlan::add(uint64_t elements, size_t element_bytes) {
  // Far above anything real and far below where the sum could wrap.
  if (elements > (uint64_t{1} << 40))
    fail(SI_ERR_ARGUMENT, "weight too large to pack: over 2^40 elements in a section");
  const size_t offset = next_;
  const size_t end = offset + static_cast<size_t>(elements) * element_bytes;
  next_ = round_up(end + kSectionSlack);
  slack_.emplace_back(end, next_);
  return offset;
}

void SectionPlan::check_slack(const void* blob) const {
  const auto* bytes = static_cast<const uint8_t*>(blob);
  for (const auto& [first, last] : slack_)
    if (std::any_of(bytes + first, bytes + last, [](uint8_t byte) { return byte != 0; }))
      corrupt("a byte past the end of a section is not zero");
}

WeightShape check_desc(const si_weight_desc& desc) {
  if (desc.ndim < 2 || desc.ndim > 4)
    fail(SI_ERR_ARGUMENT, "expected a weight of 2 to 4 dimensions, got " + std::to_string(desc.ndim));
  WeightShape shape;
  shape.ndim = desc.ndim;
  shape.groups = desc.groups;
  uint64_t elements = 1;
  for (int i = 0; i < desc.ndim; ++i) {
    if (desc.shape[i] < 1 || desc.shape[i] > 0x7fffffff)
      fail(SI_ERR_ARGUMENT, "expected weight dimensions from 1 to 2^31-1, got " + std::to_string(desc.shape[i]) +
                                " in dimension " + std::to_string(i));
    shape.dims[i] = desc.shape[i];
    elements *= static_cast<uint64_t>(desc.shape[i]);
    if (elements > (uint64_t{1} << 32)) fail(SI_ERR_ARGUMENT, "expected a weight of at most 2^32 elements, got more");
  }
  // Kernels gather x by signed 32-bit indices.
  if (shape.K() > 0x7fffffff)
    fail(SI_ERR_ARGUMENT, "expected at most 2^31-1 input columns, got " + std::to_string(shape.K()));
  if (desc.groups < 1 || shape.dims[0] % desc.groups != 0)
    fail(SI_ERR_ARGUMENT, "expected groups to divide the " + std::to_string(shape.dims[0]) + " output rows, got " +
                              std::to_string(desc.groups));
  if (desc.groups > 1 && desc.ndim == 2)
    fail(SI_ERR_ARGUMENT, "expected groups = 1 for a linear weight, got " + std::to_string(desc.groups));
  return shape;
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

BlobPtr new_blob(const BlobHeader& header, size_t bytes) {
  BlobPtr blob(static_cast<uint8_t*>(std::aligned_alloc(kSectionAlign, bytes)));
  if (blob == nullptr) fail(SI_ERR_MEMORY, "out of memory: " + std::to_string(bytes) + " bytes for a packed weight");
  std::memset(blob.get(), 0, bytes);
  BlobHeader filled = header;
  filled.total_bytes = bytes;
  std::memcpy(blob.get(), &filled, sizeof filled);
  return blob;
}

void seal_blob(uint8_t* blob) {
  BlobHeader header;
  std::memcpy(&header, blob, sizeof header);
  header.checksum = blob_checksum(blob, header.total_bytes);
  std::memcpy(blob, &header, sizeof header);
}

WeightShape shape_of(const BlobHeader& header) {
  WeightShape shape;
  shape.ndim = static_cast<int32_t>(header.ndim);
  for (int i = 0; i < 4; ++i) shape.dims[i] = header.shape[i];
  shape.groups = header.groups;
  return shape;
}

const BlobHeader& check_header(const void* blob, size_t bytes) {
  require(blob != nullptr, SI_ERR_ARGUMENT, "expected a packed weight, got a null pointer");
  if (reinterpret_cast<uintptr_t>(blob) % alignof(BlobHeader) != 0)
    fail(SI_ERR_ARGUMENT, "expected a packed weight aligned to 8 bytes; try copying it to a fresh buffer");
  if (bytes < sizeof(BlobHeader))
    corrupt("expected at least " + std::to_string(sizeof(BlobHeader)) + " bytes, got " + std::to_string(bytes));
  const auto& header = *static_cast<const BlobHeader*>(blob);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) corrupt("it does not begin with SPARSINF");
  if (header.version != kBlobVersion)
    corrupt("expected version " + std::to_string(kBlobVersion) + ", got " + std::to_string(header.version));
  if (header.total_bytes != bytes || bytes % kSectionAlign != 0)
    corrupt("expected " + std::to_string(header.total_bytes) + " bytes, got " + std::to_string(bytes));
  if (header.flags != 0 || header.reserved != 0) corrupt("a reserved field is not zero");
  if (header.checksum != blob_checksum(static_cast<const uint8_t*>(blob), bytes))
    corrupt("its checksum does not match");
  si_weight_desc desc{};
  if (header.ndim < 2 || header.ndim > 4) corrupt("expected 2 to 4 dimensions, got " + std::to_string(header.ndim));
  desc.ndim = static_cast<int32_t>(header.ndim);
  for (int i = 0; i < 4; ++i) {
    desc.shape[i] = header.shape[i];
    if (i >= desc.ndim && header.shape[i] != 0) corrupt("a dimension past the last is not zero");
  }
  desc.groups = header.groups;
  try {
    check_desc(desc);
  } catch (const Error& error) {
    corrupt(error.what());
  }
  return header;
}

}  // namespace si
