#include "core/error.h"

#include <cstdio>
#include <cstring>

namespace si {

namespace {

#if SI_MESSAGES
thread_local char t_message[Message::kBytes] = "";
#endif
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

namespace detail {

si_status fail_with(si_status status, const char* kinds, const Part* parts) {
  Message message;
  for (; *kinds != '\0'; ++kinds, ++parts) {
    switch (*kinds) {
      case 't':
        message.add(parts->text);
        break;
      case 'i':
        message.add(parts->number);
        break;
      case 'u':
        message.add(parts->natural);
        break;
      case 'f':
        message.add(parts->real);
        break;
    }
  }
  return keep_message(status, message.text());
}

}  // namespace detail

const char* last_message() {
#if SI_MESSAGES
  return t_message;
#else
  return t_status == SI_OK ? "" : "no message: the library was built with SPARSEINFER_MESSAGES=OFF";
#endif
}
si_status last_status() { return t_status; }

si_status keep_message(si_status status, [[maybe_unused]] const char* text) {
#if SI_MESSAGES
  const size_t length = std::strlen(text), taken = length < Message::kBytes ? length : Message::kBytes - 1;
  std::memmove(t_message, text, taken);
  t_message[taken] = '\0';
#endif
  t_status = status;
  return status;
}

}  // namespace si
