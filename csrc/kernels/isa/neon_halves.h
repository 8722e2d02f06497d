// bfloat16 in the vectors of NEON: a pair is two floats, whose upper halves it has, and its product two multiply-adds.
//
// Included by the instruction-set translation units only.
#pragma once

#include "kernels/isa/neon_bytes.h"
#include "kernels/isa/neon_vector.h"
#include "kernels/tile/half_moves.h"
#include "kernels/tile/pairs_tile.h"

namespace si {
namespace {

struct HalvesNeon {
  using Floats = Neon;
  using Sum = float32x4_t;
  // The first and the second value of each pair.
  struct Int {
    Sum first, second;
  };
  static constexpr int kBytes = 16, kInts = 4, kMostSums = kNeonRegisters / 2;

  static SI_INLINE uint32x4_t load(const void* p) { return vreinterpretq_u32_s32(NeonBytes::load(p)); }
  static SI_INLINE uint32x4_t load_some(const void* p, int n) {
    return vreinterpretq_u32_s32(NeonBytes::load_some(p, n));
  }
  static SI_INLINE void store_floats(float* p, Sum a) { vst1q_f32(p, a); }
  static SI_INLINE Int wide(uint32x4_t pairs) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)),
            vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)))};
  }
  static SI_INLINE Int spread(const Pair* p) {
    uint32_t dword;
    std::memcpy(&dword, p, sizeof dword);
    return wide(vdupq_n_u32(dword));
  }
  static SI_INLINE Sum broadcast(float a) { return Neon::broadcast(a); }
  static SI_INLINE Sum add(Sum a, Sum b) { return Neon::add(a, b); }
  static SI_INLINE Sum max(Sum bound, Sum x) { return Neon::max(bound, x); }
  static SI_INLINE Sum min(Sum bound, Sum x) { return Neon::min(bound, x); }
  static SI_INLINE float sum(Sum a) { return Neon::sum(a); }
  static SI_INLINE Sum dot(Sum sum, const Int& x, const Int& w) {
    return vfmaq_f32(vfmaq_f32(sum, x.first, w.first), x.second, w.second);
  }
  static SI_INLINE Sum dot(Sum sum, uint32x4_t x, uint32x4_t w) { return dot(sum, wide(x), wide(w)); }

  // Zeros below a bfloat16 make a float of it. Vectors of one 128-bit lane are in order.
  static SI_INLINE void interleave(uint32x4_t a, uint32x4_t b, Int& low, Int& high) {
    const uint16x8_t zero = vdupq_n_u16(0), a16 = vreinterpretq_u16_u32(a), b16 = vreinterpretq_u16_u32(b);
    low = {vreinterpretq_f32_u16(vzip1q_u16(zero, a16)), vreinterpretq_f32_u16(vzip1q_u16(zero, b16))};
    high = {vreinterpretq_f32_u16(vzip2q_u16(zero, a16)), vreinterpretq_f32_u16(vzip2q_u16(zero, b16))};
  }
  static SI_INLINE void natural(Sum&, Sum&) {}

  // bfloat16_operand of each.
  static SI_INLINE uint16x4_t narrow(Sum v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t tiny = vceqzq_u32(vandq_u32(bits, vdupq_n_u32(0x7f800000)));
    const uint32x4_t sign = vandq_u32(bits, vdupq_n_u32(0x80000000u));
    const uint32x4_t number = vbslq_u32(tiny, sign, rounded), quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), number, quiet), 16);
  }
  static SI_INLINE void store_narrow(uint16_t* p, Sum a) { vst1_u16(p, narrow(a)); }
  static SI_INLINE void store_interleaved(uint16_t* p, Sum low, Sum high) {
    vst1q_u16(p, vcombine_u16(narrow(low), narrow(high)));
  }
};

// Sixteen columns are what the registers hold.
constexpr PairKernels kPairsNeon = chosen(PairKernels{
    {pairs_tile<HalvesNeon, Interleaved<HalvesNeon, 2>>, nullptr, nullptr},
    pairs_vector<HalvesNeon>,
    narrow_halves<HalvesNeon>,
    transpose_halves<HalvesNeon>,
    copy_bytes<NeonLanes>,
    16,
});

}  // namespace
}  // namespace si
