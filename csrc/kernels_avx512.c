/* kernels_avx512.c: AVX-512 without VNNI. */
#include "vec_avx512.h"

#define LEVEL avx512

enum { PANEL_ROWS = 17 };

static inline ivec ivec_dot4u(bvec w, bvec x) {
    return _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1));
}
/* |w| (x sign w): two products of at most 128 * 127 fit 16 bits. */
static inline ivec ivec_dot4(bvec w, bvec x) {
    const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    return ivec_dot4u(_mm512_abs_epi8(w), signed_x);
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    (void)bias;
    return vec_of_ints(ivec_dot4(w, x));
}
/* Of unsigned values sums of 16 bits, which eight products of 31 by 127 fit. */
typedef ivec chain;
enum { CHAIN_OF_SIX_BITS = 2 };
static inline chain chain_zero(void) {
    return _mm512_setzero_si512();
}
static inline chain chain_add(bool is_signed, chain sum, bvec w, bvec x) {
    return is_signed ? _mm512_add_epi32(sum, ivec_dot4(w, x)) : _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x));
}
static inline ivec chain_end(bool is_signed, chain sum) {
    return is_signed ? sum : _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
}
enum { SIGNED_EXCESS = 0 };
static inline bvec bvec_of_panel(bvec w) {
    return w;
}
/* A sum of many terms: GCC would add them in a tree, which takes more registers than there are. */
static inline __m512i in_order(__m512i sum) {
#if defined(__GNUC__)
    __asm__("" : "+v"(sum));
#endif
    return sum;
}

#define LEVEL_HAS_SHORT_DOTS
typedef __m512i dots;
static inline dots dots_begin(ivec sum) {
    (void)sum;
    return _mm512_setzero_si512();
}
static inline dots dots_add(dots d, bvec w, const int8_t *four) {
    return in_order(_mm512_add_epi16(d, _mm512_maddubs_epi16(w, broadcast_four(four))));
}
static inline ivec dots_end(dots d, ivec sum) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(d, _mm512_set1_epi16(1)));
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    return in_order(_mm512_add_epi32(sum, ivec_dot4(w, broadcast_four(four))));
}
#include "kernels_template.h"
