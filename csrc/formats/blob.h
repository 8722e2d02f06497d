// The packed buffer ("blob") that every format shares: a 128-byte header, then sections at multiples of 64 bytes.
// csrc/formats/LAYOUT.md gives it byte by byte.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/chosen.h"
#include "core/error.h"
#include "core/inline.h"

namespace si {

constexpr uint32_t kBlobVersion = 1;
constexpr size_t kSectionAlign = 64;
// Zero bytes after the last element of every section, so that a whole vector can be loaded at any element.
constexpr size_t kSectionSlack = 64;

struct BlobHeader {
  char magic[8];
  uint32_t version;
  uint32_t format;
  uint32_t value_type;
  uint32_t ndim;
  uint32_t shape[4];
  uint32_t groups;
  uint32_t flags;
  uint64_t nnz;
  uint64_t total_bytes;
  uint32_t params[8];
  uint64_t counts[2];
  uint64_t reserved;
  uint64_t checksum;
};
static_assert(sizeof(BlobHeader) == 128, "the header is part of the file format");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "blobs are little-endian and read in place");

// What a weight is, whatever the format: M rows, of which M / groups see K columns each.
struct WeightShape {
  int32_t ndim = 0;
  int64_t dims[4] = {0, 0, 0, 0};
  int64_t groups = 1;
  SI_INLINE int64_t M() const { return dims[0]; }
  SI_INLINE int64_t K() const {
    int64_t k = 1;
    for (int i = 1; i < ndim; ++i) k *= dims[i];
    return k;
  }
};

// Byte offset of each section, laid one after another in order; nothing of it is stored, so nothing of it can lie.
// Offsets are of 64 bits on every machine: a plan may be of a blob that this one cannot hold.
class SectionPlan {
 public:
  static constexpr int kMost = 6;

  uint64_t add(uint64_t elements, size_t element_bytes);
  // UINT64_MAX where a section has more elements than any weight: no blob has so many bytes.
  uint64_t total() const { return total_; }
  // Fails unless all bytes between the sections' elements are zero: a kernel that loads a whole vector of indices at
  // the last one uses them. The blob has total() bytes.
  [[nodiscard]] si_status check_slack(const void* blob) const;

 private:
  struct Slack {
    uint64_t first, last;  // the last is one past
  };
  uint64_t total_ = sizeof(BlobHeader);
  int count_ = 0;
  Slack slack_[kMost] = {};
};

// Fails with SI_ERR_ARGUMENT unless the shape is one that a blob can hold.
[[nodiscard]] si_status check_desc(const si_weight_desc& desc, WeightShape* shape);

// FNV-1a over little-endian 64-bit words, with the high half folded down after each: a product carries a change only
// upwards, so without the fold a sign flipped in two words would cancel. Each step is a bijection of the state, so any
// change within one word always changes the sum. It finds damage, not malice: the structural checks of each format do
// that.
constexpr uint64_t kChecksumStart = 0xcbf29ce484222325ULL;
uint64_t checksum_words(uint64_t state, const uint8_t* data, size_t bytes);  // bytes: a multiple of 8

// Bytes that may be a blob.
struct BlobBytes {
  const uint8_t* data;
  uint64_t bytes;
};
// Whether each blob's checksum is what its header tells; false of what is too short or of no whole words. A sum waits
// for each of its words, so those of several blobs are taken side by side: the largest had best come first.
void check_blob_sums(const BlobBytes* blobs, int64_t count, bool* matches);

struct BlobDeleter {
  void operator()(uint8_t* blob) const { std::free(blob); }
};
using BlobPtr = std::unique_ptr<uint8_t, BlobDeleter>;

// What packing gives: a 64-byte aligned buffer; once released from the pointer, for std::free.
struct OwnedBlob {
  BlobPtr data;
  size_t bytes = 0;

  template <class T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(data.get() + offset);
  }
};

// A zeroed blob with its header filled in.
[[nodiscard]] si_status new_blob(const BlobHeader& header, const SectionPlan& plan, OwnedBlob* out);
BlobHeader make_header(si_format format, const WeightShape& shape);
// Call last, when every section is written.
void seal_blob(uint8_t* blob);

// Checks what all formats share: size, alignment, magic, version, shape and, unless it was checked already, the
// checksum. Fails with SI_ERR_CORRUPT. Only then may the buffer be read as a BlobHeader.
[[nodiscard]] si_status check_header(const void* blob, size_t bytes, bool is_summed = false);
WeightShape shape_of(const BlobHeader& header);

// The failure of a validator: corrupt(parts...).
template <class... Parts>
[[nodiscard]] si_status corrupt(Parts... parts) {
  return fail(SI_ERR_CORRUPT, "packed weight is corrupt: ", parts..., "; try packing the dense weight again");
}

// Packing reads a weight twice, to size the buffer and to fill it; another thread may write to it in between.
[[nodiscard]] inline si_status check_unchanged(bool fits) {
  SI_REQUIRE(fits, SI_ERR_ARGUMENT, "expected a weight that stays as it is while it is packed; try packing a copy");
  return SI_OK;
}

// Byte offsets of sections from their addresses; 0 for those that a format does not have.
template <class... Starts>
void section_offsets(const void* blob, uint64_t (&offsets)[4], Starts... starts) {
  const void* addresses[] = {starts...};
  size_t i = 0;
  for (; i < sizeof...(starts); ++i)
    offsets[i] = static_cast<uint64_t>(static_cast<const uint8_t*>(addresses[i]) - static_cast<const uint8_t*>(blob));
  for (; i < 4; ++i) offsets[i] = 0;
}

}  // namespace si
