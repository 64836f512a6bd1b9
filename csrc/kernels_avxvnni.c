/* kernels_avxvnni.c: AVX2 with VNNI in 256 bits, which processors without AVX-512 have. As in vec_avx512vnni.h it multiplies
 * unsigned by signed bytes. */
#include "vec_avx2.h"

#define LEVEL avxvnni

/* Written out for the reason told in vec_avx512vnni.h. */
#if defined(__GNUC__) && !defined(__clang__)
static inline __m256i add_dot4(__m256i sum, __m256i w, __m256i x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "xm"(x));
    return sum;
}
#else
#define add_dot4 _mm256_dpbusd_avx_epi32
#endif

static inline ivec ivec_dot4u(bvec w, bvec x) {
    const __m256i zero = _mm256_setzero_si256();
    return (ivec){add_dot4(zero, w.low, x.low), add_dot4(zero, w.high, x.high)};
}
static inline bvec unsigned_of(bvec w) {
    const __m256i sign = _mm256_set1_epi8(-128);
    return (bvec){_mm256_xor_si256(w.low, sign), _mm256_xor_si256(w.high, sign)};
}
static inline ivec ivec_dot4(bvec w, bvec x) {
    return ivec_dot4u(unsigned_of(w), x);
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    const bvec from = bvec_load((const int8_t *)bias), u = unsigned_of(w);
    return vec_of_ints((ivec){add_dot4(from.low, u.low, x.low), add_dot4(from.high, u.high, x.high)});
}
typedef ivec chain;
enum { CHAIN_OF_SIX_BITS = 4 };
static inline chain chain_zero(void) {
    return (chain){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline chain chain_add(bool is_signed, chain sum, bvec w, bvec x) {
    const bvec u = is_signed ? unsigned_of(w) : w;
    return (chain){add_dot4(sum.low, u.low, x.low), add_dot4(sum.high, u.high, x.high)};
}
static inline ivec chain_end(bool is_signed, chain sum) {
    (void)is_signed;
    return sum;
}
enum { SIGNED_EXCESS = 1 };
static inline bvec bvec_of_panel(bvec w) {
    return unsigned_of(w);
}
static inline ivec ivec_add_dot4u(ivec sum, bvec w, const int8_t *four) {
    const __m256i x = broadcast_four(four);
    return (ivec){add_dot4(sum.low, w.low, x), add_dot4(sum.high, w.high, x)};
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    return ivec_add_dot4u(sum, w, four); /* w is unsigned in a panel */
}

#include "kernels_template.h"
