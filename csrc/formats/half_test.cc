#include "formats/half.h"

#include <cmath>

#include "testing/check.h"

namespace {

struct Type {
  uint16_t (*narrow)(float);
  float (*widen)(uint16_t);
  uint32_t infinity;  // bits; the largest finite value is one below
};

bool is_nan(const Type& type, uint32_t bits) { return (bits & 0x7fff) > type.infinity; }

// Checks without `type` what its bits mean: sign, exponent, mantissa.
void check_widening(const Type& type, int mantissa_bits, int bias) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = type.widen(static_cast<uint16_t>(bits));
    const auto mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1));
    const auto exponent = static_cast<int>((bits & 0x7fff) >> mantissa_bits);
    SI_CHECK_EQ(std::signbit(value), bits >= 0x8000);
    if ((bits & 0x7fff) >= type.infinity) {
      SI_CHECK(mantissa == 0 ? std::isinf(value) : std::isnan(value));
      continue;
    }
    const int implicit = exponent == 0 ? 0 : 1 << mantissa_bits;
    const float magnitude =
        std::ldexp(static_cast<float>(mantissa + implicit), (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
    SI_CHECK_EQ(std::abs(value), magnitude);
  }
}

void check_round_trip(const Type& type) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits)
    SI_CHECK_EQ(type.narrow(type.widen(static_cast<uint16_t>(bits))), bits);
}

// Halfway between two neighbours, which float32 holds exactly, decides every rounding: the tie goes to the even one,
// the next float to either side to the nearer one. Past the largest finite value the neighbour is Inf.
void check_rounding(const Type& type, double past_largest) {
  for (uint32_t sign : {0u, 0x8000u})
    for (uint32_t low = 0; low < type.infinity; ++low) {
      const uint32_t high = low + 1;
      const double a = type.widen(static_cast<uint16_t>(low));
      const double b = high == type.infinity ? past_largest : type.widen(static_cast<uint16_t>(high));
      const auto middle = static_cast<float>((a + b) / 2);
      const float unit = sign == 0 ? 1.0f : -1.0f;
      SI_CHECK_EQ(type.narrow(unit * middle), sign | (low % 2 == 0 ? low : high));
      SI_CHECK_EQ(type.narrow(unit * std::nextafter(middle, 0.0f)), sign | low);
      SI_CHECK_EQ(type.narrow(unit * std::nextafter(middle, INFINITY)), sign | high);
    }
}

void check_special(const Type& type) {
  SI_CHECK_EQ(type.narrow(INFINITY), type.infinity);
  SI_CHECK_EQ(type.narrow(-INFINITY), 0x8000 | type.infinity);
  SI_CHECK_EQ(type.narrow(0.0f), 0);
  SI_CHECK_EQ(type.narrow(-0.0f), 0x8000);
  SI_CHECK_EQ(type.narrow(si::float_from_bits(1)), 0);  // the smallest float
  SI_CHECK_EQ(type.narrow(si::float_from_bits(0x7f7fffff)), type.infinity);
  // A NaN stays one, though only bits of its payload that do not fit are set.
  for (uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu, 0xffffffffu}) {
    const uint32_t narrow = type.narrow(si::float_from_bits(bits));
    SI_CHECK(is_nan(type, narrow));
    SI_CHECK_EQ(narrow >> 15, bits >> 31);
  }
}

}  // namespace

int main() {
  const Type half{si::float_to_half, si::half_to_float, 0x7c00};
  check_widening(half, 10, 15);
  check_round_trip(half);
  check_rounding(half, 0x1p16);
  check_special(half);

  const Type bfloat16{si::float_to_bfloat16, si::bfloat16_to_float, 0x7f80};
  check_widening(bfloat16, 7, 127);
  check_round_trip(bfloat16);
  check_rounding(bfloat16, 0x1p128);
  check_special(bfloat16);
  return si::testing::finish("half_test");
}
