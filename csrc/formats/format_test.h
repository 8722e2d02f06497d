// What the tests of every format share: weights, round trips, golden buffers, and attacks on a packed buffer.
//
// A test describes its format by a class with
//
//   Format under(const BlobHeader& header) const;   // the same format with the parameters that a header names
//   OwnedBlob pack(const float* weight, const WeightShape& shape) const;
//   void validate(const BlobHeader& header, const void* blob, size_t bytes) const;
//   std::vector<float> unpack(const BlobHeader& header, const void* blob, size_t bytes) const;   // validates first
//
// which throw Error where the library returns a status.
#pragma once

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "formats/blob.h"
#include "testing/check.h"

namespace si::testing {

using Blob = OwnedBlob;

struct Error : std::runtime_error {
  explicit Error(si_status code) : std::runtime_error(last_message()), status(code) {}
  si_status status;
};

// Goes on only with SI_OK.
inline void need(si_status status) {
  if (status != SI_OK) throw Error(status);
}

// splitmix64: the same numbers on every platform, which golden buffers need and <random> does not promise.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(next() % static_cast<uint64_t>(limit)); }
  // A non-zero multiple of 1/16 up to 4: exact in float16 and bfloat16 too.
  float value() {
    const auto magnitude = static_cast<float>(1 + below(64)) / 16.0f;
    return below(2) == 0 ? magnitude : -magnitude;
  }

 private:
  uint64_t state_;
};

inline WeightShape make_shape(const std::vector<int64_t>& dims, int64_t groups) {
  si_weight_desc desc{};
  desc.ndim = static_cast<int32_t>(dims.size());
  for (size_t i = 0; i < dims.size() && i < 4; ++i) desc.shape[i] = dims[i];
  desc.groups = groups;
  WeightShape shape;
  need(check_desc(desc, &shape));
  return shape;
}

// Shapes at the edges of every format: one row, one column, sizes that no block divides, convolutions, groups.
inline std::vector<WeightShape> edge_shapes() {
  return {make_shape({1, 1}, 1),       make_shape({1, 33}, 1),       make_shape({7, 1}, 1),
          make_shape({4, 16}, 1),      make_shape({5, 70}, 1),       make_shape({13, 257}, 1),
          make_shape({6, 3, 5}, 1),    make_shape({9, 2, 3}, 3),     make_shape({8, 3, 3, 3}, 1),
          make_shape({6, 1, 3, 3}, 6), make_shape({10, 4, 1, 1}, 2), make_shape({12, 2, 3, 2}, 2)};
}

inline std::vector<float> random_weight(const WeightShape& shape, int64_t percent, Random& random) {
  std::vector<float> weight(static_cast<size_t>(shape.M() * shape.K()));
  for (float& w : weight)
    if (random.below(100) < percent) w = random.value();
  return weight;
}

// The status of the error that the call throws, SI_OK if none; its message goes to *message.
template <class Call>
si_status status_of(Call&& call, std::string* message = nullptr) {
  try {
    call();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.status;
  }
  return SI_OK;
}

template <class Format>
Blob pack(const Format& format, const std::vector<float>& weight, const WeightShape& shape) {
  return format.pack(weight.data(), shape);
}

// Validates through the header, as every reader does.
template <class Format>
std::vector<float> unpack(const Format& format, const void* blob, size_t bytes) {
  need(check_header(blob, bytes));
  return format.unpack(*static_cast<const BlobHeader*>(blob), blob, bytes);
}

// The view that a validator gives.
template <class View>
View open_view(si_status (*validate)(const BlobHeader&, const void*, size_t, View*), const void* blob, size_t bytes) {
  View view{};
  need(check_header(blob, bytes));
  need(validate(*static_cast<const BlobHeader*>(blob), blob, bytes, &view));
  return view;
}

// A copy in an allocation of exactly its size, so that the address sanitizer sees any read past it.
inline Blob copy_of(const Blob& blob) {
  Blob copy;
  copy.data.reset(static_cast<uint8_t*>(std::aligned_alloc(kSectionAlign, blob.bytes)));
  copy.bytes = blob.bytes;
  std::memcpy(copy.data.get(), blob.data.get(), blob.bytes);
  return copy;
}

// Equality of bits, so that a NaN equals itself; both zeros count as +0.
inline bool same_weight(const std::vector<float>& got, const std::vector<float>& expected) {
  if (got.size() != expected.size()) return false;
  for (size_t i = 0; i < got.size(); ++i) {
    const float wanted = expected[i] == 0.0f ? 0.0f : expected[i];
    if (std::memcmp(&got[i], &wanted, sizeof wanted) != 0) return false;
  }
  return true;
}

template <class Format>
void check_round_trip(const Format& format, const std::vector<float>& weight, const WeightShape& shape) {
  const Blob blob = pack(format, weight, shape);
  SI_CHECK_EQ(reinterpret_cast<uintptr_t>(blob.data.get()) % kSectionAlign, 0u);
  SI_CHECK_EQ(blob.bytes % kSectionAlign, 0u);
  SI_CHECK(same_weight(unpack(format, copy_of(blob).data.get(), blob.bytes), weight));
  uint64_t nnz = 0;
  for (float w : weight) nnz += w != 0.0f;
  SI_CHECK_EQ(reinterpret_cast<const BlobHeader*>(blob.data.get())->nnz, nnz);
}

// Round trips on the edge shapes, from empty to full.
template <class Format>
void check_round_trips(const Format& format, Random& random) {
  for (const WeightShape& shape : edge_shapes())
    for (int64_t percent : {0, 5, 50, 90, 100}) check_round_trip(format, random_weight(shape, percent, random), shape);
}

template <class Format>
void expect_corrupt(const Format& format, const Blob& blob, const std::string& fragment) {
  std::string message;
  const si_status status = status_of([&] { unpack(format, blob.data.get(), blob.bytes); }, &message);
  SI_CHECK_EQ(status, SI_ERR_CORRUPT);
  record(message.find(fragment) != std::string::npos, __FILE__, __LINE__,
         [&] { return "expected an error with '" + fragment + "', got '" + message + "'"; });
}

// Copies the blob, lets `change` forge the header and the bytes, seals it again, and expects validation to refuse it.
template <class Format, class Change>
void expect_forgery_refused(const Format& format, const Blob& blob, const std::string& fragment, Change&& change) {
  const Blob forged = copy_of(blob);
  change(*reinterpret_cast<BlobHeader*>(forged.data.get()), forged.data.get());
  seal_blob(forged.data.get());
  expect_corrupt(format, forged, fragment);
}

// Without a new checksum, every change of one byte is refused.
template <class Format>
void check_damage(const Format& format, const Blob& blob) {
  const Blob damaged = copy_of(blob);
  for (size_t i = 0; i < blob.bytes; ++i)
    for (int flip : {0x01, 0x10, 0x80, 0xff}) {
      damaged.data.get()[i] ^= static_cast<uint8_t>(flip);
      SI_CHECK_EQ(status_of([&] { unpack(format, damaged.data.get(), damaged.bytes); }), SI_ERR_CORRUPT);
      damaged.data.get()[i] ^= static_cast<uint8_t>(flip);
    }
}

// A forged blob is refused, or it is exactly what packing gives for the weight it unpacks to: then nothing in it can
// mislead a kernel that the packer itself could not.
template <class Format>
bool refused_or_canonical(const Format& format, const Blob& forged) {
  const auto& header = *reinterpret_cast<const BlobHeader*>(forged.data.get());
  const si_status status = status_of([&] {
    need(check_header(forged.data.get(), forged.bytes));
    format.validate(header, forged.data.get(), forged.bytes);
  });
  if (status != SI_OK) return SI_CHECK_EQ(status, SI_ERR_CORRUPT);
  const WeightShape shape = shape_of(header);
  if (shape.M() * shape.K() > (1 << 16)) return true;  // sound, but a wide sparse weight is too large to unpack here
  const Blob again = pack(format.under(header), unpack(format, forged.data.get(), forged.bytes), shape);
  return SI_CHECK(again.bytes == forged.bytes && std::memcmp(again.data.get(), forged.data.get(), forged.bytes) == 0);
}

// Sets each of the 1-, 2-, 4- and 8-byte words of the blob to hostile values and seals it again. Left alone: the format
// number, by which a reader chooses the validator, and the total size and checksum, which the seal itself uses.
template <class Format>
void check_forgeries(const Format& format, const Blob& blob) {
  const uint64_t hostile[] = {0,
                              1,
                              2,
                              3,
                              4,
                              5,
                              8,
                              15,
                              16,
                              17,
                              31,
                              32,
                              33,
                              63,
                              64,
                              127,
                              128,
                              255,
                              256,
                              32767,
                              32768,
                              65535,
                              65536,
                              0x7fffffff,
                              0x80000000,
                              0xffffffff,
                              0x100000000,
                              0x7fffffffffffffff,
                              0x8000000000000000,
                              0xffffffffffffffff,
                              0xfffffffffffffff0};
  for (size_t width : {1u, 2u, 4u, 8u})
    for (size_t at = 0; at + width <= blob.bytes; at += width) {
      const bool overlaps_seal =
          (at + width > offsetof(BlobHeader, total_bytes) && at < offsetof(BlobHeader, params)) ||
          (at + width > offsetof(BlobHeader, checksum) && at < sizeof(BlobHeader)) ||
          (at + width > offsetof(BlobHeader, format) && at < offsetof(BlobHeader, value_type));
      if (overlaps_seal) continue;
      for (uint64_t word : hostile) {
        if (width < 8 && word >> (8 * width) != 0) continue;
        const Blob forged = copy_of(blob);
        std::memcpy(forged.data.get() + at, &word, width);
        seal_blob(forged.data.get());
        if (!refused_or_canonical(format, forged))
          std::fprintf(stderr, "  the forgery: byte %zu, width %zu, value %llu\n", at, width,
                       static_cast<unsigned long long>(word));
      }
    }
}

// Every shorter buffer, a longer one, and a total size that lies.
template <class Format>
void check_truncation(const Format& format, const Blob& blob) {
  for (size_t bytes = 0; bytes < blob.bytes; ++bytes) {
    const auto* first = reinterpret_cast<const uint64_t*>(blob.data.get());
    std::vector<uint64_t> part(first, first + (bytes + 7) / 8);
    part.reserve(1);  // an empty vector may have no address
    SI_CHECK_EQ(status_of([&] { unpack(format, part.data(), bytes); }), SI_ERR_CORRUPT);
  }
  Blob longer;
  longer.bytes = blob.bytes + kSectionAlign;
  longer.data.reset(static_cast<uint8_t*>(std::aligned_alloc(kSectionAlign, longer.bytes)));
  std::memset(longer.data.get(), 0, longer.bytes);
  std::memcpy(longer.data.get(), blob.data.get(), blob.bytes);
  expect_corrupt(format, longer, "bytes");
  reinterpret_cast<BlobHeader*>(longer.data.get())->total_bytes = longer.bytes;
  seal_blob(longer.data.get());
  expect_corrupt(format, longer, "size does not match");
}

template <class Format>
void check_attacks(const Format& format, const Blob& blob) {
  check_damage(format, blob);
  check_forgeries(format, blob);
  check_truncation(format, blob);
}

// The golden buffers of one format: compared byte for byte, or written by `--write-golden DIR`.
class Golden {
 public:
  Golden(const char* format, int argc, char** argv)
      : folder_(std::string(SI_SOURCE_DIR "/csrc/formats/") + format + "/golden") {
    if (argc == 3 && std::string(argv[1]) == "--write-golden") {
      folder_ = argv[2];
      writing_ = true;
    }
  }
  bool writing() const { return writing_; }

  template <class Format>
  void check(const std::string& name, const Format& format, const std::vector<float>& weight,
             const WeightShape& shape) {
    const Blob blob = pack(format, weight, shape);
    const std::string path = folder_ + "/" + name + ".bin";
    if (writing_) {
      const std::string temporary = path + ".tmp";
      std::ofstream(temporary, std::ios::binary)
          .write(reinterpret_cast<const char*>(blob.data.get()), static_cast<std::streamsize>(blob.bytes));
      SI_CHECK_EQ(std::rename(temporary.c_str(), path.c_str()), 0);
      return;
    }
    std::ifstream file(path, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!SI_CHECK_EQ(content.size(), blob.bytes)) return;
    SI_CHECK(std::memcmp(content.data(), blob.data.get(), blob.bytes) == 0);
    const Blob stored = copy_of(blob);
    std::memcpy(stored.data.get(), content.data(), content.size());
    SI_CHECK(same_weight(unpack(format, stored.data.get(), stored.bytes), weight));
  }

 private:
  std::string folder_;
  bool writing_ = false;
};

}  // namespace si::testing
