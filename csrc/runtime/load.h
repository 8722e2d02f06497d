// The bytes of a file that is opened by its name: read into memory, or mapped.
#pragma once

#include <sparseinfer.h>

#include <cstddef>

namespace si {

class FileBytes {
 public:
  FileBytes() = default;
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  [[nodiscard]] si_status load(const char* path, si_load how);
  // Takes over what the other holds, which then holds nothing.
  void take(FileBytes* other);
  const void* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
};

}  // namespace si
