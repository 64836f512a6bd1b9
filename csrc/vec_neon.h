/* vec_neon.h: sixteen lanes in four 128-bit registers (AArch64). */
#include <arm_neon.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    DOT_M = 1,
    DOT_N = 1,
    GEMM_M = 6,
    GEMM_V = 1,
    Q8_M = 1,
    Q8_N = 1,
    QUANT_N = 1,
    PANEL_M = 4,
    PANEL_V = 1,
    PANEL_ROWS = 4,
    ATT_H = 4,
    ATT_V = 1
};

typedef struct vec {
    float32x4_t quarter[4];
} vec;
typedef struct bvec {
    int8x16_t quarter[4];
} bvec;
typedef struct ivec {
    int32x4_t quarter[4];
} ivec;

#define EACH_QUARTER for (int i = 0; i < 4; i++)

static inline vec vec_set1(float x) {
    vec r;
    EACH_QUARTER r.quarter[i] = vdupq_n_f32(x);
    return r;
}
static inline vec vec_zero(void) {
    return vec_set1(0.0f);
}
static inline vec vec_load(const float *p) {
    vec r;
    EACH_QUARTER r.quarter[i] = vld1q_f32(p + 4 * i);
    return r;
}
static inline vec vec_load_n(const float *p, size_t n) {
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vec_load(lanes);
}
static inline void vec_store(float *p, vec x) {
    EACH_QUARTER vst1q_f32(p + 4 * i, x.quarter[i]);
}
static inline void vec_store_n(float *p, vec x, size_t n) {
    float lanes[16];
    vec_store(lanes, x);
    memcpy(p, lanes, n * sizeof *p);
}
static inline vec vec_add(vec a, vec b) {
    EACH_QUARTER a.quarter[i] = vaddq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline vec vec_sub(vec a, vec b) {
    EACH_QUARTER a.quarter[i] = vsubq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline vec vec_mul(vec a, vec b) {
    EACH_QUARTER a.quarter[i] = vmulq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline vec vec_div(vec a, vec b) {
    EACH_QUARTER a.quarter[i] = vdivq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline vec vec_max(vec a, vec b) {
    EACH_QUARTER a.quarter[i] = vmaxq_f32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline vec vec_fma(vec a, vec b, vec c) {
    EACH_QUARTER c.quarter[i] = vfmaq_f32(c.quarter[i], a.quarter[i], b.quarter[i]);
    return c;
}
static inline vec vec_round(vec a) {
    EACH_QUARTER a.quarter[i] = vrndnq_f32(a.quarter[i]);
    return a;
}
static inline vec vec_ldexp(vec a, vec n) {
    EACH_QUARTER {
        const int32x4_t shift = vshlq_n_s32(vcvtq_s32_f32(n.quarter[i]), 23);
        a.quarter[i] = vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a.quarter[i]), shift));
    }
    return a;
}
static inline float vec_sum(vec a) {
    const float32x4_t low = vaddq_f32(a.quarter[0], a.quarter[2]), high = vaddq_f32(a.quarter[1], a.quarter[3]);
    const float32x4_t four = vaddq_f32(low, high);
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
static inline float vec_hmax(vec a) {
    const float32x4_t low = vmaxq_f32(a.quarter[0], a.quarter[2]), high = vmaxq_f32(a.quarter[1], a.quarter[3]);
    return vmaxvq_f32(vmaxq_f32(low, high));
}
static inline vec vec_halves(float a, float b) {
    return (vec){{vdupq_n_f32(a), vdupq_n_f32(a), vdupq_n_f32(b), vdupq_n_f32(b)}};
}
static inline vec vec_swap_pairs(vec a) {
    EACH_QUARTER a.quarter[i] = vrev64q_f32(a.quarter[i]);
    return a;
}
static inline void vec_store_s8(int8_t *p, vec a) {
    int16x4_t words[4];
    EACH_QUARTER words[i] = vqmovn_s32(vcvtaq_s32_f32(a.quarter[i]));
    const int8x8_t low = vqmovn_s16(vcombine_s16(words[0], words[1]));
    vst1q_s8(p, vcombine_s8(low, vqmovn_s16(vcombine_s16(words[2], words[3]))));
}
static inline bvec bvec_load(const int8_t *p) {
    bvec r;
    EACH_QUARTER r.quarter[i] = vld1q_s8(p + 16 * i);
    return r;
}
static inline bvec bvec_load_n(const int8_t *p, size_t n) {
    int8_t bytes[64] = {0};
    memcpy(bytes, p, n);
    return bvec_load(bytes);
}

/* ---- Blocks of quantised weights ---- */

static inline float32x4_t widen_f16(uint64_t four) {
    return vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(four)));
}
static inline vec vec_f16(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    return (vec){{widen_f16(a), widen_f16(b), widen_f16(c), widen_f16(d)}};
}
static inline float f16_at(const uint8_t *p) {
    return vgetq_lane_f32(widen_f16((uint64_t)(p[0] | p[1] << 8)), 0);
}
static inline vec vec_load_bytes(const uint8_t *p) {
    vec r;
    EACH_QUARTER r.quarter[i] = vreinterpretq_f32_u8(vld1q_u8(p + 16 * i));
    return r;
}
static inline vec vec_load_f16(const uint8_t *p) {
    uint64_t halves[4];
    memcpy(halves, p, sizeof halves);
    return vec_f16(halves[0], halves[1], halves[2], halves[3]);
}
static inline vec vec_load_bf16(const uint8_t *p) {
    uint16_t halves[16];
    vec r;
    memcpy(halves, p, sizeof halves);
    EACH_QUARTER r.quarter[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(halves + 4 * i), 16));
    return r;
}
static inline vec vec_u8(uint64_t a, uint64_t b) {
    const uint16x8_t low = vmovl_u8(vcreate_u8(a)), high = vmovl_u8(vcreate_u8(b));
    return (vec){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)),
                  vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))), vcvtq_f32_u32(vmovl_high_u16(high))}};
}
static inline vec vec_s8(uint64_t a, uint64_t b) {
    const int16x8_t low = vmovl_s8(vcreate_s8(a)), high = vmovl_s8(vcreate_s8(b));
    return (vec){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
static inline vec vec_load_s8(const uint8_t *p) {
    uint64_t halves[2];
    memcpy(halves, p, sizeof halves);
    return vec_s8(halves[0], halves[1]);
}
static inline void vec_store_f16(uint8_t *p, vec a) {
    EACH_QUARTER {
        const uint64_t four = vget_lane_u64(vreinterpret_u64_f16(vcvt_f16_f32(a.quarter[i])), 0);
        memcpy(p + 8 * i, &four, sizeof four);
    }
}
static inline vec vec_lanes_of_blocks(vec s) {
    return (vec){{vuzp1q_f32(s.quarter[0], s.quarter[1]), vuzp2q_f32(s.quarter[0], s.quarter[1]),
                  vuzp1q_f32(s.quarter[2], s.quarter[3]), vuzp2q_f32(s.quarter[2], s.quarter[3])}};
}
/* s as a matrix of four by four, transposed */
static inline vec vec_lanes_of_16(vec s) {
    const float32x4_t a = vuzp1q_f32(s.quarter[0], s.quarter[1]), b = vuzp1q_f32(s.quarter[2], s.quarter[3]);
    const float32x4_t c = vuzp2q_f32(s.quarter[0], s.quarter[1]), d = vuzp2q_f32(s.quarter[2], s.quarter[3]);
    return (vec){{vuzp1q_f32(a, b), vuzp1q_f32(c, d), vuzp2q_f32(a, b), vuzp2q_f32(c, d)}};
}
static inline vec vec_of_ints(ivec a) {
    vec r;
    EACH_QUARTER r.quarter[i] = vcvtq_f32_s32(a.quarter[i]);
    return r;
}
/* In each quarter the sums of the quarters of a, b, c, d. */
static inline ivec ivec_sums_of_4(ivec a, ivec b, ivec c, ivec d) {
    EACH_QUARTER a.quarter[i] =
        vpaddq_s32(vpaddq_s32(a.quarter[i], b.quarter[i]), vpaddq_s32(c.quarter[i], d.quarter[i]));
    return a;
}
/* Quarters: a's first two added, its last two; b's. */
static inline ivec ivec_sums_of_2(ivec a, ivec b) {
    return (ivec){{vaddq_s32(a.quarter[0], a.quarter[1]), vaddq_s32(a.quarter[2], a.quarter[3]),
                   vaddq_s32(b.quarter[0], b.quarter[1]), vaddq_s32(b.quarter[2], b.quarter[3])}};
}
enum { SIGNED_EXCESS = 0 };
static inline bvec bvec_of_panel(bvec w) {
    return w;
}
static inline ivec ivec_add(ivec a, ivec b) {
    EACH_QUARTER a.quarter[i] = vaddq_s32(a.quarter[i], b.quarter[i]);
    return a;
}
static inline ivec ivec_shr(ivec a, int n) {
    EACH_QUARTER a.quarter[i] = vshlq_s32(a.quarter[i], vdupq_n_s32(-n));
    return a;
}
static inline ivec ivec_load(const float *p) {
    ivec r;
    EACH_QUARTER r.quarter[i] = vreinterpretq_s32_f32(vld1q_f32(p + 4 * i));
    return r;
}
static inline void ivec_store(int32_t *p, ivec a) {
    EACH_QUARTER vst1q_s32(p + 4 * i, a.quarter[i]);
}
static inline ivec ivec_set1(const float *p) {
    ivec r;
    EACH_QUARTER r.quarter[i] = vreinterpretq_s32_f32(vdupq_n_f32(*p));
    return r;
}
static inline int8x16_t broadcast_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
static inline void bvec_store(void *p, bvec w) {
    EACH_QUARTER vst1q_s8((int8_t *)p + 16 * i, w.quarter[i]);
}
static inline int8x16_t load16(const uint8_t *p) {
    return vreinterpretq_s8_u8(vld1q_u8(p));
}
static inline void bvec_load_columns(bvec out[4], const uint8_t *const *columns, size_t at) {
    EACH_QUARTER {
        int32x4_t from[4];
        for (int j = 0; j < 4; j++) {
            from[j] = vreinterpretq_s32_s8(load16(columns[4 * i + j] + at));
        }
        const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(from[0], from[1]));
        const int64x2_t odd01 = vreinterpretq_s64_s32(vtrn2q_s32(from[0], from[1]));
        const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(from[2], from[3]));
        const int64x2_t odd23 = vreinterpretq_s64_s32(vtrn2q_s32(from[2], from[3]));
        out[0].quarter[i] = vreinterpretq_s8_s64(vtrn1q_s64(even01, even23));
        out[1].quarter[i] = vreinterpretq_s8_s64(vtrn1q_s64(odd01, odd23));
        out[2].quarter[i] = vreinterpretq_s8_s64(vtrn2q_s64(even01, even23));
        out[3].quarter[i] = vreinterpretq_s8_s64(vtrn2q_s64(odd01, odd23));
    }
}
static inline bvec bvec_join(const uint8_t *a, const uint8_t *b) {
    return (bvec){{load16(a), load16(a + 16), load16(b), load16(b + 16)}};
}
/* q >> n & mask, byte by byte */
static inline int8x16_t shifted(int8x16_t q, int n, int mask) {
    const uint8x16_t right = vshlq_u8(vreinterpretq_u8_s8(q), vdupq_n_s8((int8_t)-n));
    return vreinterpretq_s8_u8(vandq_u8(right, vdupq_n_u8((uint8_t)mask)));
}
static inline bvec bvec_nibbles(const uint8_t *a, const uint8_t *b) {
    return (bvec){
        {shifted(load16(a), 0, 15), shifted(load16(a), 4, 15), shifted(load16(b), 0, 15), shifted(load16(b), 4, 15)}};
}
static inline bvec bvec_twice(const uint8_t *p, int low, int high, int mask) {
    return (bvec){{shifted(load16(p), low, mask), shifted(load16(p + 16), low, mask), shifted(load16(p), high, mask),
                   shifted(load16(p + 16), high, mask)}};
}
static inline bvec bvec_shr(bvec w, int n, int mask) {
    EACH_QUARTER w.quarter[i] = shifted(w.quarter[i], n, mask);
    return w;
}
static inline bvec bvec_or_shl(bvec w, bvec h, int n) {
    EACH_QUARTER w.quarter[i] = vorrq_s8(w.quarter[i], vshlq_s8(h.quarter[i], vdupq_n_s8((int8_t)n)));
    return w;
}
static inline bvec bvec_or_bits(bvec w, uint64_t bits, int n) {
    const uint8x16_t tested = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    EACH_QUARTER {
        const uint8_t low = (uint8_t)(bits >> 16 * i), high = (uint8_t)(bits >> (16 * i + 8));
        const uint8x16_t set = vtstq_u8(vcombine_u8(vdup_n_u8(low), vdup_n_u8(high)), tested);
        w.quarter[i] = vorrq_s8(w.quarter[i], vreinterpretq_s8_u8(vandq_u8(set, vdupq_n_u8((uint8_t)(1 << n)))));
    }
    return w;
}
static inline bvec bvec_lookup(bvec w, const int8_t *table) {
    const int8x16_t values = vld1q_s8(table);
    EACH_QUARTER w.quarter[i] = vqtbl1q_s8(values, vreinterpretq_u8_s8(w.quarter[i]));
    return w;
}

static inline ivec ivec_zero(void) {
    ivec r;
    EACH_QUARTER r.quarter[i] = vdupq_n_s32(0);
    return r;
}

static inline void pack_block(float *panel, size_t stride, const float *w, size_t k) {
    for (size_t j = 0; j < 16; j += 4) {
        for (size_t p = 0; p < 16; p += 4) {
            const float *from = w + j * k + p;
            float *to = panel + p * stride + j;
            const float32x4_t r0 = vld1q_f32(from), r1 = vld1q_f32(from + k);
            const float32x4_t r2 = vld1q_f32(from + 2 * k), r3 = vld1q_f32(from + 3 * k);
            const float64x2_t a0 = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1)),
                              a1 = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
            const float64x2_t a2 = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3)),
                              a3 = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
            vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(a0, a2)));
            vst1q_f32(to + stride, vreinterpretq_f32_f64(vtrn1q_f64(a1, a3)));
            vst1q_f32(to + 2 * stride, vreinterpretq_f32_f64(vtrn2q_f64(a0, a2)));
            vst1q_f32(to + 3 * stride, vreinterpretq_f32_f64(vtrn2q_f64(a1, a3)));
        }
    }
}
