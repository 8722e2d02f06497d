// What goes into the library, by names: of instruction sets (isas.inc), operators (runtime/operators.inc), formats
// (formats/formats.inc) and the types of values (si_value_type). CMake leaves each out by a macro of its own,
// SI_WITHOUT_name = 1.
#pragma once

#include <sparseinfer.h>

// SI_CHOSEN(name, yes, no) is `no` where SI_WITHOUT_name is defined as 1: the mark then stands for two arguments, which
// moves `no` to the third place.
#define SI_MARK_1 ~, ~
#define SI_THIRD(first, second, third, ...) third
#define SI_THIRD_OF(...) SI_THIRD(__VA_ARGS__)
#define SI_CHOSEN_BY(flag, yes, no) SI_THIRD_OF(SI_MARK_##flag, no, yes, ~)
#define SI_CHOSEN_IF(flag, yes, no) SI_CHOSEN_BY(flag, yes, no)
#define SI_CHOSEN(name, yes, no) SI_CHOSEN_IF(SI_WITHOUT_##name, yes, no)

// Whether a name is in. Code behind a false one is no code: compilers drop it, and what it alone calls.
#define SI_HAS(name) SI_CHOSEN(name, true, false)

namespace si {

// Whether the library is to be small (SPARSEINFER_OPTIMIZE_SIZE): kernels that are written for many widths and sizes
// then have code for a few, and compute the others by it.
#ifndef SI_SMALL
#define SI_SMALL 0
#endif
constexpr bool kSmall = SI_SMALL;

// Whether values are of a type, which no values are where it is left out.
constexpr bool is_type(si_value_type type, si_value_type asked) {
  switch (asked) {
    case SI_F32:
      return SI_HAS(float32) && type == asked;
    case SI_F16:
      return SI_HAS(float16) && type == asked;
    case SI_BF16:
      return SI_HAS(bfloat16) && type == asked;
    case SI_I8:
    case SI_U8:
      return SI_HAS(int8) && type == asked;
    default:
      return type == asked;
  }
}
// Whether the library has a type at all.
constexpr bool has_type(si_value_type type) { return is_type(type, type); }

// The failure of what the library was built without: `what` and `name` say what it is, `option` lets it in.
[[nodiscard]] si_status left_out(const char* what, const char* name, const char* option);

}  // namespace si
