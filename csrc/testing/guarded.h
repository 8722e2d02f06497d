// Memory whose end shows: a page that nothing may touch lies after it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#include "testing/check.h"

namespace si::testing {

// `bytes` bytes that end where a page begins that cannot be read or written.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    size_ = (bytes + page_ - 1) / page_ * page_ + page_;
    void* const pages = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SI_CHECK(pages != MAP_FAILED);
    pages_ = static_cast<uint8_t*>(pages);
    SI_CHECK_EQ(mprotect(pages_ + size_ - page_, page_, PROT_NONE), 0);
    data_ = pages_ + size_ - page_ - bytes;
  }
  ~Guarded() { munmap(pages_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  uint8_t* data() const { return data_; }

 private:
  size_t page_, size_ = 0;
  uint8_t *pages_ = nullptr, *data_ = nullptr;
};

}  // namespace si::testing
