/* kernels_dotprod.c: AArch64 with the int8 dot product of Armv8.2. */
#include "vec_neon.h"

#define LEVEL dotprod

static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    vec r;
    (void)bias;
    EACH_QUARTER r.quarter[i] = vcvtq_f32_s32(vdotq_s32(vdupq_n_s32(0), w.quarter[i], x.quarter[i]));
    return r;
}

static inline vec vec_dot4u(bvec w, bvec x) {
    return vec_dot4(w, x, NULL);
}

#include "kernels_template.h"
