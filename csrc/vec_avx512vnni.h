/* vec_avx512vnni.h: AVX-512 with VNNI, which multiplies unsigned by signed bytes: w + 128 is unsigned, and the bias, -128
 * times the sum of the same x, is where the sum starts or what is added at its end. */
#include "vec_avx512.h"

static inline ivec ivec_dot4u(bvec w, bvec x) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x);
}
static inline bvec unsigned_of(bvec w) {
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));
}
static inline ivec ivec_dot4(bvec w, bvec x) {
    return ivec_dot4u(unsigned_of(w), x);
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    return vec_of_ints(_mm512_dpbusd_epi32(_mm512_loadu_si512(bias), unsigned_of(w), x));
}
static inline ivec ivec_unbias(ivec sums, const float *bias) {
    return _mm512_add_epi32(sums, _mm512_loadu_si512(bias));
}
static inline ivec ivec_first(bool with_sign, const float *bias) {
    return with_sign ? broadcast_four((const int8_t *)bias) : _mm512_setzero_si512();
}
static inline ivec ivec_add_dot4u(ivec sum, bvec w, const int8_t *four) {
    return _mm512_dpbusd_epi32(sum, w, broadcast_four(four));
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    return _mm512_dpbusd_epi32(sum, unsigned_of(w), broadcast_four(four));
}
