/* kernels_avx512vnni.c: AVX-512 with VNNI, which multiplies unsigned by signed bytes: w + 128 is unsigned, and the bias,
 * -128 times the sum of the same four x, is where the sum starts. */
#include "vec_avx512.h"

#define LEVEL avx512vnni

static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    const __m512i unsigned_w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_loadu_si512(bias), unsigned_w, x));
}

static inline vec vec_dot4u(bvec w, bvec x) {
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x));
}

#include "kernels_template.h"
