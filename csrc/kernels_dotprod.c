/* kernels_dotprod.c: AArch64 with the int8 dot product of Armv8.2. */
#include "vec_neon.h"

#define LEVEL dotprod

static inline int32x4_t add_dot4(int32x4_t sum, int8x16_t w, int8x16_t x) {
    return vdotq_s32(sum, w, x);
}

#include "vec_neon_dot.h"

#include "kernels_template.h"
