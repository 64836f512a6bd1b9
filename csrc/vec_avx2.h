/* vec_avx2.h: sixteen lanes in two 256-bit registers (AVX2, FMA, F16C). */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    DOT_M = 3,
    DOT_N = 1,
    GEMM_M = 6,
    GEMM_V = 1,
    Q8_M = 2,
    Q8_N = 1,
    QUANT_N = 1,
    PANEL_M = 4,
    PANEL_V = 1,
    PANEL_ROWS = 7,
    ATT_H = 4,
    ATT_V = 1
};

typedef struct vec {
    __m256 low, high;
} vec;
typedef struct bvec {
    __m256i low, high;
} bvec;
typedef bvec ivec;

#define VEC(expression_low, expression_high) ((vec){(expression_low), (expression_high)})

static inline vec vec_set1(float x) {
    return VEC(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
static inline vec vec_zero(void) {
    return VEC(_mm256_setzero_ps(), _mm256_setzero_ps());
}
static inline vec vec_load(const float *p) {
    return VEC(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
static inline vec vec_load_n(const float *p, size_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vec_load(lanes);
}
static inline void vec_store(float *p, vec x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
static inline void vec_store_n(float *p, vec x, size_t n) {
    float lanes[16];
    vec_store(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
static inline vec vec_add(vec a, vec b) {
    return VEC(_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high));
}
static inline vec vec_sub(vec a, vec b) {
    return VEC(_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high));
}
static inline vec vec_mul(vec a, vec b) {
    return VEC(_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high));
}
static inline vec vec_div(vec a, vec b) {
    return VEC(_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high));
}
static inline vec vec_max(vec a, vec b) {
    return VEC(_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high));
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return VEC(_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high));
}
static inline vec vec_round(vec a) {
    return VEC(_mm256_round_ps(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
               _mm256_round_ps(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256 ldexp8(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
static inline vec vec_ldexp(vec a, vec n) {
    return VEC(ldexp8(a.low, n.low), ldexp8(a.high, n.high));
}
static inline float vec_sum(vec a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float vec_hmax(vec a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline vec vec_halves(float a, float b) {
    return VEC(_mm256_set1_ps(a), _mm256_set1_ps(b));
}
static inline vec vec_swap_pairs(vec a) {
    return VEC(_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1));
}
/* The largest f32 below a half: adding it and cutting off rounds ties away from zero, and nothing else up. */
#define BELOW_HALF 0x1.fffffep-2f

static inline void vec_store_s8(int8_t *p, vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f), half = _mm256_set1_ps(BELOW_HALF);
    const __m256 low = _mm256_add_ps(a.low, _mm256_or_ps(_mm256_and_ps(a.low, sign), half));
    const __m256 high = _mm256_add_ps(a.high, _mm256_or_ps(_mm256_and_ps(a.high, sign), half));
    /* the two 128-bit halves of packs_epi32 come out crosswise; the permutation puts the quarters in order */
    const __m256i words =
        _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvttps_epi32(low), _mm256_cvttps_epi32(high)), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i *)p, bytes);
}
static inline bvec bvec_load(const int8_t *p) {
    return (bvec){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
static inline bvec bvec_load_n(const int8_t *p, size_t n) {
    int8_t bytes[64] = {0};
    memcpy(bytes, p, n);
    return bvec_load(bytes);
}
static inline vec vec_of_ints(ivec a) {
    return VEC(_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high));
}
static inline ivec ivec_add(ivec a, ivec b) {
    return (ivec){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
static inline ivec ivec_shr(ivec a, int n) {
    return (ivec){_mm256_srai_epi32(a.low, n), _mm256_srai_epi32(a.high, n)};
}
static inline ivec ivec_load(const float *p) {
    return bvec_load((const int8_t *)p);
}
static inline void ivec_store(int32_t *p, ivec a) {
    _mm256_storeu_si256((__m256i *)p, a.low);
    _mm256_storeu_si256((__m256i *)p + 1, a.high);
}
static inline ivec ivec_set1(const float *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return (ivec){_mm256_set1_epi32(bits), _mm256_set1_epi32(bits)};
}
static inline __m256i broadcast_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}
/* In each quarter the sums of the quarters of a, b, c, d. */
static inline ivec ivec_sums_of_4(ivec a, ivec b, ivec c, ivec d) {
    return (ivec){_mm256_hadd_epi32(_mm256_hadd_epi32(a.low, b.low), _mm256_hadd_epi32(c.low, d.low)),
                  _mm256_hadd_epi32(_mm256_hadd_epi32(a.high, b.high), _mm256_hadd_epi32(c.high, d.high))};
}
static inline __m256i sums_of_quarters(ivec a) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a.low, a.high, 0x20),
                            _mm256_permute2x128_si256(a.low, a.high, 0x31));
}
/* Quarters: a's first two added, its last two; b's. */
static inline ivec ivec_sums_of_2(ivec a, ivec b) {
    return (ivec){sums_of_quarters(a), sums_of_quarters(b)};
}
static inline void bvec_store(void *p, bvec w) {
    _mm256_storeu_si256((__m256i *)p, w.low);
    _mm256_storeu_si256((__m256i *)p + 1, w.high);
}

/* ---- Blocks of quantised weights ---- */

static inline __m128i load16(const uint8_t *p) {
    return _mm_loadu_si128((const __m128i *)p);
}
static inline __m256i load32(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
static inline float f16_at(const uint8_t *p) {
    return _cvtsh_ss((uint16_t)(p[0] | p[1] << 8));
}
static inline vec vec_load_bytes(const uint8_t *p) {
    return VEC(_mm256_castsi256_ps(load32(p)), _mm256_castsi256_ps(load32(p + 32)));
}
static inline vec vec_load_f16(const uint8_t *p) {
    return VEC(_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 16)));
}
static inline __m256 bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline vec vec_load_bf16(const uint8_t *p) {
    return VEC(bf16(load16(p)), bf16(load16(p + 16)));
}
static inline vec vec_load_s8(const uint8_t *p) {
    const __m128i bytes = load16(p);
    return VEC(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
               _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))));
}
static inline void vec_store_f16(uint8_t *p, vec a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 16), _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vec vec_f16(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return VEC(_mm256_cvtph_ps(_mm_set_epi64x((int64_t)b, (int64_t)a)),
               _mm256_cvtph_ps(_mm_set_epi64x((int64_t)d, (int64_t)c)));
}
static inline vec vec_u8(uint64_t a, uint64_t b) {
    return VEC(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)a))),
               _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)b))));
}
static inline vec vec_s8(uint64_t a, uint64_t b) {
    return VEC(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)a))),
               _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)b))));
}
static inline vec vec_lanes_of_blocks(vec s) {
    const __m256i from = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return VEC(_mm256_permutevar8x32_ps(s.low, from), _mm256_permutevar8x32_ps(s.high, from));
}
/* s as a matrix of four by four, transposed */
#define LEVEL_HAS_K4_SCALES
#include "vec_k4_scales.h"
/* Eight bytes of each half, times a and b. */
static inline vec scaled_bytes(__m128i bytes, __m128 a, __m128 b) {
    const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes)));
    return VEC(_mm256_mul_ps(low, _mm256_broadcastss_ps(a)), _mm256_mul_ps(high, _mm256_broadcastss_ps(b)));
}
static inline vec vec_k4_scales(const uint8_t *a, const uint8_t *b, vec *mins) {
    const __m128i of_a = _mm_loadu_si128((const __m128i *)a), of_b = _mm_loadu_si128((const __m128i *)b);
    const __m256i both = k4_scales_and_mins(of_a, of_b);
    const __m128 d = k4_factors(of_a, of_b), dmin = _mm_movehdup_ps(d);
    *mins = scaled_bytes(_mm256_extracti128_si256(both, 1), dmin, _mm_movehl_ps(dmin, dmin));
    return scaled_bytes(_mm256_castsi256_si128(both), d, _mm_movehl_ps(d, d));
}
static inline vec vec_lanes_of_16(vec s) {
    const __m256i pairs = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 low = _mm256_permutevar8x32_ps(s.low, pairs), high = _mm256_permutevar8x32_ps(s.high, pairs);
    const __m256d a = _mm256_castps_pd(low), b = _mm256_castps_pd(high);
    const __m256d even = _mm256_unpacklo_pd(a, b), odd = _mm256_unpackhi_pd(a, b);
    return VEC(_mm256_castpd_ps(_mm256_permute2f128_pd(even, odd, 0x20)),
               _mm256_castpd_ps(_mm256_permute2f128_pd(even, odd, 0x31)));
}
static inline __m256i two_columns(const uint8_t *a, const uint8_t *b) {
    return _mm256_set_m128i(load16(b), load16(a));
}
/* In each half of out[i] dword i of that half of the four. */
static inline void turn_halves(__m256i out[4], const __m256i from[4]) {
    const __m256i ab = _mm256_unpacklo_epi32(from[0], from[1]), cd = _mm256_unpacklo_epi32(from[2], from[3]);
    const __m256i ab2 = _mm256_unpackhi_epi32(from[0], from[1]), cd2 = _mm256_unpackhi_epi32(from[2], from[3]);
    out[0] = _mm256_unpacklo_epi64(ab, cd);
    out[1] = _mm256_unpackhi_epi64(ab, cd);
    out[2] = _mm256_unpacklo_epi64(ab2, cd2);
    out[3] = _mm256_unpackhi_epi64(ab2, cd2);
}
static inline void transpose_pieces(__m256i out[4], const uint8_t *const *columns, size_t at) {
    __m256i from[4];
    for (int i = 0; i < 4; i++) {
        from[i] = two_columns(columns[i] + at, columns[4 + i] + at);
    }
    turn_halves(out, from);
}
static inline void bvec_load_columns(bvec out[4], const uint8_t *const *columns, size_t at) {
    __m256i low[4], high[4];
    transpose_pieces(low, columns, at);
    transpose_pieces(high, columns + 8, at);
    for (int t = 0; t < 4; t++) {
        out[t] = (bvec){low[t], high[t]};
    }
}
static inline bvec bvec_join(const uint8_t *a, const uint8_t *b) {
    return (bvec){load32(a), load32(b)};
}
static inline __m256i nibbles(__m128i q) {
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}
static inline bvec bvec_nibbles(const uint8_t *a, const uint8_t *b) {
    return (bvec){nibbles(load16(a)), nibbles(load16(b))};
}
static inline bvec bvec_twice(const uint8_t *p, int low, int high, int mask) {
    const __m256i q = load32(p), kept = _mm256_set1_epi8((char)mask);
    return (bvec){_mm256_and_si256(_mm256_srli_epi16(q, low), kept),
                  _mm256_and_si256(_mm256_srli_epi16(q, high), kept)};
}
static inline bvec bvec_shr(bvec w, int n, int mask) {
    const __m256i kept = _mm256_set1_epi8((char)mask);
    return (bvec){_mm256_and_si256(_mm256_srli_epi16(w.low, n), kept),
                  _mm256_and_si256(_mm256_srli_epi16(w.high, n), kept)};
}
static inline bvec bvec_or_shl(bvec w, bvec h, int n) {
    return (bvec){_mm256_or_si256(w.low, _mm256_slli_epi16(h.low, n)),
                  _mm256_or_si256(w.high, _mm256_slli_epi16(h.high, n))};
}
/* Byte i = 1 << n where bit i is set: each byte takes the byte of `bits` that has its bit, and tests it. */
static inline __m256i bytes_of_bits(uint32_t bits, int n) {
    const __m256i from = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i tested = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), from);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, tested), tested);
    return _mm256_and_si256(set, _mm256_set1_epi8((char)(1 << n)));
}
static inline bvec bvec_or_bits(bvec w, uint64_t bits, int n) {
    return (bvec){_mm256_or_si256(w.low, bytes_of_bits((uint32_t)bits, n)),
                  _mm256_or_si256(w.high, bytes_of_bits((uint32_t)(bits >> 32), n))};
}
static inline bvec bvec_lookup(bvec w, const int8_t *table) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
    return (bvec){_mm256_shuffle_epi8(twice, w.low), _mm256_shuffle_epi8(twice, w.high)};
}

#define LEVEL_HAS_TURNS
/* Two pieces of 16 bytes, then two of b. */
static inline __m256i two_pieces(const uint8_t *p, const size_t half) {
    return half == 16 ? load32(p) : two_columns(p, p + half);
}
static inline bvec bvec_pieces(const uint8_t *a, const uint8_t *b, const size_t half) {
    return (bvec){two_pieces(a, half), two_pieces(b, half)};
}
static inline void bvec_turn(bvec out[4], const uint8_t *a, const uint8_t *b, const size_t step, const size_t half) {
    __m256i of_a[4], of_b[4], low[4], high[4];
    for (size_t i = 0; i < 4; i++) {
        of_a[i] = two_pieces(a + i * step, half);
        of_b[i] = two_pieces(b + i * step, half);
    }
    turn_halves(low, of_a);
    turn_halves(high, of_b);
    for (int d = 0; d < 4; d++) {
        out[d] = (bvec){low[d], high[d]};
    }
}
static inline void bvec_turn_quarters(bvec out[4], bvec a, bvec b, bvec c, bvec d) {
    const __m256i of_low[4] = {a.low, b.low, c.low, d.low}, of_high[4] = {a.high, b.high, c.high, d.high};
    __m256i low[4], high[4];
    turn_halves(low, of_low);
    turn_halves(high, of_high);
    for (int i = 0; i < 4; i++) {
        out[i] = (bvec){low[i], high[i]};
    }
}
static inline bvec bvec_low_nibbles(bvec w) {
    return bvec_shr(w, 0, 15);
}
static inline bvec bvec_high_nibbles(bvec w) {
    return bvec_shr(w, 4, 15);
}
/* fifths: in quarter 2s + h halves of the upper bits; of byte i of pair c, bits 2c and 2c + 1. */
static inline __m256i or_fifths(__m256i w, __m256i fifths, int d, int second) {
    const __m256i right = _mm256_add_epi32(_mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6), _mm256_set1_epi32(second));
    const __m256i bits = d == 0   ? _mm256_shuffle_epi32(fifths, 0x00)
                         : d == 1 ? _mm256_shuffle_epi32(fifths, 0x55)
                         : d == 2 ? _mm256_shuffle_epi32(fifths, 0xaa)
                                  : _mm256_shuffle_epi32(fifths, 0xff);
    const __m256i fifth = _mm256_and_si256(_mm256_srlv_epi32(bits, right), _mm256_set1_epi8(1));
    return _mm256_or_si256(w, _mm256_slli_epi16(fifth, 4));
}
static inline bvec bvec_or_fifths(bvec w, bvec fifths, int d, int second) {
    return (bvec){or_fifths(w.low, fifths.low, d, second), or_fifths(w.high, fifths.high, d, second)};
}
static inline ivec ivec_sums_of_halves(ivec a, ivec b) {
    const bvec sums = ivec_sums_of_2(a, b); /* of superblocks 0 and 1 of a; of b */
    return (ivec){_mm256_permute2x128_si256(sums.low, sums.high, 0x20),
                  _mm256_permute2x128_si256(sums.low, sums.high, 0x31)};
}

static inline ivec ivec_zero(void) {
    return (ivec){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
/* panel[p][0..8) = w[0..8)[p] for eight p */
static inline void transpose8(float *panel, size_t stride, const float *w, size_t k) {
    const __m256 r0 = _mm256_loadu_ps(w), r1 = _mm256_loadu_ps(w + k), r2 = _mm256_loadu_ps(w + 2 * k);
    const __m256 r3 = _mm256_loadu_ps(w + 3 * k), r4 = _mm256_loadu_ps(w + 4 * k), r5 = _mm256_loadu_ps(w + 5 * k);
    const __m256 r6 = _mm256_loadu_ps(w + 6 * k), r7 = _mm256_loadu_ps(w + 7 * k);
    const __m256 a0 = _mm256_unpacklo_ps(r0, r1), a1 = _mm256_unpackhi_ps(r0, r1);
    const __m256 a2 = _mm256_unpacklo_ps(r2, r3), a3 = _mm256_unpackhi_ps(r2, r3);
    const __m256 a4 = _mm256_unpacklo_ps(r4, r5), a5 = _mm256_unpackhi_ps(r4, r5);
    const __m256 a6 = _mm256_unpacklo_ps(r6, r7), a7 = _mm256_unpackhi_ps(r6, r7);
    const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    _mm256_storeu_ps(panel, _mm256_permute2f128_ps(b0, b4, 0x20));
    _mm256_storeu_ps(panel + stride, _mm256_permute2f128_ps(b1, b5, 0x20));
    _mm256_storeu_ps(panel + 2 * stride, _mm256_permute2f128_ps(b2, b6, 0x20));
    _mm256_storeu_ps(panel + 3 * stride, _mm256_permute2f128_ps(b3, b7, 0x20));
    _mm256_storeu_ps(panel + 4 * stride, _mm256_permute2f128_ps(b0, b4, 0x31));
    _mm256_storeu_ps(panel + 5 * stride, _mm256_permute2f128_ps(b1, b5, 0x31));
    _mm256_storeu_ps(panel + 6 * stride, _mm256_permute2f128_ps(b2, b6, 0x31));
    _mm256_storeu_ps(panel + 7 * stride, _mm256_permute2f128_ps(b3, b7, 0x31));
}
static inline void pack_block(float *panel, size_t stride, const float *w, size_t k) {
    for (size_t p = 0; p < 16; p += 8) {
        transpose8(panel + p * stride, stride, w + p, k);
        transpose8(panel + p * stride + 8, stride, w + 8 * k + p, k);
    }
}
