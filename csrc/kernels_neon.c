/* kernels_neon.c: what every AArch64 processor has. */
#include "vec_neon.h"

#define LEVEL neon

/* Products of bytes fill 16 bits (at most 2^14); they are added in pairs to 32 bits, then pairs of pairs. */
static inline int32x4_t add_dot4(int32x4_t sum, int8x16_t w, int8x16_t x) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(w, x));
    return vaddq_s32(sum, vpaddq_s32(low, high));
}

#include "vec_neon_dot.h"

#include "kernels_template.h"
