// Checks for the C++ tests: each test is a small program whose main() ends with
//
//   return si::testing::finish("panel_test");
//
// A check that fails prints where it stands and both values, is counted, and lets the program go on.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace si::testing {

inline std::atomic<long> checks_run{0};
inline std::atomic<long> checks_failed{0};

// A loop over a broken kernel can fail a million times; the first few say enough.
constexpr long kFailuresPrinted = 20;

template <class T, class = void>
struct IsPrintable : std::false_type {};
template <class T>
struct IsPrintable<T, std::void_t<decltype(std::declval<std::ostream&>() << std::declval<const T&>())>>
    : std::true_type {};

template <class T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(std::numeric_limits<double>::max_digits10);
  if constexpr (std::is_enum_v<T>) {
    out << +static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::is_same_v<T, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_arithmetic_v<T>) {
    out << +value;  // The plus prints uint8_t as a number, not as a character.
  } else if constexpr (std::is_same_v<T, std::nullptr_t>) {
    out << "nullptr";
  } else if constexpr (IsPrintable<T>::value) {
    out << value;
  } else {
    out << "<" << sizeof(T) << " bytes>";
  }
  return out.str();
}

template <class T>
constexpr bool is_integer = std::is_integral_v<T> && !std::is_same_v<T, bool>;

// Equality by value: -1 is not equal to the largest unsigned number, and C strings are equal by their characters.
template <class A, class B>
bool equal(const A& a, const B& b) {
  if constexpr (std::is_convertible_v<const A&, std::string_view> &&
                std::is_convertible_v<const B&, std::string_view>) {
    return std::string_view(a) == std::string_view(b);
  } else if constexpr (is_integer<A> && is_integer<B> && std::is_signed_v<A> != std::is_signed_v<B>) {
    if constexpr (std::is_signed_v<A>) {
      return a >= 0 && static_cast<std::make_unsigned_t<A>>(a) == b;
    } else {
      return b >= 0 && a == static_cast<std::make_unsigned_t<B>>(b);
    }
  } else {
    return a == b;
  }
}

// Counts one check; `describe` is called only for a failure that is printed.
template <class Describe>
bool record(bool ok, const char* file, int line, Describe describe) {
  ++checks_run;
  if (ok) return true;
  long failure = ++checks_failed;
  if (failure <= kFailuresPrinted) {
    std::string text = describe();
    std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
    if (failure == kFailuresPrinted) std::fprintf(stderr, "(further failures are counted, not printed)\n");
  }
  return false;
}

template <class A, class B>
bool check_equal(const A& a, const B& b, const char* a_text, const char* b_text, const char* file, int line) {
  return record(equal(a, b), file, line, [&] {
    return std::string("expected ") + a_text + " == " + b_text + ", got " + show(a) + " and " + show(b);
  });
}

// NaN is near nothing; equal infinities are near each other.
template <class A, class B, class T>
bool check_near(const A& a, const B& b, const T& tolerance, const char* a_text, const char* b_text, const char* file,
                int line) {
  double difference = std::abs(static_cast<double>(a) - static_cast<double>(b));
  bool ok = static_cast<double>(a) == static_cast<double>(b) || difference <= static_cast<double>(tolerance);
  return record(ok, file, line, [&] {
    return std::string("expected |") + a_text + " - " + b_text + "| <= " + show(tolerance) + ", got " + show(a) +
           " and " + show(b) + ", difference " + show(difference);
  });
}

// Prints the count and returns the exit status of the program: a test that checked nothing has failed.
inline int finish(const char* name) {
  long run = checks_run, failed = checks_failed;
  std::printf("%s: %ld checks, %ld failed\n", name, run, failed);
  if (run == 0) std::fprintf(stderr, "%s: expected at least one check, got none\n", name);
  return run > 0 && failed == 0 ? 0 : 1;
}

}  // namespace si::testing

// Each macro is an expression that is true when the check held, so that a test can stop early on it. The condition is
// variadic because the preprocessor splits a template argument list at its commas.
#define SI_CHECK(...)                                                       \
  ::si::testing::record(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, \
                        [&] { return std::string("expected " #__VA_ARGS__); })
#define SI_CHECK_EQ(a, b) ::si::testing::check_equal((a), (b), #a, #b, __FILE__, __LINE__)
#define SI_CHECK_NEAR(a, b, tolerance) ::si::testing::check_near((a), (b), (tolerance), #a, #b, __FILE__, __LINE__)
