// The tile kernels of pairs of bfloat16 weights, and attention, for AVX-512 with BF16: vdpbf16ps multiplies two
// bfloat16 of x by two weights and adds the products to each of 16 float32.
#include "kernels/isa/avx512_halves.h"
#include "kernels/tile/attention_tile.h"

namespace si {
namespace {

struct Bf16Halves512 : Halves512 {
  static SI_INLINE __m512bh halves(Int a) { return reinterpret_cast<__m512bh>(a); }
  static SI_INLINE Sum dot(Sum sum, Int x, Int w) { return _mm512_dpbf16_ps(sum, halves(x), halves(w)); }
  static SI_INLINE __m256i narrow(Sum v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }
  static SI_INLINE void store_narrow(uint16_t* p, Sum a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static SI_INLINE void store_interleaved(uint16_t* p, Sum low, Sum high) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, both));
  }
};

// Attention by products of pairs of bfloat16, which q, k, v and the shares of the keys are rounded to.
struct AttentionPairs {
  using Vectors = Avx512;
  using Word = uint32_t;
  using Words = __m512i;
  static constexpr int64_t kEach = 2;

  static SI_INLINE Words load(const Word* p) { return _mm512_loadu_si512(p); }
  static SI_INLINE Words spread(const Word* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static SI_INLINE __m512 dot(__m512 sum, Words a, Words b) { return Bf16Halves512::dot(sum, a, b); }

  // 32 floats as 16 pairs, in order.
  static SI_INLINE Words pairs(__m512 first, __m512 second) {
    return reinterpret_cast<Words>(_mm512_cvtne2ps_pbh(second, first));
  }
  static SI_INLINE Words pairs_at(const float* p, int64_t valid) {
    return pairs(_mm512_maskz_loadu_ps(first_16(valid), p), _mm512_maskz_loadu_ps(first_16(valid - 16), p + 16));
  }

  static void pack_keys(const float* k, int64_t ldk, int64_t count, int64_t dim, Word* to, int64_t padded) {
    for (int64_t j = 0; j < padded; j += 16)
      for (int64_t d = 0; d < dim; d += 32) {
        __m512 rows[16];
        SI_UNROLL for (int i = 0; i < 16; ++i) rows[i] =
            j + i < count ? _mm512_castsi512_ps(pairs_at(k + (j + i) * ldk + d, dim - d)) : _mm512_setzero_ps();
        Avx512::transpose(rows);
        SI_UNROLL for (int i = 0; i < 16; ++i) if (d + 2 * i < dim)
            _mm512_storeu_ps(to + (d / 2 + i) * padded + j, rows[i]);
      }
  }

  static const Word* values(const float* v, int64_t ldv, int64_t count, int64_t dim, int64_t padded_dim, Word* room,
                            int64_t* ld) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t j = 0; j < count; j += 2)
      for (int64_t d = 0; d < padded_dim; d += 16) {
        const float* const from = v + j * ldv + d;
        const __mmask16 some = first_16(dim - d);
        const __m512 first = _mm512_maskz_loadu_ps(some, from);
        const __m512 second = j + 1 < count ? _mm512_maskz_loadu_ps(some, from + ldv) : _mm512_setzero_ps();
        _mm512_storeu_si512(room + j / 2 * padded_dim + d, _mm512_permutexvar_epi16(order, pairs(first, second)));
      }
    *ld = padded_dim;
    return room;
  }

  static SI_INLINE const Word* queries(const float* q, int64_t ldq, int64_t rows, int64_t dim, Word* room,
                                       int64_t* ld) {
    *ld = (dim + 31) / 32 * 16;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t d = 0; d < dim; d += 32)
        _mm512_storeu_si512(room + r * *ld + d / 2, pairs_at(q + r * ldq + d, dim - d));
    return room;
  }

  // Elements past `count` stand in a word of their own, or are zero.
  static SI_INLINE const Word* narrow(float* rows, int64_t count_of_rows, int64_t count) {
    for (int64_t r = 0; r < count_of_rows; ++r) {
      float* const row = rows + r * kKeyBlock;
      for (int64_t j = 0; j < count; j += 32)
        _mm512_storeu_ps(row + j / 2,
                         _mm512_castsi512_ps(pairs(_mm512_loadu_ps(row + j), _mm512_loadu_ps(row + j + 16))));
    }
    return reinterpret_cast<const Word*>(rows);
  }
};

}  // namespace

const TileKernels* avx512bf16_tile_kernels() {
  static constexpr TileKernels kernels = [] {
    TileKernels all = narrow_table_of<Avx512>(Isa::avx512, nullptr, &pair_kernels_512<Bf16Halves512>);
    all.attend = attend_by<AttentionPairs>;
    return all;
  }();
  return &kernels;
}

}  // namespace si
