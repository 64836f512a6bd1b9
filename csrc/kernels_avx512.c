/* kernels_avx512.c: AVX-512 without VNNI. */
#include "vec_avx512.h"

#define LEVEL avx512

/* |w| (x sign w): two products of at most 128 * 127 fit 16 bits. */
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    (void)bias;
    const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x);
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

static inline vec vec_dot4u(bvec w, bvec x) {
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
}

#include "kernels_template.h"
