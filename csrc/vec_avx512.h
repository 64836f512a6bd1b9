/* vec_avx512.h: sixteen lanes in one 512-bit register (AVX-512 F, BW, DQ, VL). */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    DOT_M = 4,
    DOT_N = 3,
    GEMM_M = 12,
    GEMM_V = 2,
    Q8_M = 4,
    Q8_N = 2,
    QUANT_N = 2,
    PANEL_M = 8,
    PANEL_V = 2,
    ATT_H = 8,
    ATT_V = 2
};

typedef __m512 vec;
typedef __m512i bvec, ivec;

static inline vec vec_set1(float x) {
    return _mm512_set1_ps(x);
}
static inline vec vec_zero(void) {
    return _mm512_setzero_ps();
}
static inline vec vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline __mmask16 first_lanes(size_t n) {
    return (__mmask16)((1u << n) - 1);
}
static inline vec vec_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
static inline void vec_store(float *p, vec x) {
    _mm512_storeu_ps(p, x);
}
static inline void vec_store_n(float *p, vec x, size_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), x);
}
static inline vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
static inline vec vec_div(vec a, vec b) {
    return _mm512_div_ps(a, b);
}
static inline vec vec_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vec vec_round(vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline vec vec_ldexp(vec a, vec n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
}
static inline float vec_sum(vec a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float vec_hmax(vec a) {
    return _mm512_reduce_max_ps(a);
}
static inline vec vec_halves(float a, float b) {
    return _mm512_insertf32x8(_mm512_set1_ps(a), _mm256_set1_ps(b), 1);
}
static inline vec vec_swap_pairs(vec a) {
    return _mm512_permute_ps(a, 0xb1);
}
/* The largest f32 below a half: adding it and cutting off rounds ties away from zero, and nothing else up. */
#define BELOW_HALF 0x1.fffffep-2f

static inline void vec_store_s8(int8_t *p, vec a) {
    const __m512 half = _mm512_or_ps(_mm512_and_ps(a, _mm512_set1_ps(-0.0f)), _mm512_set1_ps(BELOW_HALF));
    _mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(_mm512_cvttps_epi32(_mm512_add_ps(a, half))));
}
static inline bvec bvec_load(const int8_t *p) {
    return _mm512_loadu_si512(p);
}
static inline bvec bvec_load_n(const int8_t *p, size_t n) {
    return _mm512_maskz_loadu_epi8((UINT64_C(1) << n) - 1, p);
}

/* ---- Blocks of quantised weights ---- */

static inline float f16_at(const uint8_t *p) {
    return _cvtsh_ss((uint16_t)(p[0] | p[1] << 8));
}
static inline vec vec_load_bytes(const uint8_t *p) {
    return _mm512_loadu_ps(p);
}
static inline vec vec_load_f16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline vec vec_load_bf16(const uint8_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline vec vec_load_s8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline void vec_store_f16(uint8_t *p, vec a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vec vec_f16(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return _mm512_cvtph_ps(_mm256_set_epi64x((int64_t)d, (int64_t)c, (int64_t)b, (int64_t)a));
}
static inline vec vec_u8(uint64_t a, uint64_t b) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x((int64_t)b, (int64_t)a)));
}
static inline vec vec_s8(uint64_t a, uint64_t b) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_set_epi64x((int64_t)b, (int64_t)a)));
}
static inline vec vec_lanes_of_blocks(vec s) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15), s);
}
/* Eight f16, `stride` bytes apart, in that order: two loads reach all of them, or each those of two blocks. */
static inline __m128i f16_of_blocks(const uint8_t *p, const size_t stride) {
    const short w = (short)(stride / 2), b = (short)(32 + w);
    if (stride <= 20) {
        const __m128i from =
            _mm_setr_epi16(0, (short)(2 * w), 32, (short)(b + w), w, (short)(3 * w), b, (short)(b + 2 * w));
        return _mm512_castsi512_si128(_mm512_permutex2var_epi16(_mm512_loadu_si512(p), _mm512_castsi128_si512(from),
                                                                _mm512_loadu_si512(p + 4 * stride)));
    }
    __m512i two[4];
    for (size_t i = 0; i < 4; i++) {
        two[i] = _mm512_maskz_loadu_epi16(0x3ffff, p + 2 * i * stride); /* no more, as the file may end there */
    }
    const __m512i low = _mm512_castsi128_si512(_mm_setr_epi16(0, 32, 0, 0, w, b, 0, 0));
    const __m512i high = _mm512_castsi128_si512(_mm_setr_epi16(0, 0, 0, 32, 0, 0, w, b));
    return _mm_mask_blend_epi16(0xcc, _mm512_castsi512_si128(_mm512_permutex2var_epi16(two[0], low, two[1])),
                                _mm512_castsi512_si128(_mm512_permutex2var_epi16(two[2], high, two[3])));
}
#define LEVEL_HAS_F16_OF_BLOCKS
static inline vec vec_f16_of_blocks(const uint8_t *a, const uint8_t *b, const size_t stride) {
    return _mm512_cvtph_ps(_mm256_set_m128i(f16_of_blocks(b, stride), f16_of_blocks(a, stride)));
}
#define LEVEL_HAS_K4_SCALES
#include "vec_k4_scales.h"
static inline vec vec_k4_scales(const uint8_t *a, const uint8_t *b, vec *mins) {
    const __m128i of_a = _mm_loadu_si128((const __m128i *)a), of_b = _mm_loadu_si128((const __m128i *)b);
    const __m256i both = k4_scales_and_mins(of_a, of_b);
    const __m512 d = _mm512_castps128_ps512(k4_factors(of_a, of_b));
    const __m512i of_d = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
    const __m512i of_dmin = _mm512_setr_epi32(1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m512 min = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_extracti128_si256(both, 1)));
    const __m512 scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm256_castsi256_si128(both)));
    *mins = _mm512_mul_ps(min, _mm512_permutexvar_ps(of_dmin, d));
    return _mm512_mul_ps(scale, _mm512_permutexvar_ps(of_d, d));
}
static inline vec vec_lanes_of_16(vec s) {
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), s);
}
static inline vec vec_of_ints(ivec a) {
    return _mm512_cvtepi32_ps(a);
}
/* In each quarter the sums of the quarters of a, b, c, d. */
static inline ivec ivec_sums_of_4(ivec a, ivec b, ivec c, ivec d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}
/* Quarters: a's first two added, its last two; b's. */
static inline ivec ivec_sums_of_2(ivec a, ivec b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}
static inline ivec ivec_add(ivec a, ivec b) {
    return _mm512_add_epi32(a, b);
}
static inline ivec ivec_shr(ivec a, int n) {
    return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n));
}
static inline ivec ivec_load(const float *p) {
    return _mm512_loadu_si512(p);
}
static inline void ivec_store(int32_t *p, ivec a) {
    _mm512_storeu_si512(p, a);
}
static inline ivec ivec_set1(const float *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return _mm512_set1_epi32(bits);
}
static inline __m512i broadcast_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline void bvec_store(void *p, bvec w) {
    _mm512_storeu_si512(p, w);
}
/* A broadcast under a mask leaves to the loads what an insertion would do with the shuffles, which are wanted below. */
static inline __m512i four_columns(const uint8_t *const *columns, size_t at) {
    __m512i w = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(columns[0] + at)));
    w = _mm512_mask_broadcast_i32x4(w, 0x00f0, _mm_loadu_si128((const __m128i *)(columns[4] + at)));
    w = _mm512_mask_broadcast_i32x4(w, 0x0f00, _mm_loadu_si128((const __m128i *)(columns[8] + at)));
    return _mm512_mask_broadcast_i32x4(w, 0xf000, _mm_loadu_si128((const __m128i *)(columns[12] + at)));
}
/* In each quarter of out[i] dword i of that quarter of a, b, c, d. */
static inline void bvec_turn_quarters(bvec out[4], __m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab, cd);
    out[1] = _mm512_unpackhi_epi64(ab, cd);
    out[2] = _mm512_unpacklo_epi64(ab2, cd2);
    out[3] = _mm512_unpackhi_epi64(ab2, cd2);
}
/* A quarter of an output has four columns: those whose pieces lie in the same quarters of the four that are loaded. */
static inline void bvec_load_columns(bvec out[4], const uint8_t *const *columns, size_t at) {
    bvec_turn_quarters(out, four_columns(columns, at), four_columns(columns + 1, at), four_columns(columns + 2, at),
                       four_columns(columns + 3, at));
}
static inline bvec bvec_join(const uint8_t *a, const uint8_t *b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a)),
                              _mm256_loadu_si256((const __m256i *)b), 1);
}
static inline bvec bvec_nibbles(const uint8_t *a, const uint8_t *b) {
    const __m512i high =
        _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0, 0, 0x0004000400040004, 0x0004000400040004);
    const __m512i both = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)a)),
                                                     0xff00, _mm_loadu_si128((const __m128i *)b));
    return _mm512_and_si512(_mm512_srlv_epi16(both, high), _mm512_set1_epi8(15));
}
static inline bvec bvec_twice(const uint8_t *p, int low, int high, int mask) {
    const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p));
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi16((int16_t)low), _mm256_set1_epi16((int16_t)high), 1);
    return _mm512_and_si512(_mm512_srlv_epi16(both, shifts), _mm512_set1_epi8((char)mask));
}
static inline bvec bvec_shr(bvec w, int n, int mask) {
    return _mm512_and_si512(_mm512_srlv_epi16(w, _mm512_set1_epi16((int16_t)n)), _mm512_set1_epi8((char)mask));
}
static inline bvec bvec_or_shl(bvec w, bvec h, int n) {
    return _mm512_or_si512(w, _mm512_sllv_epi16(h, _mm512_set1_epi16((int16_t)n)));
}
static inline bvec bvec_or_bits(bvec w, uint64_t bits, int n) {
    return _mm512_or_si512(w, _mm512_maskz_set1_epi8(bits, (char)(1 << n)));
}
static inline bvec bvec_lookup(bvec w, const int8_t *table) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), w);
}

#define LEVEL_HAS_TURNS
/* Two pieces of 16 bytes, then two of b. */
static inline bvec bvec_pieces(const uint8_t *a, const uint8_t *b, const size_t half) {
    if (half == 16) {
        return _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)a)), 0xf0,
                                           _mm256_loadu_si256((const __m256i *)b));
    }
    __m512i w = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)a));
    w = _mm512_mask_broadcast_i32x4(w, 0x00f0, _mm_loadu_si128((const __m128i *)(a + half)));
    w = _mm512_mask_broadcast_i32x4(w, 0x0f00, _mm_loadu_si128((const __m128i *)b));
    return _mm512_mask_broadcast_i32x4(w, 0xf000, _mm_loadu_si128((const __m128i *)(b + half)));
}
static inline void bvec_turn(bvec out[4], const uint8_t *a, const uint8_t *b, const size_t step, const size_t half) {
    bvec_turn_quarters(out, bvec_pieces(a, b, half), bvec_pieces(a + step, b + step, half),
                       bvec_pieces(a + 2 * step, b + 2 * step, half), bvec_pieces(a + 3 * step, b + 3 * step, half));
}
static inline bvec bvec_low_nibbles(bvec w) {
    return _mm512_and_si512(w, _mm512_set1_epi8(15));
}
static inline bvec bvec_high_nibbles(bvec w) {
    return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15));
}
/* fifths: in quarter 2s + h halves of the upper bits; of byte i of pair c, bits 2c and 2c + 1. */
static inline bvec bvec_or_fifths(bvec w, bvec fifths, int d, int second) {
    const __m512i left = second ? _mm512_set4_epi32(29, 31, 1, 3) : _mm512_set4_epi32(30, 0, 2, 4);
    const __m512i bits = d == 0   ? _mm512_shuffle_epi32(fifths, 0x00)
                         : d == 1 ? _mm512_shuffle_epi32(fifths, 0x55)
                         : d == 2 ? _mm512_shuffle_epi32(fifths, 0xaa)
                                  : _mm512_shuffle_epi32(fifths, 0xff);
    return _mm512_ternarylogic_epi32(w, _mm512_rolv_epi32(bits, left), _mm512_set1_epi8(16), 0xf8); /* w | bits & 16 */
}
static inline ivec ivec_sums_of_halves(ivec a, ivec b) {
    const __m512i sums = ivec_sums_of_2(a, b); /* of superblocks 0 and 1 of a, then of b */
    return _mm512_shuffle_i32x4(sums, sums, 0xd8);
}

static inline ivec ivec_zero(void) {
    return _mm512_setzero_si512();
}

/* Four rounds, each pairing rows at twice the distance: 4-byte, 8-byte, 16-byte pieces, then halves. */
static inline void pack_block(float *panel, size_t stride, const float *w, size_t k) {
    __m512 a[16], b[16];
    for (int j = 0; j < 16; j += 2) {
        const __m512 even = _mm512_loadu_ps(w + (size_t)j * k), odd = _mm512_loadu_ps(w + (size_t)(j + 1) * k);
        a[j] = _mm512_unpacklo_ps(even, odd);
        a[j + 1] = _mm512_unpackhi_ps(even, odd);
    }
    for (int j = 0; j < 16; j += 4) {
        b[j] = _mm512_shuffle_ps(a[j], a[j + 2], 0x44);
        b[j + 1] = _mm512_shuffle_ps(a[j], a[j + 2], 0xee);
        b[j + 2] = _mm512_shuffle_ps(a[j + 1], a[j + 3], 0x44);
        b[j + 3] = _mm512_shuffle_ps(a[j + 1], a[j + 3], 0xee);
    }
    /* b[4g + i] holds, in its four quarters q, column 4q + i of rows 4g .. 4g + 3 */
    for (int i = 0; i < 4; i++) {
        const __m512 low01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x44);
        const __m512 high01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xee);
        const __m512 low23 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x44);
        const __m512 high23 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xee);
        float *out = panel + (size_t)i * stride;
        _mm512_storeu_ps(out, _mm512_shuffle_f32x4(low01, low23, 0x88));
        _mm512_storeu_ps(out + 4 * stride, _mm512_shuffle_f32x4(low01, low23, 0xdd));
        _mm512_storeu_ps(out + 8 * stride, _mm512_shuffle_f32x4(high01, high23, 0x88));
        _mm512_storeu_ps(out + 12 * stride, _mm512_shuffle_f32x4(high01, high23, 0xdd));
    }
}
