// Failures inside the library: a function returns a status, and the calling thread keeps the message for
// si_last_error(). core/, formats/ and kernels/ are built without exceptions, so that a C program can link them without
// a C++ runtime.
#pragma once

#include <sparseinfer.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace si {

// A text of limited length, put together from parts; what does not fit is left out.
class Message {
 public:
  static constexpr size_t kBytes = 2048;

  void add(const char* text);
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number> || std::is_enum_v<Number>>>
  void add(Number number) {
    if constexpr (std::is_floating_point_v<Number>)
      add_real(static_cast<double>(number));
    else if constexpr (std::is_signed_v<Number> || std::is_enum_v<Number>)
      add_signed(static_cast<long long>(number));
    else
      add_unsigned(static_cast<unsigned long long>(number));
  }
  const char* text() const { return text_; }
  // Writes as much as fits, and a zero byte.
  void copy_to(char* out, size_t bytes) const;

 private:
  void add_signed(long long number);
  void add_unsigned(unsigned long long number);
  void add_real(double number);

  size_t used_ = 0;
  char text_[kBytes] = "";
};

// The message of the last failure on this thread; "" if none. And its status.
const char* last_message();
si_status last_status();
[[nodiscard]] si_status keep_message(si_status status, const char* text);

// Whether failures have messages (SPARSEINFER_MESSAGES); a status alone takes a fifth of a small program less.
#ifndef SI_MESSAGES
#define SI_MESSAGES 1
#endif
constexpr bool kMessages = SI_MESSAGES;

namespace detail {

// The parts of a message in four types, so that few functions pass them on.
inline const char* part_of(const char* text) { return text; }
template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number> || std::is_enum_v<Number>>>
auto part_of(Number number) {
  if constexpr (std::is_floating_point_v<Number>)
    return static_cast<double>(number);
  else if constexpr (std::is_signed_v<Number> || std::is_enum_v<Number>)
    return static_cast<long long>(number);
  else
    return static_cast<unsigned long long>(number);
}
union Part {
  const char* text;
  long long number;
  unsigned long long natural;
  double real;
  explicit Part(const char* part) : text(part) {}
  explicit Part(long long part) : number(part) {}
  explicit Part(unsigned long long part) : natural(part) {}
  explicit Part(double part) : real(part) {}
};
constexpr char kind_of(const char*) { return 't'; }
constexpr char kind_of(long long) { return 'i'; }
constexpr char kind_of(unsigned long long) { return 'u'; }
constexpr char kind_of(double) { return 'f'; }

// Each part is of the type that the letter of its place says.
[[nodiscard]] si_status fail_with(si_status status, const char* kinds, const Part* parts);

template <class... Parts>
[[nodiscard]] __attribute__((noinline, cold)) si_status fail_of(si_status status, Parts... parts) {
  static constexpr char kKinds[] = {kind_of(Parts{})..., '\0'};
  const Part all[] = {Part(parts)...};
  return fail_with(status, kKinds, all);
}

}  // namespace detail

// Keeps the message that the parts make and gives back the status, so that a function ends with `return fail(...)`.
template <class... Parts>
[[nodiscard]] inline si_status fail(si_status status, Parts... parts) {
  if constexpr (kMessages)
    return detail::fail_of(status, detail::part_of(parts)...);
  else
    return keep_message(status, "");
}

// Returns from the calling function what the expression fails with.
#define SI_TRY(expression)                                                                          \
  do {                                                                                              \
    if (const si_status si_try_status = (expression); si_try_status != SI_OK) return si_try_status; \
  } while (false)

// Returns from the calling function with a failure unless the condition holds: SI_REQUIRE(condition, status, parts...).
#define SI_REQUIRE(condition, ...)                    \
  do {                                                \
    if (!(condition)) return ::si::fail(__VA_ARGS__); \
  } while (false)

}  // namespace si
