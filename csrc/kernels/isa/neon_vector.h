// The vectors of NEON: 4 floats, 32 registers, or 16 on 32-bit ARM.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/isa/neon_armv7.h"
#include "kernels/tile/table.h"

namespace si {
namespace {

struct Neon {
  using Reg = float32x4_t;
  using Half = Neon;  // of short rows: there is none shorter
  static constexpr int kWidth = 4;
  // 4 x 6 accumulators, 6 vectors of x and a broadcast weight: 31 of 32 registers; 4 x 3, 3 and one are all of 16.
  static constexpr int kMaxVectors = kNeonRegisters == 32 ? 6 : 3;
  using Narrow = NarrowTiles<NarrowTile<Single, 1, 4>, NarrowTile<Neon, 1, 4>, NarrowTile<Neon, 2, 2>,
                             NarrowTile<Neon, 4, 1>, NoTile>;

  // Of a the bits that are set in the other.
  static SI_INLINE Reg bits_in(Reg a, Reg bits) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(bits)));
  }
  static SI_INLINE Reg load(const float* p) { return vld1q_f32(p); }
  static SI_INLINE void store(float* p, Reg a) { vst1q_f32(p, a); }
  static SI_INLINE Reg broadcast(float a) { return vdupq_n_f32(a); }
  // A bfloat16 is the upper half of a float32.
  static SI_INLINE Reg broadcast_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_dup_u16(p), 16));
  }
  static SI_INLINE Reg load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static SI_INLINE Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static SI_INLINE Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static SI_INLINE Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static SI_INLINE Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static SI_INLINE Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static SI_INLINE Reg max(Reg bound, Reg x) { return vmaxq_f32(bound, x); }
  static SI_INLINE Reg min(Reg bound, Reg x) { return vminq_f32(bound, x); }
  static SI_INLINE Reg abs(Reg a) { return vabsq_f32(a); }
  static SI_INLINE Reg round(Reg a) { return vrndnq_f32(a); }
  static SI_INLINE Reg copy_sign(Reg size, Reg sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }
  // 2^n for integral n in [-126, 128], Inf for 128.
  static SI_INLINE Reg pow2(Reg n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static SI_INLINE Reg where_less(Reg a, Reg b, Reg yes, Reg no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
  // Of two vectors every second element, from the first or from the second on.
  static SI_INLINE Reg even(Reg a, Reg b) { return vuzp1q_f32(a, b); }
  static SI_INLINE Reg odd(Reg a, Reg b) { return vuzp2q_f32(a, b); }
  // In a register from here on.
  static SI_INLINE void keep(Reg& a) { asm("" : "+w"(a)); }
  static SI_INLINE float sum(Reg a) { return vaddvq_f32(a); }

  // There is no gather: four scalar loads into the lanes.
  template <class Index>
  static SI_INLINE Reg gather(const float* x, const Index* index) {
    Reg a = vld1q_dup_f32(x + index[0]);
    a = vld1q_lane_f32(x + index[1], a, 1);
    a = vld1q_lane_f32(x + index[2], a, 2);
    return vld1q_lane_f32(x + index[3], a, 3);
  }
  template <class VectorStep, class ScalarStep>
  static SI_INLINE void gather_tail(const float*, const uint16_t*, int count, VectorStep&&, ScalarStep&& step) {
    for (int i = 0; i < count; ++i) step(i);
  }

  static SI_INLINE void transpose(Reg (&r)[4]) {
    const float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
  }
};

}  // namespace
}  // namespace si
