#include "runtime/load.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#if SI_FILES
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "core/error.h"
#include "runtime/file.h"

namespace si {

void FileBytes::take(FileBytes* other) {
  std::swap(data_, other->data_);
  std::swap(size_, other->size_);
  std::swap(mapped_, other->mapped_);
}

#if SI_FILES

namespace {

// An open file, closed at the end.
class Descriptor {
 public:
  // A pipe that nobody writes to would let an opening wait for ever.
  explicit Descriptor(const char* path) : number_(::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  const int number_;
};

si_status failed(const char* path, const char* what) {
  return fail(SI_ERR_FILE, "expected to ", what, " '", path, "', got: ", std::strerror(errno));
}

si_status read_all(int file, const char* path, uint8_t* out, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t got = ::read(file, out + done, bytes - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed(path, "read");
    SI_REQUIRE(got > 0, SI_ERR_FILE, "expected ", bytes, " bytes of '", path, "', got ", done,
               ": it became shorter while it was read");
    done += static_cast<size_t>(got);
  }
  return SI_OK;
}

}  // namespace

FileBytes::~FileBytes() {
  if (mapped_)
    munmap(data_, size_);
  else
    std::free(data_);
}

si_status FileBytes::load(const char* path, si_load how) {
  const Descriptor file(path);
  if (file.number() < 0) return failed(path, "open");
  struct stat facts{};
  if (fstat(file.number(), &facts) != 0) return failed(path, "look at");
  SI_REQUIRE(S_ISREG(facts.st_mode), SI_ERR_FILE, "expected a regular file, got '", path, "'");
  if (facts.st_size == 0) return bad_model("'", path, "' is empty");
  SI_REQUIRE(static_cast<uint64_t>(facts.st_size) <= SIZE_MAX / 2, SI_ERR_UNSUPPORTED,
             "expected a file that fits this ", "machine's addresses, got ", static_cast<uint64_t>(facts.st_size),
             " bytes");
  const auto size = static_cast<size_t>(facts.st_size);
  if (how == SI_LOAD_MAP) {
    void* const pages = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number(), 0);
    if (pages == MAP_FAILED) return failed(path, "map");
    data_ = pages;
    size_ = size;
    mapped_ = true;
    return SI_OK;
  }
  data_ = std::aligned_alloc(kModelAlign, static_cast<size_t>(aligned(size)));
  SI_REQUIRE(data_ != nullptr, SI_ERR_MEMORY, "out of memory: ", size, " bytes of '", path, "'");
  size_ = size;
  return read_all(file.number(), path, static_cast<uint8_t*>(data_), size);
}

#else

FileBytes::~FileBytes() { std::free(data_); }

si_status FileBytes::load(const char*, si_load) {
  return fail(SI_ERR_UNSUPPORTED, "this library was built without files; try si_model_open with the file in memory");
}

#endif

}  // namespace si
