#include "runtime/file.h"

#include <cstring>

#include "formats/blob.h"

namespace si {

namespace {

constexpr char kMagic[8] = {'S', 'I', 'N', 'F', 'M', 'O', 'D', 'L'};

si_status check_counts(const FileHeader& header) {
  if (header.flags != 0) return bad_model("expected flags 0, got ", header.flags);
  for (const uint64_t word : header.reserved)
    if (word != 0) return bad_model("expected zero in the reserved words, got ", word);
  if (header.batch > header.most_batch || header.most_batch > INT32_MAX ||
      (header.batch == 0) != (header.most_batch == 0))
    return bad_model("expected a batch from 1 to its largest, which is below 2^31, or neither, got ", header.batch,
                     " and ", header.most_batch);
  const struct {
    const char* name;
    uint32_t count, least, most;
  } limits[] = {{"tensors", header.tensors, 1, kMostTensors},
                {"nodes", header.nodes, 1, kMostNodes},
                {"operands", header.operands, 1, kMostOperands},
                {"outputs", header.outputs, 1, kMostOutputs},
                {"bytes of names", header.names_bytes, 1, (kMostName + 1) * (kMostTensors + kMostNodes)},
                {"bytes of metadata", header.metadata_bytes, 0, kMostMetadata}};
  for (const auto& limit : limits)
    if (limit.count < limit.least || limit.count > limit.most)
      return bad_model("expected ", limit.least, " to ", limit.most, " ", limit.name, ", got ", limit.count);
  return SI_OK;
}

// Sections follow one another at multiples of 64 bytes, with zeros between them.
class Sections {
 public:
  Sections(const uint8_t* file, uint64_t bytes) : file_(file), bytes_(bytes) {}

  // The next section; it fails where it does not fit, or where what fills it up is not zero.
  template <class T>
  [[nodiscard]] si_status next(const char* name, uint64_t count, const T** out) {
    const uint64_t size = count * sizeof(T), whole = aligned(size);
    if (whole > bytes_ - at_) return bad_model("its ", name, " end after the file");
    for (uint64_t i = size; i < whole; ++i)
      if (file_[at_ + i] != 0) return bad_model("expected zeros after its ", name);
    *out = reinterpret_cast<const T*>(file_ + at_);
    at_ += whole;
    return SI_OK;
  }
  uint64_t at() const { return at_; }

 private:
  const uint8_t* const file_;
  const uint64_t bytes_;
  uint64_t at_ = 0;
};

// Constants follow one another likewise.
si_status check_data(Sections* sections, FileView* out) {
  const FileView& view = *out;
  for (uint32_t i = 0; i < view.header->tensors; ++i) {
    const FileTensor& tensor = view.tensors[i];
    if (tensor.kind != kConstant) {
      if (tensor.bytes != 0) return bad_model("tensor ", i, " is no constant and has ", tensor.bytes, " bytes");
      continue;
    }
    if (tensor.bytes > view.header->total_bytes) return bad_model("tensor ", i, " is larger than the file");
    const uint8_t* data = nullptr;
    SI_TRY(sections->next("constants", tensor.bytes, &data));
  }
  out->golden = sections->at();
  const uint64_t golden_bytes = view.header->golden_bytes;
  if (golden_bytes > view.header->total_bytes || golden_bytes % kModelAlign != 0)
    return bad_model("expected a multiple of ", kModelAlign, " golden bytes within the file, got ", golden_bytes);
  const uint8_t* golden = nullptr;
  SI_TRY(sections->next("golden inputs and outputs", golden_bytes, &golden));
  if (sections->at() != view.header->total_bytes)
    return bad_model("expected ", sections->at(), " bytes, got ", view.header->total_bytes);
  return SI_OK;
}

}  // namespace

uint64_t file_checksum(const FileView& view) {
  const uint8_t* file = view.bytes();
  uint64_t state = checksum_words(kChecksumStart, file, offsetof(FileHeader, checksum));
  state = checksum_words(state, file + sizeof(FileHeader), view.data - sizeof(FileHeader));
  uint64_t at = view.data;
  for (uint32_t i = 0; i < view.header->tensors; ++i) {
    const FileTensor& tensor = view.tensors[i];
    if (tensor.kind != kConstant) continue;
    if (tensor.type != kPacked) state = checksum_words(state, file + at, aligned(tensor.bytes));
    at += aligned(tensor.bytes);
  }
  return checksum_words(state, file + view.golden, view.header->golden_bytes);
}

si_status read_file(const void* file, size_t bytes, bool sealed, FileView* out) {
  SI_REQUIRE(file != nullptr, SI_ERR_ARGUMENT, "expected a model file, got a null pointer");
  SI_REQUIRE(reinterpret_cast<uintptr_t>(file) % kFileAlign == 0, SI_ERR_ARGUMENT,
             "expected a model file at a multiple of ", kFileAlign, " bytes; try memory that is aligned so");
  if (bytes < sizeof(FileHeader)) return bad_model("it is shorter than its header");
  FileView view{};
  view.header = static_cast<const FileHeader*>(file);
  const FileHeader& header = *view.header;
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return bad_model("it does not begin as a model file");
  SI_REQUIRE(header.version == kModelVersion, SI_ERR_UNSUPPORTED, "expected a model file of version ", kModelVersion,
             ", got version ", header.version, "; try a library that knows it");
  if (header.total_bytes != bytes)
    return bad_model("its header tells ", header.total_bytes, " bytes, and it has ", bytes);
  SI_TRY(check_counts(header));
  Sections sections(static_cast<const uint8_t*>(file), bytes);
  SI_TRY(sections.next("header", 1, &view.header));
  SI_TRY(sections.next("tensors", header.tensors, &view.tensors));
  SI_TRY(sections.next("nodes", header.nodes, &view.nodes));
  SI_TRY(sections.next("operands", header.operands, &view.operands));
  SI_TRY(sections.next("outputs", header.outputs, &view.outputs));
  SI_TRY(sections.next("names", header.names_bytes, &view.names));
  SI_TRY(sections.next("metadata", header.metadata_bytes, &view.metadata));
  view.data = sections.at();
  SI_TRY(check_data(&sections, &view));
  if (sealed && header.checksum != file_checksum(view)) return bad_model("its checksum does not match");
  *out = view;
  return SI_OK;
}

}  // namespace si
