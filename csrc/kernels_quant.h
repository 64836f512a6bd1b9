/* kernels_quant.h: products with GGUF's quantised types, once for every level; part of kernels_template.h.
 *
 * A row of W is taken by superblocks of 256 values: one block of the K types, eight of the types of 32. Each is four
 * chunks of 64 values, unpacked in registers to bytes in their natural order. A chunk's sums of four products are exact
 * integers, one a lane; they are scaled by the product of the weight's and the activation's scales. What a type adds to
 * its values (its bias or its mins) meets only sums of activations: a second, short product for each superblock.
 *
 * Scales lie in sixteen lanes. Types whose scales hold for 32 values: lanes 0-7 the scales, lanes 8-15 the mins. Types
 * whose scales hold for 16: all lanes the scales, and the mins in a vector of their own. */

enum { SUPER = L2C_SUPER, CHUNKS = SUPER / L2C_Q8_CHUNK };

/* Bytes of a superblock. */
TILE size_t super_bytes(const l2c_type type) {
    switch (type) {
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL: return 8 * 18;
    case L2C_TYPE_Q4_1: return 8 * 20;
    case L2C_TYPE_Q5_0: return 8 * 22;
    case L2C_TYPE_Q5_1: return 8 * 24;
    case L2C_TYPE_Q8_0: return 8 * 34;
    case L2C_TYPE_Q2_K: return 84;
    case L2C_TYPE_Q3_K: return 110;
    case L2C_TYPE_Q4_K: return 144;
    case L2C_TYPE_Q5_K: return 176;
    case L2C_TYPE_Q6_K: return 210;
    case L2C_TYPE_IQ4_XS: return 136;
    default: return 66; /* TQ2_0 */
    }
}

/* Values are signed bytes, else unsigned and less than 64. */
TILE bool is_signed(const l2c_type type) {
    return type == L2C_TYPE_Q8_0 || type == L2C_TYPE_IQ4_NL || type == L2C_TYPE_IQ4_XS;
}

/* Scales hold for 16 values, else for 32. */
TILE bool has_scales_of_16(const l2c_type type) {
    return type == L2C_TYPE_Q2_K || type == L2C_TYPE_Q3_K || type == L2C_TYPE_Q6_K;
}

/* What the lanes of mins are multiplied by: -bias where they hold the scales themselves. */
TILE float min_factor(const l2c_type type) {
    return type == L2C_TYPE_Q4_0    ? -8.0f
           : type == L2C_TYPE_Q5_0  ? -16.0f
           : type == L2C_TYPE_Q3_K  ? -4.0f
           : type == L2C_TYPE_Q6_K  ? -32.0f
           : type == L2C_TYPE_TQ2_0 ? -1.0f
                                    : 1.0f;
}

/* Four of the eight f16 that lie `stride` bytes apart. */
TILE uint64_t four_f16(const uint8_t *p, size_t stride) {
    return (uint64_t)l2c_u16(p) | (uint64_t)l2c_u16(p + stride) << 16 | (uint64_t)l2c_u16(p + 2 * stride) << 32 |
           (uint64_t)l2c_u16(p + 3 * stride) << 48;
}

TILE uint64_t u64_at(const uint8_t *p) {
    return (uint64_t)l2c_u32(p) | (uint64_t)l2c_u32(p + 4) << 32;
}

/* The lanes of scales; for scales of 16 that have mins, those in *mins. */
TILE vec super_scales(const l2c_type type, const uint8_t *p, vec *mins) {
    const size_t stride = super_bytes(type) / 8;
    switch (type) {
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL:
    case L2C_TYPE_Q5_0:
    case L2C_TYPE_Q8_0: {
        const uint64_t a = four_f16(p, stride), b = four_f16(p + 4 * stride, stride);
        return vec_f16(a, b, a, b);
    }
    case L2C_TYPE_Q4_1:
    case L2C_TYPE_Q5_1:
        return vec_f16(four_f16(p, stride), four_f16(p + 4 * stride, stride), four_f16(p + 2, stride),
                       four_f16(p + 2 + 4 * stride, stride));
    case L2C_TYPE_Q4_K:
    case L2C_TYPE_Q5_K: {
        uint64_t scales, m;
        l2c_k4_scales(p + 4, &scales, &m);
        return vec_mul(vec_u8(scales, m), vec_halves(f16_at(p), -f16_at(p + 2)));
    }
    case L2C_TYPE_IQ4_XS: {
        const vec scales = vec_u8(l2c_iq4_scales(p + 4, l2c_u16(p + 2)), 0);
        return vec_mul(vec_sub(scales, vec_set1(32.0f)), vec_set1(f16_at(p)));
    }
    case L2C_TYPE_Q2_K: {
        const uint64_t a = u64_at(p), b = u64_at(p + 8), low = 0x0f0f0f0f0f0f0f0f;
        *mins = vec_mul(vec_u8(a >> 4 & low, b >> 4 & low), vec_set1(-f16_at(p + 82)));
        return vec_mul(vec_u8(a & low, b & low), vec_set1(f16_at(p + 80)));
    }
    case L2C_TYPE_Q3_K: {
        uint64_t a, b;
        l2c_q3_scales(p + 96, &a, &b);
        return *mins = vec_mul(vec_sub(vec_u8(a, b), vec_set1(32.0f)), vec_set1(f16_at(p + 108)));
    }
    case L2C_TYPE_Q6_K: return *mins = vec_mul(vec_s8(u64_at(p + 192), u64_at(p + 200)), vec_set1(f16_at(p + 208)));
    default: /* TQ2_0 */ return vec_set1(f16_at(p + 64));
    }
}

/* The values of chunk c, less than their bias where they are unsigned. */
TILE bvec super_values(const l2c_type type, const uint8_t *p, const int c) {
    static const int8_t iq4[16] = {L2C_IQ4_VALUES};
    const size_t stride = super_bytes(type) / 8;
    const uint8_t *a = p + 2 * (size_t)c * stride, *b = a + stride; /* the two blocks of types of 32 */
    const int n = c / 2, odd = c % 2;
    switch (type) {
    case L2C_TYPE_Q4_0: return bvec_nibbles(a + 2, b + 2);
    case L2C_TYPE_IQ4_NL: return bvec_lookup(bvec_nibbles(a + 2, b + 2), iq4);
    case L2C_TYPE_Q4_1: return bvec_nibbles(a + 4, b + 4);
    case L2C_TYPE_Q5_0:
        return bvec_or_bits(bvec_nibbles(a + 6, b + 6), l2c_u32(a + 2) | (uint64_t)l2c_u32(b + 2) << 32, 4);
    case L2C_TYPE_Q5_1:
        return bvec_or_bits(bvec_nibbles(a + 8, b + 8), l2c_u32(a + 4) | (uint64_t)l2c_u32(b + 4) << 32, 4);
    case L2C_TYPE_Q8_0: return bvec_join(a + 2, b + 2);
    case L2C_TYPE_Q4_K: return bvec_twice(p + 16 + 32 * c, 0, 4, 15);
    case L2C_TYPE_Q5_K:
        return bvec_or_shl(bvec_twice(p + 48 + 32 * c, 0, 4, 15), bvec_twice(p + 16, 2 * c, 2 * c + 1, 1), 4);
    case L2C_TYPE_IQ4_XS: return bvec_lookup(bvec_nibbles(p + 8 + 32 * c, p + 24 + 32 * c), iq4);
    case L2C_TYPE_Q2_K: return bvec_twice(p + 16 + 32 * n, 4 * odd, 4 * odd + 2, 3);
    case L2C_TYPE_Q3_K:
        return bvec_or_shl(bvec_twice(p + 32 + 32 * n, 4 * odd, 4 * odd + 2, 3), bvec_twice(p, 2 * c, 2 * c + 1, 1), 2);
    case L2C_TYPE_Q6_K:
        return bvec_or_shl(bvec_shr(bvec_load((const int8_t *)p + 64 * n), 4 * odd, 15),
                           bvec_twice(p + 128 + 32 * n, 4 * odd, 4 * odd + 2, 3), 4);
    default: return bvec_twice(p + 32 * n, 4 * odd, 4 * odd + 2, 3); /* TQ2_0 */
    }
}

/* One superblock, number s of the row, for M rows of x. */
TILE void quant_super(const l2c_type type, const size_t M, vec sum[][DOT_CHAINS], vec *min_sum, const l2c_q8_rows *x,
                      size_t row, size_t s, const uint8_t *p) {
    const bool of_16 = has_scales_of_16(type);
    const float *scales_x = x->lanes + row * x->lane_stride + s * L2C_SUPER_LANES;
    vec mins = vec_zero();
    const vec scales = super_scales(type, p, &mins);
    vec factors[QUANT_M];
    UNROLL for (size_t i = 0; i < M; i++) {
        const float *lanes = scales_x + i * x->lane_stride;
        factors[i] = vec_mul(scales, vec_load(lanes + (of_16 ? L2C_LANES : 0)));
        if (of_16) {
            min_sum[i] = vec_fma(mins, vec_load(lanes + 2 * L2C_LANES), min_sum[i]);
        } else if (!is_signed(type)) {
            min_sum[i] = vec_add(min_sum[i], factors[i]);
        }
    }
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        const bvec w = super_values(type, p, c);
        UNROLL for (size_t i = 0; i < M; i++) {
            const size_t at = (row + i) * x->stride + s * SUPER + (size_t)c * L2C_Q8_CHUNK;
            const bvec xp = bvec_load(x->values + at);
            const vec products = is_signed(type) ? vec_dot4(w, xp, x->bias + at / 4) : vec_dot4u(w, xp);
            const vec factor = of_16 ? vec_spread4(factors[i], c) : vec_spread2(factors[i], c);
            sum[i][c % DOT_CHAINS] = vec_fma(products, factor, sum[i][c % DOT_CHAINS]);
        }
    }
}

TILE void quant_tile(const l2c_type type, const size_t M, float *y, size_t ldy, const l2c_q8_rows *x, size_t row,
                     const uint8_t *w, size_t k, bool add) {
    const size_t bytes = super_bytes(type), whole = k / SUPER;
    vec sum[QUANT_M][DOT_CHAINS], min_sum[QUANT_M];
    UNROLL for (size_t i = 0; i < M; i++) {
        UNROLL for (size_t c = 0; c < DOT_CHAINS; c++) sum[i][c] = vec_zero();
        min_sum[i] = vec_zero();
    }
    for (size_t s = 0; s < whole; s++) {
        const uint8_t *p = w + s * bytes;
        UNROLL for (size_t ahead = 0; ahead < bytes; ahead += 64) PREFETCH((const char *)p + ahead + PREFETCH_BYTES);
        quant_super(type, M, sum, min_sum, x, row, s, p);
    }
    if (k % SUPER) { /* only types of 32: the missing blocks are zeros */
        uint8_t last[8 * 34] = {0};
        memcpy(last, w + whole * bytes, k % SUPER / 32 * (bytes / 8));
        quant_super(type, M, sum, min_sum, x, row, whole, last);
    }
    const vec of_mins = has_scales_of_16(type) ? vec_set1(min_factor(type)) : vec_halves(0.0f, min_factor(type));
    UNROLL for (size_t i = 0; i < M; i++) {
        const vec both = vec_add(sum[i][0], sum[i][1]);
        const float total = vec_sum(is_signed(type) ? both : vec_fma(min_sum[i], of_mins, both));
        y[i * ldy] = add ? y[i * ldy] + total : total;
    }
}

/* Rows go by blocks that stay in the cache, and in each by tiles that share the unpacked values. */
TILE void quant_product(const l2c_type type, float *y, size_t ldy, const l2c_q8_rows *x, const l2c_matrix *w, size_t m,
                        size_t n, bool add) {
    for (size_t block = 0; block < m; block += Q8_ROWS) {
        const size_t end = smaller(block + Q8_ROWS, m);
        for (size_t j = 0; j < n; j++) {
            const uint8_t *p = w->data + j * w->row_bytes;
            size_t i = block;
            for (; i + QUANT_M <= end; i += QUANT_M) {
                quant_tile(type, QUANT_M, y + i * ldy + j, ldy, x, i, p, w->k, add);
            }
            for (; QUANT_M > 2 && i + 2 <= end; i += 2) {
                quant_tile(type, QUANT_M > 2 ? 2 : 1, y + i * ldy + j, ldy, x, i, p, w->k, add);
            }
            for (; i < end; i++) {
                quant_tile(type, 1, y + i * ldy + j, ldy, x, i, p, w->k, add);
            }
        }
    }
}

static void dot_quant(float *y, size_t ldy, const l2c_q8_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add) {
#define CASE(type)                                                                                                     \
    case type: quant_product(type, y, ldy, x, w, m, n, add); break
    switch (w->type->type) {
        CASE(L2C_TYPE_Q4_0);
        CASE(L2C_TYPE_Q4_1);
        CASE(L2C_TYPE_Q5_0);
        CASE(L2C_TYPE_Q5_1);
        CASE(L2C_TYPE_Q8_0);
        CASE(L2C_TYPE_Q2_K);
        CASE(L2C_TYPE_Q3_K);
        CASE(L2C_TYPE_Q4_K);
        CASE(L2C_TYPE_Q5_K);
        CASE(L2C_TYPE_Q6_K);
        CASE(L2C_TYPE_IQ4_NL);
        CASE(L2C_TYPE_IQ4_XS);
        CASE(L2C_TYPE_TQ2_0);
    default: break; /* not computed as integers */
    }
#undef CASE
}

static void quantize_blocks(const l2c_q8_rows *q, size_t row, const float *x, size_t k) {
    enum { GROUP = 32, GROUPS = SUPER / GROUP };
    quantize_q8(q, row, x, k, GROUP);
    const size_t supers = (k + SUPER - 1) / SUPER, groups = k / GROUP;
    const int32_t *bias = q->bias + row * q->stride / 4;
    memset(q->values + row * q->stride + k, 0, supers * SUPER - k);
    memset(q->bias + (row * q->stride + k) / 4, 0, (supers * SUPER - k) / 4 * sizeof *q->bias);
    for (size_t s = 0; s < supers; s++) {
        float *lanes = q->lanes + row * q->lane_stride + s * L2C_SUPER_LANES;
        for (size_t g = 0; g < GROUPS; g++) {
            const float scale = s * GROUPS + g < groups ? q->scales[row * q->scale_stride + s * GROUPS + g] : 0.0f;
            const int32_t *four = bias + (s * SUPER + g * GROUP) / 4;
            const int32_t low = (four[0] + four[1] + four[2] + four[3]) / -128;
            const int32_t high = (four[4] + four[5] + four[6] + four[7]) / -128;
            lanes[g] = lanes[L2C_LANES + 2 * g] = lanes[L2C_LANES + 2 * g + 1] = scale;
            lanes[GROUPS + g] = scale * (float)(low + high);
            lanes[2 * L2C_LANES + 2 * g] = scale * (float)low;
            lanes[2 * L2C_LANES + 2 * g + 1] = scale * (float)high;
        }
    }
}
