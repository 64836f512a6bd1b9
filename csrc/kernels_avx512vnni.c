/* kernels_avx512vnni.c: AVX-512 with VNNI, and prompt rows in 16 bits. */
#include "vec_avx512vnni.h"

#define LEVEL avx512vnni
#define LEVEL_HAS_WORDS
#define LEVEL_TAKES_WORDS

enum { PANEL_ROWS = 17, PROMPT_M = 8, PROMPT_M_BLOCKS = 6 };

typedef __m512i svec, pvec, two_s16;

static inline void vec_store_s16(int16_t *p, vec a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(a)));
}
static inline svec svec_low(bvec w) {
    return _mm512_cvtepi8_epi16(_mm512_castsi512_si256(w));
}
static inline svec svec_high(bvec w) {
    return _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(w, 1));
}
static inline svec svec_add(svec w, int16_t a) {
    return _mm512_add_epi16(w, _mm512_set1_epi16(a));
}
static inline svec svec_mul(svec w, int16_t a, int16_t b) {
    return _mm512_mullo_epi16(w, _mm512_inserti64x4(_mm512_set1_epi16(a), _mm256_set1_epi16(b), 1));
}
static inline void svec_store(float *p, svec w) {
    _mm512_storeu_si512(p, w);
}
static inline pvec pvec_load(const float *p) {
    return _mm512_loadu_si512(p);
}
static inline two_s16 two_s16_load(const int16_t *p) {
    return broadcast_four((const int8_t *)p);
}
/* Written out for the reason told in vec_avx512vnni.h. */
static inline ivec ivec_add_dot2(ivec sum, pvec w, two_s16 x) {
#if defined(__GNUC__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
#else
    return _mm512_dpwssd_epi32(sum, w, x);
#endif
}

#include "kernels_template.h"
