/* vec_avx512vnni.h: AVX-512 with VNNI, which multiplies unsigned by signed bytes: w + 128 is unsigned, and the bias, -128
 * times the sum of the same x, is where the sum starts or what is added at its end. */
#include "vec_avx512.h"

/* GCC 12 copies every accumulator of a loop over the intrinsics, twice: it costs a third of the speed. Clang would take
 * every x from memory. */
#if defined(__GNUC__) && !defined(__clang__)
static inline __m512i add_dot4(__m512i sum, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "vm"(x));
    return sum;
}
#else
#define add_dot4 _mm512_dpbusd_epi32
#endif

static inline ivec ivec_dot4u(bvec w, bvec x) {
    return add_dot4(_mm512_setzero_si512(), w, x);
}
static inline bvec unsigned_of(bvec w) {
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));
}
static inline ivec ivec_dot4(bvec w, bvec x) {
    return ivec_dot4u(unsigned_of(w), x);
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    return vec_of_ints(add_dot4(_mm512_loadu_si512(bias), unsigned_of(w), x));
}
typedef ivec chain;
enum { CHAIN_OF_SIX_BITS = 4 };
static inline chain chain_zero(void) {
    return _mm512_setzero_si512();
}
static inline chain chain_add(bool is_signed, chain sum, bvec w, bvec x) {
    return add_dot4(sum, is_signed ? unsigned_of(w) : w, x);
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
    return add_dot4(sum, w, broadcast_four(four));
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    return ivec_add_dot4u(sum, w, four); /* w is unsigned in a panel */
}
