#include "formats/csr/csr.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "formats/format_test.h"

namespace {

using si::testing::Blob;
using si::testing::expect_forgery_refused;
using si::testing::make_shape;
using si::testing::need;
using si::testing::Random;

struct Csr {
  Csr under(const si::BlobHeader&) const { return *this; }
  Blob pack(const float* weight, const si::WeightShape& shape) const {
    si_pack_options options{};
    Blob blob;
    need(si::csr_pack(weight, shape, options, &blob));
    return blob;
  }
  void validate(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::CsrView view{};
    need(si::csr_validate(header, blob, bytes, &view));
  }
  std::vector<float> unpack(const si::BlobHeader& header, const void* blob, size_t bytes) const {
    si::CsrView view{};
    need(si::csr_validate(header, blob, bytes, &view));
    std::vector<float> weight(static_cast<size_t>(view.shape.M() * view.shape.K()));
    si::csr_unpack(view, weight.data());
    return weight;
  }
};

const Csr csr;

// 3 x 5: rows of 2, 0 and 3 non-zeros.
Blob small_blob() {
  return si::testing::pack(csr, {0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 3, 0, 4, 0, 5}, make_shape({3, 5}, 1));
}

void test_content() {
  const Blob blob = small_blob();
  const si::CsrView view = si::testing::open_view(si::csr_validate, blob.data.get(), blob.bytes);
  const std::vector<uint32_t> rows(view.row, view.row + 4), columns(view.column, view.column + 5);
  SI_CHECK(rows == std::vector<uint32_t>{0, 2, 2, 5});
  SI_CHECK(columns == std::vector<uint32_t>{1, 3, 0, 2, 4});
  SI_CHECK(std::vector<float>(view.value, view.value + 5) == std::vector<float>{1, 2, 3, 4, 5});
  SI_CHECK_EQ(view.nnz, 5u);
  si_weight_info info{};
  std::fill(info.sections, info.sections + 4, 9u);
  si::csr_describe(view, blob.data.get(), &info);
  const uint64_t* offsets = info.sections;
  SI_CHECK_EQ(offsets[0], 128u);  // 16 bytes and 64 zero ones, rounded up
  SI_CHECK_EQ(offsets[1], 256u);
  SI_CHECK_EQ(offsets[2], 384u);
  SI_CHECK_EQ(offsets[3], 0u);
  SI_CHECK_EQ(blob.bytes, 512u);
}

void test_special_values() {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const float tiny = std::numeric_limits<float>::denorm_min();
  si::testing::check_round_trip(csr, {-0.0f, inf, nan, -inf, 0.0f, -tiny, tiny, -0.0f}, make_shape({2, 4}, 1));
}

// More columns than 16 bits count: what no other format holds.
void test_wide() {
  std::vector<float> weight(2 * 70000);
  weight[65535] = 1;
  weight[65536] = 2;
  weight[139999] = 3;
  si::testing::check_round_trip(csr, weight, make_shape({2, 70000}, 1));
}

void test_forgeries() {
  const Blob blob = small_blob();
  const auto row = [](uint8_t* bytes) { return reinterpret_cast<uint32_t*>(bytes + 128); };
  const auto column = [](uint8_t* bytes) { return reinterpret_cast<uint32_t*>(bytes + 256); };
  const auto value = [](uint8_t* bytes) { return reinterpret_cast<float*>(bytes + 384); };
  const auto refuse = [&](const char* fragment, auto change) { expect_forgery_refused(csr, blob, fragment, change); };

  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[0] = 1; });
  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[1] = 6; });
  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[1] = 0xffffffff; });
  refuse("row starts decrease", [&](auto&, uint8_t* b) { row(b)[2] = 1; });
  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[3] = 4; });
  refuse("row starts", [&](auto&, uint8_t* b) { row(b)[3] = 0xffffffff; });
  refuse("out of range", [&](auto&, uint8_t* b) { column(b)[1] = 5; });
  refuse("out of range", [&](auto&, uint8_t* b) { column(b)[4] = 0xffffffff; });
  refuse("do not increase", [&](auto&, uint8_t* b) { column(b)[1] = 1; });
  refuse("do not increase", [&](auto&, uint8_t* b) { column(b)[3] = 0; });
  refuse("is zero", [&](auto&, uint8_t* b) { value(b)[2] = 0.0f; });
  refuse("is zero", [&](auto&, uint8_t* b) { value(b)[2] = -0.0f; });
  refuse("past the end", [&](auto&, uint8_t* b) { column(b)[5] = 1; });
  refuse("past the end", [&](auto&, uint8_t* b) { b[511] = 1; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.nnz = 4; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = h.nnz = UINT64_MAX; });
  refuse("counts", [&](si::BlobHeader& h, uint8_t*) { h.counts[1] = 1; });
  refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = h.nnz = UINT32_MAX; });
  // The section sizes are rounded up, so that one count fewer needs as many bytes.
  refuse("past the end", [&](si::BlobHeader& h, uint8_t*) { h.counts[0] = h.nnz = 4; });
  refuse("row starts", [&](si::BlobHeader& h, uint8_t* b) {
    h.counts[0] = h.nnz = 4;
    column(b)[4] = 0;
    value(b)[4] = 0;
  });
  refuse("past the end", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 2; });
  refuse("row starts", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 4; });
  refuse("size does not match", [&](si::BlobHeader& h, uint8_t*) { h.shape[0] = 0x7fffffff, h.shape[1] = 1; });
  refuse("out of range", [&](si::BlobHeader& h, uint8_t*) { h.shape[1] = 4; });
  refuse("value type", [&](si::BlobHeader& h, uint8_t*) { h.value_type = SI_F16; });
  refuse("index width", [&](si::BlobHeader& h, uint8_t*) { h.params[0] = 16; });
  refuse("parameter", [&](si::BlobHeader& h, uint8_t*) { h.params[7] = 1; });
}

void test_golden(si::testing::Golden& golden) {
  Random random(1);
  const si::WeightShape linear = make_shape({5, 37}, 1);
  golden.check("linear_5x37", csr, si::testing::random_weight(linear, 30, random), linear);
  const si::WeightShape conv = make_shape({6, 2, 3, 3}, 2);
  golden.check("conv_6x2x3x3_groups2", csr, si::testing::random_weight(conv, 40, random), conv);
  const si::WeightShape zero = make_shape({3, 4}, 1);
  golden.check("zero_3x4", csr, std::vector<float>(12), zero);
}

}  // namespace

int main(int argc, char** argv) {
  si::testing::Golden golden("csr", argc, argv);
  test_golden(golden);
  if (golden.writing()) return si::testing::finish("csr_test --write-golden");

  Random random(2);
  si::testing::check_round_trips(csr, random);
  test_content();
  test_special_values();
  test_wide();
  test_forgeries();
  si::testing::check_attacks(csr, small_blob());
  const si::WeightShape conv = make_shape({4, 2, 2, 2}, 2);
  si::testing::check_attacks(csr, si::testing::pack(csr, si::testing::random_weight(conv, 40, random), conv));
  return si::testing::finish("csr_test");
}
