/* vec_neon.h: sixteen lanes in four 128-bit registers (AArch64). */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { DOT_M = 1, GEMM_M = 6, GEMM_V = 1, Q8_M = 1, Q8_N = 1, ATT_H = 2, ATT_V = 2 };

typedef struct vec {
    float32x4_t quarter[4];
} vec;
typedef struct bvec {
    int8x16_t quarter[4];
} bvec;

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
