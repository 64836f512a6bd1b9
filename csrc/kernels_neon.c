/* kernels_neon.c: what every AArch64 processor has. */
#include "vec_neon.h"

#define LEVEL neon

/* Two products of bytes, of x of at most 127, fit 16 bits; pairs of pairs are added in 32 bits. */
static inline int32x4_t add_dot4(int32x4_t sum, int8x16_t w, int8x16_t x) {
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
}

#include "vec_neon_dot.h"

#include "kernels_template.h"
