#include "core/error.h"

#include <cstdio>
#include <cstring>

namespace si {

namespace {

thread_local char t_message[Message::kBytes] = "";
thread_local si_status t_status = SI_OK;

}  // namespace

void Message::add(const char* text) {
  const size_t length = std::strlen(text), room = kBytes - 1 - used_;
  const size_t taken = length < room ? length : room;
  std::memcpy(text_ + used_, text, taken);
  used_ += taken;
  text_[used_] = '\0';
}

void Message::add_signed(long long number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%lld", number);
  add(digits);
}

void Message::add_unsigned(unsigned long long number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%llu", number);
  add(digits);
}

void Message::add_real(double number) {
  // The largest double has 309 digits before the point.
  char digits[352];
  std::snprintf(digits, sizeof digits, "%f", number);
  add(digits);
}

void Message::copy_to(char* out, size_t bytes) const {
  const size_t taken = used_ < bytes ? used_ : bytes - 1;
  std::memcpy(out, text_, taken);
  out[taken] = '\0';
}

const char* last_message() { return t_message; }
si_status last_status() { return t_status; }

si_status keep_message(si_status status, const char* text) {
  const size_t length = std::strlen(text), taken = length < Message::kBytes ? length : Message::kBytes - 1;
  std::memmove(t_message, text, taken);
  t_message[taken] = '\0';
  t_status = status;
  return status;
}

}  // namespace si
