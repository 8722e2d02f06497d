// Bytes in the vectors of NEON: what the tiles of int8 weights need beside their product, and the table of their
// kernels.
//
// Products are signed: V::dot takes 128 off the bytes of x (their upper bit flips), and the sums begin with it.
//
// Included by the instruction-set translation units only.
#pragma once

#include <cstring>

#include "kernels/isa/neon_armv7.h"
#include "kernels/tile/byte_moves.h"
#include "kernels/tile/quads_vector.h"

namespace si {
namespace {

struct NeonBytes {
  using Int = int32x4_t;
  using Sum = Int;
  using Floats = float32x4_t;
  static constexpr int kBytes = 16, kInts = 4, kMostSums = kNeonRegisters / 2;
  static constexpr int32_t kOffset = 128;

  static SI_INLINE Int load(const void* p) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
  // n dwords, and zeros.
  static SI_INLINE Int load_some(const void* p, int n) {
    if (n >= kInts) return load(p);
    uint8_t some[kBytes] = {};
    std::memcpy(some, p, static_cast<size_t>(4 * n));
    return load(some);
  }
  static SI_INLINE void store(void* p, Int a) { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(a)); }
  static SI_INLINE Floats load_floats(const float* p) { return vld1q_f32(p); }
  static SI_INLINE void store_floats(float* p, Floats a) { vst1q_f32(p, a); }
  static SI_INLINE Int spread(const Quad* q) {
    int32_t dword;
    std::memcpy(&dword, q, sizeof dword);
    return vdupq_n_s32(dword);
  }
  static SI_INLINE Int broadcast_int(int32_t a) { return vdupq_n_s32(a); }
  static SI_INLINE Floats broadcast(float a) { return vdupq_n_f32(a); }
  static SI_INLINE Int add(Int a, Int b) { return vaddq_s32(a, b); }
  static SI_INLINE Int sub(Int a, Int b) { return vsubq_s32(a, b); }
  static SI_INLINE Int mul(Int a, Int b) { return vmulq_s32(a, b); }
  static SI_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static SI_INLINE Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static SI_INLINE Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static SI_INLINE Floats max(Floats bound, Floats x) { return vmaxq_f32(bound, x); }
  static SI_INLINE Floats min(Floats bound, Floats x) { return vminq_f32(bound, x); }
  static SI_INLINE Floats to_float(Int a) { return vcvtq_f32_s32(a); }
  static SI_INLINE int32_t sum(Int a) { return vaddvq_s32(a); }
  static SI_INLINE int8x16_t as_bytes(Int a) { return vreinterpretq_s8_s32(a); }
  static SI_INLINE int8x16_t less_128(Int x) {
    return vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(x), vdupq_n_u8(128)));
  }

  // A byte less its zero point. The bound from below is what a NaN becomes.
  static SI_INLINE Int round_to_byte(Floats v, const ToByte& to) {
    const Floats t = vmaxnmq_f32(vmulq_f32(v, vdupq_n_f32(to.inverse)), vdupq_n_f32(to.low));
    return vcvtnq_s32_f32(vminq_f32(t, vdupq_n_f32(to.high)));
  }
  static SI_INLINE Int round_below(Floats v, const ToByte& to) { return round_to_byte(v, to); }
  // Likewise where pack_bytes saturates both ways, of numbers that an int32 holds.
  static SI_INLINE Int round(Floats v, const ToByte& to) {
    return vcvtnq_s32_f32(vmulq_f32(v, vdupq_n_f32(to.inverse)));
  }
  static SI_INLINE Int pack_bytes(const Int (&v)[4], int32_t zero_point) {
    const int16x8_t zero = vdupq_n_s16(static_cast<int16_t>(zero_point));
    const int16x8_t low = vaddq_s16(vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1])), zero);
    const int16x8_t high = vaddq_s16(vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3])), zero);
    return vreinterpretq_s32_u8(vcombine_u8(vqmovun_s16(low), vqmovun_s16(high)));
  }
  // Vectors of one 128-bit lane are in order.
  static SI_INLINE Int natural_bytes(Int packed) { return packed; }
  static SI_INLINE void natural(Int (&)[4]) {}
  // As many bytes as dwords.
  static SI_INLINE Int load_narrow(const uint8_t* p) {
    uint32_t dword;
    std::memcpy(&dword, p, sizeof dword);
    const uint16x8_t words = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(dword)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
  }
  static SI_INLINE void store_narrow(uint8_t* p, Int a, int32_t zero_point) {
    const int16x4_t words = vqmovn_s32(vaddq_s32(a, vdupq_n_s32(zero_point)));
    const uint8x8_t bytes = vqmovun_s16(vcombine_s16(words, words));
    const uint32_t dword = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    std::memcpy(p, &dword, sizeof dword);
  }

  static SI_INLINE void interleave(Int a, Int b, Int c, Int d, Int (&x)[4]) {
    const int8x16_t a8 = as_bytes(a), b8 = as_bytes(b), c8 = as_bytes(c), d8 = as_bytes(d);
    const int16x8_t ab0 = vreinterpretq_s16_s8(vzip1q_s8(a8, b8)), ab1 = vreinterpretq_s16_s8(vzip2q_s8(a8, b8));
    const int16x8_t cd0 = vreinterpretq_s16_s8(vzip1q_s8(c8, d8)), cd1 = vreinterpretq_s16_s8(vzip2q_s8(c8, d8));
    x[0] = vreinterpretq_s32_s16(vzip1q_s16(ab0, cd0));
    x[1] = vreinterpretq_s32_s16(vzip2q_s16(ab0, cd0));
    x[2] = vreinterpretq_s32_s16(vzip1q_s16(ab1, cd1));
    x[3] = vreinterpretq_s32_s16(vzip2q_s16(ab1, cd1));
  }

  static SI_INLINE Int widen(const uint8_t* p) {
    uint32_t dword;
    std::memcpy(&dword, p, sizeof dword);
    const uint16x8_t words = vmovl_u8(vcreate_u8(dword));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(words)));
  }
  template <int kStep>
  static SI_INLINE Int windows(const uint8_t* p) {
    return load(p);
  }
  // The bytes that `which` numbers, or zero where its upper bit is set.
  static SI_INLINE Int shuffle(Int a, Int which) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(which)));
  }
  static SI_INLINE Int even_halves_first(Int a) { return a; }
  static SI_INLINE Int lanes_of(const uint8_t* p) { return load(p); }
  static SI_INLINE Int either(Int a, Int b) { return vorrq_s32(a, b); }
  static SI_INLINE Int exclusive_or(Int a, Int b) { return veorq_s32(a, b); }
  // Likewise, or zero where `which` is 16 or more.
  static SI_INLINE Int shuffle_below_16(Int a, Int which) { return shuffle(a, which); }
  // A vector of bytes in kPieces equal pieces, `step` apart, one after another.
  template <int kPieces>
  static SI_INLINE void store_pieces(Int a, uint8_t* p, int64_t step) {
    uint8_t bytes[kBytes];
    store(bytes, a);
    SI_UNROLL for (int i = 0; i < kPieces; ++i)
        std::memcpy(p + i * step, bytes + i * (kBytes / kPieces), kBytes / kPieces);
  }
};

// Sixteen bytes at a time, for byte_moves.h.
struct NeonLanes {
  using Lane = int32x4_t;
  static SI_INLINE Lane load(const uint8_t* p) { return NeonBytes::load(p); }
  static SI_INLINE void store(uint8_t* p, Lane a) { NeonBytes::store(p, a); }
  static SI_INLINE Lane zero() { return vdupq_n_s32(0); }
  static SI_INLINE Lane quantize_16(const float* p, const ToByte& to) {
    Lane v[4];
    SI_UNROLL for (int i = 0; i < 4; ++i) v[i] = NeonBytes::round_to_byte(vld1q_f32(p + 4 * i), to);
    return NeonBytes::pack_bytes(v, to.zero_point);
  }
  static SI_INLINE void interleave(Lane (&v)[4]) { NeonBytes::interleave(v[0], v[1], v[2], v[3], v); }
  static SI_INLINE void transpose_dwords(Lane (&v)[4]) {
    const auto wide = [](Lane a) SI_INLINE_LAMBDA { return vreinterpretq_s64_s32(a); };
    const int64x2_t a = wide(vzip1q_s32(v[0], v[1])), b = wide(vzip2q_s32(v[0], v[1]));
    const int64x2_t c = wide(vzip1q_s32(v[2], v[3])), d = wide(vzip2q_s32(v[2], v[3]));
    v[0] = vreinterpretq_s32_s64(vzip1q_s64(a, c));
    v[1] = vreinterpretq_s32_s64(vzip2q_s64(a, c));
    v[2] = vreinterpretq_s32_s64(vzip1q_s64(b, d));
    v[3] = vreinterpretq_s32_s64(vzip2q_s64(b, d));
  }
};

// V adds the product. 16 columns are what the registers hold.
template <class V>
constexpr ByteKernels neon_byte_kernels() {
  return {
      {quads_tile<V, Quartets<V>, V, Groups<V, 4>>, quads_tile<V, Quartets<V>, V, Groups<V, 4>, 2>, nullptr},
      quads_vector<V>,
      pack_bytes<NeonLanes>,
      transpose_bytes_out<NeonLanes>,
      copy_bytes<NeonLanes>,
      copy_byte_rows,
      quantize_bytes<NeonLanes>,
      32,
  };
}

}  // namespace
}  // namespace si
