// An array on the heap whose allocation fails with a status.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "core/error.h"

namespace si {

// Of elements of whatever type.
class AnyBuffer {
 public:
  AnyBuffer() = default;
  ~AnyBuffer() { std::free(data_); }
  AnyBuffer(const AnyBuffer&) = delete;
  AnyBuffer& operator=(const AnyBuffer&) = delete;
  int64_t size() const { return size_; }

 protected:
  [[nodiscard]] si_status allocate_elements(int64_t count, size_t bytes);

  void* data_ = nullptr;
  int64_t size_ = 0;
};

template <class T>
class Buffer : public AnyBuffer {
  static_assert(std::is_trivially_copyable_v<T>, "elements are neither constructed nor destroyed");

 public:
  // Makes it an array of `count` elements of zero bytes; what it held is lost.
  [[nodiscard]] si_status allocate(int64_t count) { return allocate_elements(count, sizeof(T)); }

  T* data() { return static_cast<T*>(data_); }
  const T* data() const { return static_cast<const T*>(data_); }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  T& operator[](int64_t at) { return data()[at]; }
  const T& operator[](int64_t at) const { return data()[at]; }
};

}  // namespace si
