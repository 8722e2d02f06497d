#include "formats/blob.h"

#include <utility>

#include "formats/csr/csr.h"
#include "formats/format_test.h"

namespace {

using si::testing::make_shape;
using si::testing::status_of;

void test_shapes() {
  std::string message;
  const auto refuse = [&](const std::vector<int64_t>& dims, int64_t groups, const char* fragment) {
    SI_CHECK_EQ(status_of([&] { make_shape(dims, groups); }, &message), SI_ERR_ARGUMENT);
    SI_CHECK(message.find(fragment) != std::string::npos);
  };
  refuse({3}, 1, "2 to 4 dimensions, got 1");
  refuse({1, 1, 1, 1, 1}, 1, "2 to 4 dimensions, got 5");
  refuse({0, 3}, 1, "got 0 in dimension 0");
  refuse({3, 3, -1}, 1, "got -1 in dimension 2");
  refuse({1, int64_t{1} << 31}, 1, "dimension 1");
  refuse({1, INT64_MAX}, 1, "dimension 1");
  refuse({65536, 65537}, 1, "at most 2^32 elements");
  refuse({0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff}, 1, "at most 2^32 elements");
  refuse({1, 65536, 65536}, 1, "at most 2^31-1 input columns");
  refuse({6, 3, 3}, 0, "groups");
  refuse({6, 3, 3}, -2, "groups");
  refuse({6, 3, 3}, 4, "groups");
  refuse({6, 3, 3}, 12, "groups");
  refuse({6, 3}, 2, "groups = 1 for a linear weight");
  const si::WeightShape shape = make_shape({6, 2, 5, 3}, 3);
  SI_CHECK_EQ(shape.M(), 6);
  SI_CHECK_EQ(shape.K(), 30);
  SI_CHECK_EQ(make_shape({65536, 65536}, 1).M(), 65536);
}

void test_sections() {
  si::SectionPlan plan;
  SI_CHECK_EQ(plan.add(0, 4), 128u);
  SI_CHECK_EQ(plan.add(1, 1), 192u);
  SI_CHECK_EQ(plan.add(16, 4), 320u);
  SI_CHECK_EQ(plan.total(), 448u);
  plan.add((uint64_t{1} << 40) + 1, 1);
  SI_CHECK_EQ(plan.total(), UINT64_MAX);
  si::OwnedBlob blob;
  SI_CHECK_EQ(si::new_blob({}, plan, &blob), SI_ERR_ARGUMENT);
  SI_CHECK(std::string(si::last_message()).find("2^40 elements") != std::string::npos);
  // Sections of a size that no memory holds.
  si::SectionPlan large;
  for (int i = 0; i < si::SectionPlan::kMost; ++i) large.add(uint64_t{1} << 40, uint64_t{1} << 16);
  SI_CHECK_EQ(si::new_blob({}, large, &blob), SI_ERR_MEMORY);
  SI_CHECK(blob.data == nullptr);
}

void test_header() {
  const float weight[6] = {1, 0, 2, 0, 3, 0};
  si::OwnedBlob packed;
  SI_CHECK_EQ(si::csr_pack(weight, make_shape({2, 3}, 1), {}, &packed), SI_OK);
  const size_t bytes = packed.bytes;
  const si::BlobPtr& blob = packed.data;
  const auto check = [&](const void* at) { return si::check_header(at, bytes); };
  SI_CHECK_EQ(check(blob.get()), SI_OK);
  SI_CHECK_EQ(check(nullptr), SI_ERR_ARGUMENT);
  SI_CHECK_EQ(check(blob.get() + 4), SI_ERR_ARGUMENT);

  auto& header = *reinterpret_cast<si::BlobHeader*>(blob.get());
  const si::BlobHeader good = header;
  const auto refuse = [&](auto change) {
    change(header);
    si::seal_blob(blob.get());
    SI_CHECK_EQ(check(blob.get()), SI_ERR_CORRUPT);
    header = good;
  };
  refuse([](si::BlobHeader& h) { h.magic[0] = 's'; });
  refuse([](si::BlobHeader& h) { h.version = 0; });
  refuse([](si::BlobHeader& h) { h.version = 2; });
  for (uint32_t ndim : {0u, 1u, 3u, 4u, 5u, 0x80000002u}) refuse([&](si::BlobHeader& h) { h.ndim = ndim; });
  for (uint32_t dim : {0u, 0x80000000u, 0xffffffffu}) refuse([&](si::BlobHeader& h) { h.shape[1] = dim; });
  refuse([](si::BlobHeader& h) { h.shape[0] = h.shape[1] = 0x7fffffff; });
  refuse([](si::BlobHeader& h) { h.shape[2] = 1; });
  for (uint32_t groups : {0u, 2u, 3u, 0xffffffffu}) refuse([&](si::BlobHeader& h) { h.groups = groups; });
  refuse([](si::BlobHeader& h) { h.flags = 1; });
  refuse([](si::BlobHeader& h) { h.reserved = 1; });
  header.total_bytes = UINT64_MAX;
  SI_CHECK_EQ(check(blob.get()), SI_ERR_CORRUPT);
}

// Damage in two words must not cancel out: the sign bits of two weights are the top bits of their words.
void test_two_words() {
  const std::vector<float> weight(64, 1.0f);
  si::OwnedBlob packed;
  SI_CHECK_EQ(si::csr_pack(weight.data(), make_shape({1, 64}, 1), {}, &packed), SI_OK);
  const size_t bytes = packed.bytes;
  const si::BlobPtr& blob = packed.data;
  for (int bit = 0; bit < 64; ++bit)
    for (const auto& [first, second] : std::vector<std::pair<int, int>>{{0, 1}, {0, 31}, {7, 9}}) {
      uint64_t* words = reinterpret_cast<uint64_t*>(blob.get() + bytes - 320);  // the values
      words[first] ^= uint64_t{1} << bit;
      words[second] ^= uint64_t{1} << bit;
      SI_CHECK_EQ(si::check_header(blob.get(), bytes), SI_ERR_CORRUPT);
      words[first] ^= uint64_t{1} << bit;
      words[second] ^= uint64_t{1} << bit;
    }
  SI_CHECK_EQ(si::check_header(blob.get(), bytes), SI_OK);
}

// Sums that are taken side by side are those of each blob by itself, however many and of whatever sizes.
void test_many_sums() {
  std::vector<si::OwnedBlob> blobs(11);
  std::vector<si::BlobBytes> bytes;
  for (size_t i = 0; i < blobs.size(); ++i) {
    const auto columns = static_cast<int64_t>(1 + i * i * i % 97);
    const std::vector<float> weight(static_cast<size_t>(columns), 1.0f);
    SI_CHECK_EQ(si::csr_pack(weight.data(), make_shape({1, columns}, 1), {}, &blobs[i]), SI_OK);
    bytes.push_back({blobs[i].data.get(), blobs[i].bytes});
  }
  for (size_t count = 0; count <= blobs.size(); ++count)
    for (size_t damaged = 0; damaged <= count; ++damaged) {
      bool matches[11];
      std::fill(matches, matches + 11, true);
      uint8_t* const last = damaged < count ? blobs[damaged].data.get() + blobs[damaged].bytes - 1 : nullptr;
      if (last != nullptr) *last ^= 1;
      si::check_blob_sums(bytes.data(), static_cast<int64_t>(count), matches);
      if (last != nullptr) *last ^= 1;
      for (size_t i = 0; i < count; ++i) SI_CHECK_EQ(matches[i], i != damaged);
    }
  // What is no blob: the header alone, less, and no whole words.
  const uint64_t sizes[] = {0, 8, 127, 128, bytes[3].bytes - 1};
  std::vector<si::BlobBytes> bad;
  for (const uint64_t size : sizes) bad.push_back({bytes[3].data, size});
  bad.push_back(bytes[3]);
  bool matches[6];
  si::check_blob_sums(bad.data(), 6, matches);
  for (size_t i = 0; i < 6; ++i) SI_CHECK_EQ(matches[i], i == 5);
}

}  // namespace

int main() {
  test_shapes();
  test_sections();
  test_header();
  test_two_words();
  test_many_sums();
  return si::testing::finish("blob_test");
}
