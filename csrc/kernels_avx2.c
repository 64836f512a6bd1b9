/* kernels_avx2.c: AVX2 without VNNI. */
#include "vec_avx2.h"

#define LEVEL avx2

static inline __m256i dot4u(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
}
/* |w| (x sign w): two products of at most 128 * 127 fit 16 bits. */
static inline __m256i dot4(__m256i w, __m256i x) {
    return dot4u(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
static inline ivec ivec_dot4u(bvec w, bvec x) {
    return (ivec){dot4u(w.low, x.low), dot4u(w.high, x.high)};
}
static inline ivec ivec_dot4(bvec w, bvec x) {
    return (ivec){dot4(w.low, x.low), dot4(w.high, x.high)};
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    (void)bias;
    return vec_of_ints(ivec_dot4(w, x));
}
/* Of unsigned values sums of 16 bits, which eight products of 31 by 127 fit. */
typedef ivec chain;
enum { CHAIN_OF_SIX_BITS = 2 };
static inline chain chain_zero(void) {
    return (chain){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline chain chain_add(bool is_signed, chain sum, bvec w, bvec x) {
    if (is_signed) {
        return ivec_add(sum, ivec_dot4(w, x));
    }
    return (chain){_mm256_add_epi16(sum.low, _mm256_maddubs_epi16(w.low, x.low)),
                   _mm256_add_epi16(sum.high, _mm256_maddubs_epi16(w.high, x.high))};
}
static inline ivec chain_end(bool is_signed, chain sum) {
    const __m256i one = _mm256_set1_epi16(1);
    return is_signed ? sum : (ivec){_mm256_madd_epi16(sum.low, one), _mm256_madd_epi16(sum.high, one)};
}
enum { SIGNED_EXCESS = 0 };
static inline bvec bvec_of_panel(bvec w) {
    return w;
}

/* A sum of many terms: GCC would add them in a tree, which takes more registers than there are. */
static inline bvec in_order(__m256i low, __m256i high) {
#if defined(__GNUC__)
    __asm__("" : "+x"(low), "+x"(high));
#endif
    return (bvec){low, high};
}

#define LEVEL_HAS_SHORT_DOTS
typedef bvec dots;
static inline dots dots_begin(ivec sum) {
    (void)sum;
    return (dots){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline dots dots_add(dots d, bvec w, const int8_t *four) {
    const __m256i x = broadcast_four(four);
    return in_order(_mm256_add_epi16(d.low, _mm256_maddubs_epi16(w.low, x)),
                    _mm256_add_epi16(d.high, _mm256_maddubs_epi16(w.high, x)));
}
static inline ivec dots_end(dots d, ivec sum) {
    const __m256i one = _mm256_set1_epi16(1);
    return (ivec){_mm256_add_epi32(sum.low, _mm256_madd_epi16(d.low, one)),
                  _mm256_add_epi32(sum.high, _mm256_madd_epi16(d.high, one))};
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    const __m256i x = broadcast_four(four);
    return in_order(_mm256_add_epi32(sum.low, dot4(w.low, x)), _mm256_add_epi32(sum.high, dot4(w.high, x)));
}

#include "kernels_template.h"
