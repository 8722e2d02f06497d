// The model file (.sinf), byte by byte: FORMAT.md. This is its one reader; what it accepts is checked against the sizes
// that the header gives, and nothing of it is used before.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace si {

constexpr uint32_t kModelVersion = 1;
constexpr size_t kModelAlign = 64;  // of sections, counted from the file's beginning, and of a context
// Of the file in memory: its widest words are of 8 bytes, and kernels read vectors of it at any address.
constexpr size_t kFileAlign = 16;
constexpr uint32_t kNoTensor = UINT32_MAX;  // of an operand that a node does without
constexpr int kMostDims = 8;
constexpr int kParams = 10;

// Limits of every file, far from what networks need and near enough that no product of them wraps.
constexpr uint32_t kMostTensors = 65536;
constexpr uint32_t kMostNodes = 16384;
constexpr uint32_t kMostOperands = 16 * kMostNodes;
constexpr uint32_t kMostOutputs = 1024;
constexpr uint32_t kMostName = 255;
constexpr uint32_t kMostMetadata = 1 << 20;

// Types of tensors. Those below 255 are numbers of si_value_type.
enum TensorType : uint32_t { kFloat32 = 0, kBFloat16 = 2, kInt8 = 3, kUint8 = 4, kInt64 = 5, kBool = 6, kPacked = 255 };
// A batched input is one whose dimension 0 may vary.
enum TensorKind : uint32_t { kInput = 0, kConstant = 1, kComputed = 2, kBatchedInput = 3 };

struct FileHeader {
  char magic[8];
  uint32_t version;
  uint32_t flags;
  uint64_t total_bytes;
  uint32_t tensors;
  uint32_t nodes;
  uint32_t operands;
  uint32_t outputs;
  uint32_t names_bytes;
  uint32_t metadata_bytes;
  uint64_t arena_bytes;
  uint64_t golden_bytes;
  uint32_t batch;       // dimension 0 of the batched inputs as the file has them; 0: there are none
  uint32_t most_batch;  // and the most that it may be
  uint64_t reserved[6];
  uint64_t checksum;
};
static_assert(sizeof(FileHeader) == 128, "the header is part of the file format");

struct FileTensor {
  uint32_t type;
  uint32_t kind;
  uint32_t ndim;
  uint32_t dims[kMostDims];
  uint32_t name_bytes;  // without the zero byte that ends it
  float scale;          // of uint8; else 0
  uint32_t zero_point;  // likewise
  uint64_t bytes;       // of a constant; else 0
};
static_assert(sizeof(FileTensor) == 64, "tensor records are part of the file format");

struct FileNode {
  uint32_t op;
  uint32_t activation;
  uint32_t operands;
  uint32_t output;  // a tensor
  uint32_t name_bytes;
  uint32_t reserved;
  int32_t params[kParams];
};
static_assert(sizeof(FileNode) == 64, "node records are part of the file format");

// Pointers into a file whose sections lie within it.
struct FileView {
  const FileHeader* header;
  const FileTensor* tensors;
  const FileNode* nodes;
  const uint32_t* operands;
  const uint32_t* outputs;
  const char* names;
  const char* metadata;
  uint64_t data;    // offset of the constants
  uint64_t golden;  // and of golden_bytes of golden inputs and outputs

  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(header); }
};

// The next multiple of the alignment; a file's sizes are far below where this would wrap.
constexpr uint64_t aligned(uint64_t bytes) { return (bytes + kModelAlign - 1) / kModelAlign * kModelAlign; }

// The failure of a validator: bad_model(parts...).
template <class... Parts>
[[nodiscard]] si_status bad_model(Parts... parts) {
  return fail(SI_ERR_CORRUPT, "model file is corrupt: ", parts..., "; try exporting the model again");
}

// Checks the size, the header, the sections, the padding between them and, unless the file is about to be sealed, the
// checksum. Tensors and nodes are still as the file has them.
[[nodiscard]] si_status read_file(const void* file, size_t bytes, bool sealed, FileView* out);

// Of all bytes but the checksum itself and packed weights, which have checksums of their own.
uint64_t file_checksum(const FileView& view);

}  // namespace si
