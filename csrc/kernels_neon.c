/* kernels_neon.c: what every AArch64 processor has. */
#include "vec_neon.h"

#define LEVEL neon

/* Products of bytes fill 16 bits (at most 2^14); they are added in pairs to 32 bits, then pairs of pairs. */
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    vec r;
    (void)bias;
    EACH_QUARTER {
        const int8x16_t a = w.quarter[i], b = x.quarter[i];
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
        const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
        r.quarter[i] = vcvtq_f32_s32(vpaddq_s32(low, high));
    }
    return r;
}

static inline vec vec_dot4u(bvec w, bvec x) {
    return vec_dot4(w, x, NULL);
}

#include "kernels_template.h"
