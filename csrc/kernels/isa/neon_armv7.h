// What the intrinsics of 64-bit ARM have and those of 32-bit ARM (ARMv7 with NEON and VFPv4) have not, made of what
// these have: the vectors of neon_vector.h, neon_bytes.h and neon_halves.h are written once, for both.
//
// Included by the instruction-set translation units only.
#pragma once

#include <arm_neon.h>

namespace si {
namespace {

// Sixteen registers of four floats, half of what 64-bit ARM has.
#if defined(__aarch64__)
constexpr int kNeonRegisters = 32;
#else
constexpr int kNeonRegisters = 16;

#define SI_NEON static inline __attribute__((always_inline))

// There is no division of vectors, and steps from an estimate do not round correctly.
SI_NEON float32x4_t vdivq_f32(float32x4_t a, float32x4_t b) {
  float32x4_t q = vdupq_n_f32(vgetq_lane_f32(a, 0) / vgetq_lane_f32(b, 0));
  q = vsetq_lane_f32(vgetq_lane_f32(a, 1) / vgetq_lane_f32(b, 1), q, 1);
  q = vsetq_lane_f32(vgetq_lane_f32(a, 2) / vgetq_lane_f32(b, 2), q, 2);
  return vsetq_lane_f32(vgetq_lane_f32(a, 3) / vgetq_lane_f32(b, 3), q, 3);
}

// To the nearest integer, a half to the even one. A float of 2^23 or more is one, and a NaN stays.
SI_NEON float32x4_t vrndnq_f32(float32x4_t a) {
  const float32x4_t large = vdupq_n_f32(8388608.0f), size = vabsq_f32(a);
  const float32x4_t rounded = vsubq_f32(vaddq_f32(size, large), large);
  const float32x4_t signed_one = vbslq_f32(vdupq_n_u32(0x80000000u), a, rounded);
  return vbslq_f32(vcltq_f32(size, large), signed_one, a);
}
SI_NEON int32x4_t vcvtnq_s32_f32(float32x4_t a) { return vcvtq_s32_f32(vrndnq_f32(a)); }

// The second where the first is a NaN; the second is none here.
SI_NEON float32x4_t vmaxnmq_f32(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgeq_f32(a, b), a, b); }

SI_NEON float vaddvq_f32(float32x4_t a) {
  const float32x2_t pairs = vpadd_f32(vget_low_f32(a), vget_high_f32(a));
  return vget_lane_f32(vpadd_f32(pairs, pairs), 0);
}
SI_NEON int32x4_t vpaddq_s32(int32x4_t a, int32x4_t b) {
  return vcombine_s32(vpadd_s32(vget_low_s32(a), vget_high_s32(a)), vpadd_s32(vget_low_s32(b), vget_high_s32(b)));
}
SI_NEON int32_t vaddvq_s32(int32x4_t a) {
  const int32x4_t pairs = vpaddq_s32(a, a);
  return vgetq_lane_s32(vpaddq_s32(pairs, pairs), 0);
}
SI_NEON int16x8_t vmull_high_s8(int8x16_t a, int8x16_t b) { return vmull_s8(vget_high_s8(a), vget_high_s8(b)); }
SI_NEON uint32x4_t vceqzq_u32(uint32x4_t a) { return vceqq_u32(a, vdupq_n_u32(0)); }

SI_NEON float32x4_t vuzp1q_f32(float32x4_t a, float32x4_t b) { return vuzpq_f32(a, b).val[0]; }
SI_NEON float32x4_t vuzp2q_f32(float32x4_t a, float32x4_t b) { return vuzpq_f32(a, b).val[1]; }
SI_NEON int8x16_t vzip1q_s8(int8x16_t a, int8x16_t b) { return vzipq_s8(a, b).val[0]; }
SI_NEON int8x16_t vzip2q_s8(int8x16_t a, int8x16_t b) { return vzipq_s8(a, b).val[1]; }
SI_NEON int16x8_t vzip1q_s16(int16x8_t a, int16x8_t b) { return vzipq_s16(a, b).val[0]; }
SI_NEON int16x8_t vzip2q_s16(int16x8_t a, int16x8_t b) { return vzipq_s16(a, b).val[1]; }
SI_NEON uint16x8_t vzip1q_u16(uint16x8_t a, uint16x8_t b) { return vzipq_u16(a, b).val[0]; }
SI_NEON uint16x8_t vzip2q_u16(uint16x8_t a, uint16x8_t b) { return vzipq_u16(a, b).val[1]; }
SI_NEON int32x4_t vzip1q_s32(int32x4_t a, int32x4_t b) { return vzipq_s32(a, b).val[0]; }
SI_NEON int32x4_t vzip2q_s32(int32x4_t a, int32x4_t b) { return vzipq_s32(a, b).val[1]; }
SI_NEON int64x2_t vzip1q_s64(int64x2_t a, int64x2_t b) { return vcombine_s64(vget_low_s64(a), vget_low_s64(b)); }
SI_NEON int64x2_t vzip2q_s64(int64x2_t a, int64x2_t b) { return vcombine_s64(vget_high_s64(a), vget_high_s64(b)); }

// The bytes that `which` numbers, zero from 16 on.
SI_NEON uint8x16_t vqtbl1q_u8(uint8x16_t a, uint8x16_t which) {
  const uint8x8x2_t table = {{vget_low_u8(a), vget_high_u8(a)}};
  return vcombine_u8(vtbl2_u8(table, vget_low_u8(which)), vtbl2_u8(table, vget_high_u8(which)));
}

#undef SI_NEON
#endif

}  // namespace
}  // namespace si
