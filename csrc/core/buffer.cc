#include "core/buffer.h"

namespace si {

si_status AnyBuffer::allocate_elements(int64_t count, size_t bytes) {
  std::free(data_);
  size_ = 0;
  data_ = nullptr;
  if (count == 0) return SI_OK;
  if (count > 0 && static_cast<uint64_t>(count) <= SIZE_MAX / bytes)
    data_ = std::calloc(static_cast<size_t>(count), bytes);
  SI_REQUIRE(data_ != nullptr, SI_ERR_MEMORY, "out of memory: ", count, " elements of ", bytes, " bytes");
  size_ = count;
  return SI_OK;
}

}  // namespace si
