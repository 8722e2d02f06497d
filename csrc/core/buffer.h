// An array on the heap whose allocation fails with a status.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "core/error.h"

namespace si {

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "elements are neither constructed nor destroyed");

 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Makes it an array of `count` elements of zero bytes; what it held is lost.
  [[nodiscard]] si_status allocate(int64_t count) {
    std::free(data_);
    size_ = 0;
    data_ = nullptr;
    if (count == 0) return SI_OK;
    if (count > 0 && static_cast<uint64_t>(count) <= SIZE_MAX / sizeof(T))
      data_ = static_cast<T*>(std::calloc(static_cast<size_t>(count), sizeof(T)));
    SI_REQUIRE(data_ != nullptr, SI_ERR_MEMORY, "out of memory: ", count, " elements of ", sizeof(T), " bytes");
    size_ = count;
    return SI_OK;
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  T& operator[](int64_t at) { return data_[at]; }
  const T& operator[](int64_t at) const { return data_[at]; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace si
