/* kernels_scalar.c: sixteen lanes in portable C; the level every machine has, and the reference for the others. */
#include "quant.h"

#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    DOT_M = 1,
    DOT_N = 1,
    GEMM_M = 1,
    GEMM_V = 1,
    Q8_M = 1,
    Q8_N = 1,
    QUANT_N = 1,
    PANEL_M = 4,
    PANEL_V = 1,
    PROMPT_M = 1,
    PROMPT_M_BLOCKS = 1,
    PANEL_ROWS = INT_MAX,
    ATT_H = 1,
    ATT_V = 1
};
#define LEVEL scalar
#define LEVEL_HAS_WORDS
#define UNROLL /* a vector is a loop here: there are no registers to keep */

typedef struct vec {
    float lane[16];
} vec;
typedef struct bvec {
    int8_t byte[64];
} bvec;
typedef struct ivec {
    int32_t lane[16];
} ivec;
typedef struct svec {
    int16_t lane[32];
} svec, pvec;
typedef struct two_s16 {
    int16_t first, second;
} two_s16;

#define EACH_LANE for (int i = 0; i < 16; i++)

#if defined(__FP_FAST_FMAF) || defined(FP_FAST_FMAF)
static inline float fused(float a, float b, float c) {
    return fmaf(a, b, c);
}
#else
/* a b + c rounded once, without a fused instruction or a call: the product of two f32 is exact in f64, and the sum there
 * rounds to f32 as the exact one would, unless it seems to lie half-way between two f32, its last 28 bits being 0. Then it
 * is rounded to odd first (Boldo and Melquiond, 2008). */
static inline float fused(float a, float b, float c) {
    const double product = (double)a * b, addend = c, sum = product + addend;
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (bits & 0xfffffff) {
        return (float)sum;
    }
    const double virtual_addend = sum - product;
    const double rest = (product - (sum - virtual_addend)) + (addend - virtual_addend);
    /* rest is NaN, and the sum not finite, only together */
    if (!(bits & 1) && (rest > 0 || rest < 0)) {
        bits += (rest > 0) == (sum > 0) ? 1 : UINT64_MAX;
    }
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    return (float)odd;
}
#endif

static inline vec vec_set1(float x) {
    vec r;
    EACH_LANE r.lane[i] = x;
    return r;
}
static inline vec vec_zero(void) {
    return vec_set1(0.0f);
}
static inline vec vec_load(const float *p) {
    vec r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline vec vec_load_n(const float *p, size_t n) {
    vec r = {{0}};
    memcpy(&r, p, n * sizeof *p);
    return r;
}
static inline void vec_store(float *p, vec x) {
    memcpy(p, &x, sizeof x);
}
static inline void vec_store_n(float *p, vec x, size_t n) {
    memcpy(p, &x, n * sizeof *p);
}
static inline vec vec_add(vec a, vec b) {
    EACH_LANE a.lane[i] += b.lane[i];
    return a;
}
static inline vec vec_sub(vec a, vec b) {
    EACH_LANE a.lane[i] -= b.lane[i];
    return a;
}
static inline vec vec_mul(vec a, vec b) {
    EACH_LANE a.lane[i] *= b.lane[i];
    return a;
}
static inline vec vec_div(vec a, vec b) {
    EACH_LANE a.lane[i] /= b.lane[i];
    return a;
}
static inline vec vec_max(vec a, vec b) {
    EACH_LANE a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
static inline vec vec_fma(vec a, vec b, vec c) {
    EACH_LANE c.lane[i] = fused(a.lane[i], b.lane[i], c.lane[i]);
    return c;
}
/* Adding and taking away 1.5 2^23 leaves the nearest integer, ties to even, for |x| < 2^22. */
static inline vec vec_round(vec a) {
    EACH_LANE {
        const volatile float shifted = a.lane[i] + 12582912.0f;
        a.lane[i] = shifted - 12582912.0f;
    }
    return a;
}
static inline vec vec_ldexp(vec a, vec n) {
    EACH_LANE {
        uint32_t bits;
        memcpy(&bits, &a.lane[i], sizeof bits);
        bits += (uint32_t)(int32_t)n.lane[i] << 23;
        memcpy(&a.lane[i], &bits, sizeof bits);
    }
    return a;
}
static inline float vec_sum(vec a) {
    for (int half = 8; half; half /= 2) {
        for (int i = 0; i < half; i++) {
            a.lane[i] += a.lane[i + half];
        }
    }
    return a.lane[0];
}
static inline float vec_hmax(vec a) {
    for (int half = 8; half; half /= 2) {
        for (int i = 0; i < half; i++) {
            a.lane[i] = a.lane[i] > a.lane[i + half] ? a.lane[i] : a.lane[i + half];
        }
    }
    return a.lane[0];
}
static inline vec vec_halves(float a, float b) {
    vec r;
    EACH_LANE r.lane[i] = i < 8 ? a : b;
    return r;
}
static inline vec vec_swap_pairs(vec a) {
    vec r;
    EACH_LANE r.lane[i] = a.lane[i ^ 1];
    return r;
}
/* The largest f32 below a half: adding it and cutting off rounds ties away from zero, and nothing else up. */
#define BELOW_HALF 0x1.fffffep-2f

static inline void vec_store_s8(int8_t *p, vec a) {
    EACH_LANE {
        const float away = a.lane[i] + copysignf(BELOW_HALF, a.lane[i]);
        p[i] = (int8_t)(away > -128.0f ? away < 127.0f ? away : 127.0f : -128.0f);
    }
}
static inline void vec_store_s16(int16_t *p, vec a) {
    EACH_LANE p[i] = (int16_t)a.lane[i];
}
static inline bvec bvec_load(const int8_t *p) {
    bvec r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline bvec bvec_load_n(const int8_t *p, size_t n) {
    bvec r = {{0}};
    memcpy(&r, p, n);
    return r;
}
static inline ivec ivec_dot4(bvec w, bvec x) {
    ivec r;
    EACH_LANE {
        r.lane[i] = 0;
        for (int j = 4 * i; j < 4 * i + 4; j++) {
            r.lane[i] += w.byte[j] * x.byte[j];
        }
    }
    return r;
}
static inline ivec ivec_dot4u(bvec w, bvec x) {
    return ivec_dot4(w, x);
}
static inline vec vec_of_ints(ivec a) {
    vec r;
    EACH_LANE r.lane[i] = (float)a.lane[i];
    return r;
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    (void)bias;
    return vec_of_ints(ivec_dot4(w, x));
}
enum { SIGNED_EXCESS = 0 };
static inline bvec bvec_of_panel(bvec w) {
    return w;
}
static inline ivec ivec_add(ivec a, ivec b) {
    EACH_LANE a.lane[i] += b.lane[i];
    return a;
}
static inline ivec ivec_shr(ivec a, int n) {
    EACH_LANE a.lane[i] /= 1 << n; /* of multiples of 128 */
    return a;
}
static inline ivec ivec_load(const float *p) {
    ivec r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void ivec_store(int32_t *p, ivec a) {
    memcpy(p, &a, sizeof a);
}
static inline ivec ivec_set1(const float *p) {
    ivec r;
    EACH_LANE memcpy(&r.lane[i], p, sizeof *p);
    return r;
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    EACH_LANE {
        for (int j = 0; j < 4; j++) {
            sum.lane[i] += w.byte[4 * i + j] * four[j];
        }
    }
    return sum;
}
static inline ivec ivec_add_dot4u(ivec sum, bvec w, const int8_t *four) {
    return ivec_add_dot4(sum, w, four);
}
/* In each quarter the sums of the quarters of a, b, c, d. */
static inline ivec ivec_sums_of_4(ivec a, ivec b, ivec c, ivec d) {
    const ivec *from[4] = {&a, &b, &c, &d};
    ivec r;
    EACH_LANE {
        const int32_t *quarter = from[i % 4]->lane + i / 4 * 4;
        r.lane[i] = quarter[0] + quarter[1] + quarter[2] + quarter[3];
    }
    return r;
}
/* Quarters: a's first two added, its last two; b's. */
static inline ivec ivec_sums_of_2(ivec a, ivec b) {
    ivec r;
    EACH_LANE {
        const int32_t *half = (i < 8 ? a : b).lane + i / 4 % 2 * 8 + i % 4;
        r.lane[i] = half[0] + half[4];
    }
    return r;
}
static inline void bvec_store(void *p, bvec w) {
    memcpy(p, &w, sizeof w);
}

/* ---- Blocks of quantised weights ---- */

static inline float f16_at(const uint8_t *p) {
    return l2c_f16_to_f32(l2c_u16(p));
}
static inline vec vec_load_bytes(const uint8_t *p) {
    vec r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline vec vec_load_f16(const uint8_t *p) {
    vec r;
    EACH_LANE r.lane[i] = l2c_f16_to_f32(l2c_u16(p + 2 * i));
    return r;
}
static inline vec vec_load_bf16(const uint8_t *p) {
    vec r;
    EACH_LANE r.lane[i] = l2c_bf16_to_f32(l2c_u16(p + 2 * i));
    return r;
}
static inline vec vec_load_s8(const uint8_t *p) {
    vec r;
    EACH_LANE r.lane[i] = (int8_t)p[i];
    return r;
}
static inline void vec_store_f16(uint8_t *p, vec a) {
    EACH_LANE {
        const uint16_t half = l2c_f32_to_f16(a.lane[i]);
        memcpy(p + 2 * i, &half, sizeof half);
    }
}
static inline vec vec_f16(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    const uint64_t halves[4] = {a, b, c, d};
    vec r;
    EACH_LANE r.lane[i] = l2c_f16_to_f32((uint16_t)(halves[i / 4] >> 16 * (i % 4)));
    return r;
}
static inline vec vec_u8(uint64_t a, uint64_t b) {
    vec r;
    EACH_LANE r.lane[i] = (float)(uint8_t)((i < 8 ? a : b) >> 8 * (i % 8));
    return r;
}
static inline vec vec_s8(uint64_t a, uint64_t b) {
    vec r;
    EACH_LANE r.lane[i] = (float)(int8_t)((i < 8 ? a : b) >> 8 * (i % 8));
    return r;
}
static inline vec vec_lanes_of_blocks(vec s) {
    vec r;
    EACH_LANE r.lane[i] = s.lane[i / 8 * 8 + i % 4 * 2 + i / 4 % 2];
    return r;
}
static inline vec vec_lanes_of_16(vec s) {
    vec r;
    EACH_LANE r.lane[i] = s.lane[i % 4 * 4 + i / 4];
    return r;
}
#define EACH_BYTE for (int i = 0; i < 64; i++)

static inline void bvec_load_columns(bvec out[4], const uint8_t *const *columns, size_t at) {
    for (int t = 0; t < 4; t++) {
        EACH_LANE memcpy(out[t].byte + 4 * i, columns[i] + at + 4 * t, 4);
    }
}
static inline bvec bvec_join(const uint8_t *a, const uint8_t *b) {
    bvec r;
    memcpy(r.byte, a, 32);
    memcpy(r.byte + 32, b, 32);
    return r;
}
static inline bvec bvec_nibbles(const uint8_t *a, const uint8_t *b) {
    bvec r;
    EACH_BYTE r.byte[i] = (int8_t)((i < 32 ? a : b)[i % 16] >> i / 16 % 2 * 4 & 15);
    return r;
}
static inline bvec bvec_twice(const uint8_t *p, int low, int high, int mask) {
    bvec r;
    EACH_BYTE r.byte[i] = (int8_t)(p[i % 32] >> (i < 32 ? low : high) & mask);
    return r;
}
static inline bvec bvec_shr(bvec w, int n, int mask) {
    EACH_BYTE w.byte[i] = (int8_t)((uint8_t)w.byte[i] >> n & mask);
    return w;
}
static inline bvec bvec_or_shl(bvec w, bvec h, int n) {
    EACH_BYTE w.byte[i] = (int8_t)(w.byte[i] | h.byte[i] * (1 << n));
    return w;
}
static inline bvec bvec_or_bits(bvec w, uint64_t bits, int n) {
    EACH_BYTE w.byte[i] = (int8_t)(w.byte[i] | (int)(bits >> i & 1) << n);
    return w;
}
static inline bvec bvec_lookup(bvec w, const int8_t *table) {
    EACH_BYTE w.byte[i] = table[w.byte[i]];
    return w;
}

#define EACH_WORD for (int i = 0; i < 32; i++)

static inline svec svec_low(bvec w) {
    svec r;
    EACH_WORD r.lane[i] = w.byte[i];
    return r;
}
static inline svec svec_high(bvec w) {
    svec r;
    EACH_WORD r.lane[i] = w.byte[32 + i];
    return r;
}
static inline svec svec_add(svec w, int16_t a) {
    EACH_WORD w.lane[i] = (int16_t)(w.lane[i] + a);
    return w;
}
static inline svec svec_mul(svec w, int16_t a, int16_t b) {
    EACH_WORD w.lane[i] = (int16_t)(w.lane[i] * (i < 16 ? a : b));
    return w;
}
static inline void svec_store(float *p, svec w) {
    memcpy(p, &w, sizeof w);
}
static inline pvec pvec_load(const float *p) {
    pvec r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline two_s16 two_s16_load(const int16_t *p) {
    return (two_s16){p[0], p[1]};
}
static inline ivec ivec_zero(void) {
    return (ivec){{0}};
}
static inline ivec ivec_add_dot2(ivec sum, pvec w, two_s16 x) {
    EACH_LANE sum.lane[i] += w.lane[2 * i] * x.first + w.lane[2 * i + 1] * x.second;
    return sum;
}

static inline void pack_block(float *panel, size_t stride, const float *w, size_t k) {
    for (size_t j = 0; j < 16; j++) {
        for (size_t p = 0; p < 16; p++) {
            panel[p * stride + j] = w[j * k + p];
        }
    }
}

#include "kernels_template.h"
