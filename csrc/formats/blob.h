// The packed buffer ("blob") that every format shares: a 128-byte header, then sections at multiples of 64 bytes.
// csrc/formats/LAYOUT.md gives it byte by byte.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

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
static_assert(sizeof(size_t) == 8, "section offsets are checked against 64-bit sizes");
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
class SectionPlan {
 public:
  size_t add(uint64_t elements, size_t element_bytes);
  size_t total() const { return next_; }
  // Throws SI_ERR_CORRUPT unless all bytes between the sections' elements are zero: a kernel that loads a whole vector
  // of indices at the last one uses them. The blob has total() bytes.
  void check_slack(const void* blob) const;

 private:
  size_t next_ = sizeof(BlobHeader);
  std::vector<std::pair<size_t, size_t>> slack_;  // first byte, past the last byte
};

// Throws SI_ERR_ARGUMENT unless the shape is one that a blob can hold.
WeightShape check_desc(const si_weight_desc& desc);

struct BlobDeleter {
  void operator()(uint8_t* blob) const { std::free(blob); }
};
using BlobPtr = std::unique_ptr<uint8_t, BlobDeleter>;

// A zeroed, 64-byte aligned buffer with its header filled in; once released from the pointer, for std::free.
BlobPtr new_blob(const BlobHeader& header, size_t bytes);
BlobHeader make_header(si_format format, const WeightShape& shape);
// Call last, when every section is written.
void seal_blob(uint8_t* blob);

// Checks what all formats share: size, alignment, magic, version, shape, checksum. Throws SI_ERR_CORRUPT.
const BlobHeader& check_header(const void* blob, size_t bytes);
WeightShape shape_of(const BlobHeader& header);

[[noreturn]] void corrupt(const std::string& what);

// Packing reads a weight twice, to size the buffer and to fill it; another thread may write to it in between.
void check_unchanged(bool fits);

}  // namespace si
