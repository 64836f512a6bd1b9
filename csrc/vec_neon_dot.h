/* vec_neon_dot.h: products of bytes by the level's add_dot4, whose operands are both signed: unsigned weights are less than
 * 64 and signed bytes too. */
static inline ivec ivec_dot4(bvec w, bvec x) {
    ivec r;
    EACH_QUARTER r.quarter[i] = add_dot4(vdupq_n_s32(0), w.quarter[i], x.quarter[i]);
    return r;
}
static inline ivec ivec_dot4u(bvec w, bvec x) {
    return ivec_dot4(w, x);
}
static inline vec vec_dot4(bvec w, bvec x, const int32_t *bias) {
    (void)bias;
    return vec_of_ints(ivec_dot4(w, x));
}
static inline ivec ivec_add_dot4(ivec sum, bvec w, const int8_t *four) {
    const int8x16_t x = broadcast_four(four);
    EACH_QUARTER sum.quarter[i] = add_dot4(sum.quarter[i], w.quarter[i], x);
    return sum;
}
static inline ivec ivec_add_dot4u(ivec sum, bvec w, const int8_t *four) {
    return ivec_add_dot4(sum, w, four);
}
