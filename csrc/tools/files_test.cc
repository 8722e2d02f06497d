// The files that sparseinfer-run reads, whole and damaged: whatever their bytes, nothing past a tensor is written.
#include <unistd.h>

#include <cstdarg>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "testing/check.h"
extern "C" {
#include "tools/complain.h"
#include "tools/image.h"
#include "tools/npy.h"
}
#include <vector>

static std::string g_complaint;

extern "C" int complain(const char* format, ...) {
  char text[1024];
  va_list parts;
  va_start(parts, format);
  std::vsnprintf(text, sizeof text, format, parts);
  va_end(parts);
  g_complaint = text;
  return 0;
}

namespace {

// A file with these bytes, for as long as this lives.
class Kept {
 public:
  explicit Kept(const std::string& bytes) {
    const int file = mkstemp(path_);
    SI_CHECK(file >= 0);
    SI_CHECK_EQ(write(file, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    close(file);
  }
  ~Kept() { unlink(path_); }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  const char* path() const { return path_; }

 private:
  char path_[32] = "/tmp/sparseinfer-XXXXXX";
};

si_tensor_info tensor(const std::vector<int64_t>& shape) {
  si_tensor_info info{};
  info.struct_size = sizeof info;
  info.name = "x";
  info.ndim = static_cast<int32_t>(shape.size());
  info.bytes = sizeof(float);
  for (size_t i = 0; i < shape.size(); ++i) {
    info.shape[i] = shape[i];
    info.bytes *= static_cast<uint64_t>(shape[i]);
  }
  return info;
}

using Reader = std::function<int(const char*, const si_tensor_info*, float*)>;

// What a reader makes of a file: of exactly as many elements as the tensor has; empty where it refuses.
std::vector<float> read_bytes(const Reader& reader, const std::string& bytes, const si_tensor_info& info) {
  const Kept file(bytes);
  std::vector<float> out(info.bytes / sizeof(float) + 2, 77.0f);
  g_complaint.clear();
  const int done = reader(file.path(), &info, out.data() + 1);
  SI_CHECK_EQ(out.front(), 77.0f);
  SI_CHECK_EQ(out.back(), 77.0f);
  SI_CHECK_EQ(done == 0, !g_complaint.empty());
  if (done == 0) return {};
  return {out.begin() + 1, out.end() - 1};
}

void refused(const Reader& reader, const std::string& bytes, const si_tensor_info& info, const char* part) {
  SI_CHECK(read_bytes(reader, bytes, info).empty());
  if (!SI_CHECK(g_complaint.find(part) != std::string::npos))
    std::fprintf(stderr, "  expected '%s' in '%s'\n", part, g_complaint.c_str());
}

std::string npy(const std::string& dictionary, const std::string& elements, char version = 1) {
  std::string file = std::string("\x93NUMPY") + version + '\0';
  const size_t length = dictionary.size() + 1;
  file += static_cast<char>(length & 255);
  file += static_cast<char>(length >> 8);
  if (version > 1) file += std::string(2, '\0');
  return file + dictionary + "\n" + elements;
}

std::string bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

const std::vector<float> kValues = {1.0f, -2.0f, 3.5f, 0.0f, 1e30f, 6.0f};
constexpr char kDictionary[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";

void test_npy() {
  const si_tensor_info info = tensor({2, 3});
  const std::string elements = bytes_of(kValues);
  for (char version : {1, 2, 3}) SI_CHECK(read_bytes(npy_read, npy(kDictionary, elements, version), info) == kValues);
  SI_CHECK(read_bytes(npy_read, npy("{\"shape\":(2,3),'descr':'<f4','fortran_order':False}", elements), info) ==
           kValues);
  SI_CHECK(read_bytes(npy_read, npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3)}", "\1\2\xff\4\5\6"),
                      info) == std::vector<float>({1, 2, 255, 4, 5, 6}));
  SI_CHECK(read_bytes(npy_read, npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", elements.substr(0, 4)),
                      tensor({})) == std::vector<float>({1}));
  const struct {
    std::string dictionary;
    const char* part;
  } wrong[] = {
      {"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3)}", "float32"},
      {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}", "float32"},
      {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}", "Fortran"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)}", "[2, 3]"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", "[2, 3]"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 1)}", "[2, 3]"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999)}", "header"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3)}", "header"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 2, 3)}", "header"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}", "header"},
      {"{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}", "header"},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3)}", "header"},
      {"{'descr': '<f4<f4<f4<f4', 'fortran_order': False, 'shape': (2, 3)}", "header"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", "header"},
      {"{'descr': '<f4', 'shape': (2, 3)}", "header"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}", "header"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} + evil", "header"},
      {std::string(kDictionary) + '\0', "header"},
      {"", "header"},
  };
  for (const auto& each : wrong) refused(npy_read, npy(each.dictionary, elements), info, each.part);
  refused(npy_read, npy(kDictionary, elements + "x"), info, "6 elements");
  refused(npy_read, npy(kDictionary, elements, 4), info, "header");
  refused(npy_read, npy(std::string(60000, ' '), elements), info, "header");
  refused(npy_read, npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3)}", "12345"), info, "6 elements");
  const std::string whole = npy(kDictionary, elements);
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) refused(npy_read, whole.substr(0, bytes), info, "expected");
  // Any other byte anywhere in the header either is refused or means the same.
  for (size_t at = 0; at < whole.size() - elements.size(); ++at)
    for (int byte = 0; byte < 256; byte += 5) {
      std::string changed = whole;
      changed[at] = static_cast<char>(byte);
      const std::vector<float> got = read_bytes(npy_read, changed, info);
      SI_CHECK(got.empty() || got == kValues);
    }
  SI_CHECK_EQ(npy_read("/none/at/all.npy", &info, nullptr), 0);
}

void test_npy_written() {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{2, 3}, {6}, {1, 1, 6}, {1, 1, 1, 1, 1, 1, 2, 3}}) {
    const si_tensor_info info = tensor(shape);
    const Kept file("");
    SI_CHECK_EQ(npy_write(file.path(), &info, kValues.data()), 1);
    std::vector<float> got(kValues.size());
    SI_CHECK_EQ(npy_read(file.path(), &info, got.data()), 1);
    SI_CHECK(got == kValues);
    std::ifstream in(file.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    SI_CHECK_EQ((bytes.size() - sizeof(float) * kValues.size()) % 64, 0u);
  }
  const si_tensor_info info = tensor({2, 3});
  SI_CHECK_EQ(npy_write("/none/at/all.npy", &info, kValues.data()), 0);
}

const Normalisation kPlain = {{0, 0, 0}, {1, 1, 1}};
int read_plain(const char* path, const si_tensor_info* info, float* out) {
  return image_read(path, &kPlain, info, out);
}

std::string word(uint32_t value) {
  std::string out;
  for (int i = 0; i < 4; ++i) out += static_cast<char>(value >> 8 * i);
  return out;
}

std::string bmp(int32_t width, int32_t height, const std::string& pixels, char bits = 24, uint32_t begin = 54,
                uint32_t compression = 0) {
  return "BM" + word(54 + static_cast<uint32_t>(pixels.size())) + word(0) + word(begin) + word(40) +
         word(static_cast<uint32_t>(width)) + word(static_cast<uint32_t>(height)) + std::string{1, 0, bits, 0} +
         word(compression) + word(0) + word(0) + word(0) + word(0) + word(0) + pixels;
}

void test_images() {
  // Two pixels of a row: red, green, blue.
  const si_tensor_info info = tensor({1, 3, 1, 2});
  const std::vector<float> expected = {0.0f, 1.0f, 0.2f, 0.4f, 0.6f, 0.8f};
  const std::string pixels("\x00\x33\x99\xff\x66\xcc", 6);
  const auto near = [](const std::vector<float>& a, const std::vector<float>& b) {
    bool same = a.size() == b.size();
    for (size_t i = 0; same && i < a.size(); ++i) same = std::abs(a[i] - b[i]) < 1e-6f;
    return same;
  };
  SI_CHECK(near(read_bytes(read_plain, "P6 2 1 255\n" + pixels, info), expected));
  SI_CHECK(near(read_bytes(read_plain, "P6\n# a comment\n2\t1\n#another\n255\n" + pixels, info), expected));
  SI_CHECK(near(read_bytes(read_plain, std::string("P5 2 1 5\n\0\5", 11), tensor({1, 1, 1, 2})), {0.0f, 1.0f}));
  const std::string turned("\x99\x33\x00\xcc\x66\xff", 6);
  SI_CHECK(near(read_bytes(read_plain, bmp(2, 1, turned + "\1\1"), info), expected));
  SI_CHECK(near(read_bytes(read_plain, bmp(2, -1, turned + "\1\1"), info), expected));
  SI_CHECK(
      near(read_bytes(read_plain, bmp(2, 1, std::string("\x99\x33\x00\xaa\xcc\x66\xff\xaa", 8), 32), info), expected));
  // Rows stand from the bottom, unless the height is negative.
  const si_tensor_info tall = tensor({1, 3, 2, 1});
  const std::string rows("\1\2\3\0\4\5\6\0", 8);
  SI_CHECK(near(read_bytes(read_plain, bmp(1, 2, rows), tall),
                {6 / 255.f, 3 / 255.f, 5 / 255.f, 2 / 255.f, 4 / 255.f, 1 / 255.f}));
  SI_CHECK(near(read_bytes(read_plain, bmp(1, -2, rows), tall),
                {3 / 255.f, 6 / 255.f, 2 / 255.f, 5 / 255.f, 1 / 255.f, 4 / 255.f}));
  const Normalisation rule = {{0.5, 0.25, 0}, {0.5, 0.25, 2}};
  const Reader normal = [&](const char* path, const si_tensor_info* x, float* out) {
    return image_read(path, &rule, x, out);
  };
  SI_CHECK(near(read_bytes(normal, "P6 2 1 255\n" + pixels, info), {-1.0f, 1.0f, -0.2f, 0.6f, 0.3f, 0.4f}));

  const struct {
    std::string bytes;
    const char* part;
  } wrong[] = {
      {"P6 1 2 255\n" + pixels, "2 x 1 pixels"},
      {"P6 2 2 255\n" + pixels, "2 x 1 pixels"},
      {"P5 2 1 255\n" + pixels, "3 channels"},
      {"P6 2 1 256\n" + pixels, "255"},
      {"P6 2 1 0\n" + pixels, "255"},
      {"P6 -2 1 255\n" + pixels, "header"},
      {"P6 99999999999999999999 1 255\n" + pixels, "header"},
      {"P6 2 1 255", "header"},
      {"P6 # no end", "header"},
      {"P3 2 1 255\n0 0 0 0 0 0", "another kind"},
      {"", "another kind"},
      {"\x89PNG", "another kind"},
      {bmp(2, 1, turned, 8), "24 or 32"},
      {bmp(2, 1, turned, 24, 54, 1), "24 or 32"},
      {bmp(2, 1, turned, 24, 4), "byte 4"},
      {bmp(2, 1, turned, 24, 0xffffffff), "byte 4294967295"},
      {bmp(2, 1, turned, 24, 1000), "ends in row 0"},
      {bmp(INT32_MIN, 1, turned), "2 x 1 pixels"},
      {bmp(2, INT32_MIN, turned), "2 x 1 pixels"},
  };
  for (const auto& each : wrong) refused(read_plain, each.bytes, info, each.part);
  for (const std::string& whole : {"P6 2 1 255\n" + pixels, bmp(2, 1, turned)})
    for (size_t bytes = 0; bytes < whole.size(); ++bytes) refused(read_plain, whole.substr(0, bytes), info, "expected");
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{3, 1, 2}, {2, 3, 1, 2}, {1, 2, 1, 2}, {6}})
    refused(read_plain, "P6 2 1 255\n" + pixels, tensor(shape), "for an image");
}

}  // namespace

int main() {
  test_npy();
  test_npy_written();
  test_images();
  return si::testing::finish("files_test");
}
