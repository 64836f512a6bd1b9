/* kernels_quant.h: products with GGUF's quantised types, once for every level; part of kernels_template.h.
 *
 * A row of W is taken by superblocks of 256 values: one block of the K types, eight of the types of 32. Sixteen values at a
 * time give an exact integer, which is scaled and added to one of sixteen partial sums, whose lanes are in an order of
 * their own: lane 4q + c belongs to quarter q of chunk c, that is to values 64c + 16q to 64c + 16q + 15. What a type adds
 * to its values (a bias, or mins) meets only the sums of sixteen activations.
 *
 * Few rows of x: a row of W at a time, unpacked in registers, so that W is read as one stream. More rows: sixteen columns
 * are unpacked once to a panel whose lanes are the columns. The operations on every element of y are the same. */

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

/* What a type adds to its unsigned values, times -1. */
TILE float bias_of(const l2c_type type) {
    return type == L2C_TYPE_Q4_0    ? -8.0f
           : type == L2C_TYPE_Q5_0  ? -16.0f
           : type == L2C_TYPE_Q3_K  ? -4.0f
           : type == L2C_TYPE_Q6_K  ? -32.0f
           : type == L2C_TYPE_TQ2_0 ? -1.0f
                                    : 0.0f;
}

/* Four of the eight f16 that lie `stride` bytes apart. */
TILE uint64_t four_f16(const uint8_t *p, size_t stride) {
    return (uint64_t)l2c_u16(p) | (uint64_t)l2c_u16(p + stride) << 16 | (uint64_t)l2c_u16(p + 2 * stride) << 32 |
           (uint64_t)l2c_u16(p + 3 * stride) << 48;
}

TILE uint64_t u64_at(const uint8_t *p) {
    return (uint64_t)l2c_u32(p) | (uint64_t)l2c_u32(p + 4) << 32;
}

/* The scales in lane order, and what is added to each of the sixteen values for signed types none. */
TILE vec super_scales(const l2c_type type, const uint8_t *p, vec *mins) {
    const size_t stride = super_bytes(type) / 8;
    vec scales;
    switch (type) {
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL:
    case L2C_TYPE_Q5_0:
    case L2C_TYPE_Q8_0: {
        const uint64_t a = four_f16(p, stride), b = four_f16(p + 4 * stride, stride);
        scales = vec_lanes_of_8(vec_f16(a, b, a, b));
        break;
    }
    case L2C_TYPE_Q4_1:
    case L2C_TYPE_Q5_1: {
        const vec both = vec_f16(four_f16(p, stride), four_f16(p + 4 * stride, stride), four_f16(p + 2, stride),
                                 four_f16(p + 2 + 4 * stride, stride));
        *mins = vec_lanes_of_upper_8(both);
        return vec_lanes_of_8(both);
    }
    case L2C_TYPE_Q4_K:
    case L2C_TYPE_Q5_K: {
        uint64_t of_scales, of_mins;
        l2c_k4_scales(p + 4, &of_scales, &of_mins);
        const vec both = vec_mul(vec_u8(of_scales, of_mins), vec_halves(f16_at(p), -f16_at(p + 2)));
        *mins = vec_lanes_of_upper_8(both);
        return vec_lanes_of_8(both);
    }
    case L2C_TYPE_IQ4_XS: {
        const vec of_32 = vec_sub(vec_u8(l2c_iq4_scales(p + 4, l2c_u16(p + 2)), 0), vec_set1(32.0f));
        scales = vec_lanes_of_8(vec_mul(of_32, vec_set1(f16_at(p))));
        break;
    }
    case L2C_TYPE_Q2_K: {
        const uint64_t a = u64_at(p), b = u64_at(p + 8), low = 0x0f0f0f0f0f0f0f0f;
        *mins = vec_lanes_of_16(vec_mul(vec_u8(a >> 4 & low, b >> 4 & low), vec_set1(-f16_at(p + 82))));
        return vec_lanes_of_16(vec_mul(vec_u8(a & low, b & low), vec_set1(f16_at(p + 80))));
    }
    case L2C_TYPE_Q3_K: {
        uint64_t a, b;
        l2c_q3_scales(p + 96, &a, &b);
        scales = vec_lanes_of_16(vec_mul(vec_sub(vec_u8(a, b), vec_set1(32.0f)), vec_set1(f16_at(p + 108))));
        break;
    }
    case L2C_TYPE_Q6_K:
        scales = vec_lanes_of_16(vec_mul(vec_s8(u64_at(p + 192), u64_at(p + 200)), vec_set1(f16_at(p + 208))));
        break;
    default: /* TQ2_0 */ scales = vec_set1(f16_at(p + 64));
    }
    *mins = vec_mul(scales, vec_set1(bias_of(type)));
    return scales;
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

/* A superblock that is not there in full, of a type of 32: the missing blocks are zeros. */
TILE const uint8_t *super_at(const l2c_type type, uint8_t last[8 * 34], const uint8_t *w, size_t s, size_t k) {
    const size_t bytes = super_bytes(type);
    if ((s + 1) * SUPER <= k) {
        return w + s * bytes;
    }
    memset(last, 0, 8 * 34);
    memcpy(last, w + s * bytes, k % SUPER / 32 * (bytes / 8));
    return last;
}

/* ---- Few rows ---- */

/* One superblock, number s of the row, for M rows of x. */
TILE void quant_super(const l2c_type type, const size_t M, vec *sum, const l2c_s8_rows *x, size_t row, size_t s,
                      const uint8_t *p) {
    vec mins = vec_zero();
    const vec scales = super_scales(type, p, &mins);
    bvec w[CHUNKS];
    UNROLL for (int c = 0; c < CHUNKS; c++) w[c] = super_values(type, p, c);
    UNROLL for (size_t i = 0; i < M; i++) {
        const int8_t *values = x->values + (s * x->rows + row + i) * SUPER;
        const float *lanes = x->lanes + (s * x->rows + row + i) * L2C_SUPER_LANES;
        ivec products[CHUNKS];
        UNROLL for (int c = 0; c < CHUNKS; c++) {
            const bvec xp = bvec_load(values + c * L2C_Q8_CHUNK);
            products[c] = is_signed(type) ? ivec_dot4(w[c], xp) : ivec_dot4u(w[c], xp);
        }
        ivec of_16 = ivec_sums_of_4(products[0], products[1], products[2], products[3]);
        if (is_signed(type)) {
            of_16 = ivec_unbias(of_16, lanes + 2 * L2C_LANES);
        }
        sum[i] = vec_fma(vec_of_ints(of_16), vec_mul(scales, vec_load(lanes)), sum[i]);
        if (!is_signed(type)) {
            sum[i] = vec_fma(mins, vec_load(lanes + L2C_LANES), sum[i]);
        }
    }
}

TILE void quant_tile(const l2c_type type, const size_t M, float *y, size_t ldy, const l2c_s8_rows *x, size_t row,
                     const uint8_t *w, size_t k, bool add) {
    const size_t bytes = super_bytes(type), whole = k / SUPER;
    vec sum[QUANT_M];
    UNROLL for (size_t i = 0; i < M; i++) sum[i] = vec_zero();
    for (size_t s = 0; s < whole; s++) {
        const uint8_t *p = w + s * bytes;
        UNROLL for (size_t ahead = 0; ahead < bytes; ahead += 64) PREFETCH((const char *)p + ahead + PREFETCH_BYTES);
        quant_super(type, M, sum, x, row, s, p);
    }
    if (k % SUPER) {
        uint8_t last[8 * 34];
        quant_super(type, M, sum, x, row, whole, super_at(type, last, w, whole, k));
    }
    UNROLL for (size_t i = 0; i < M; i++) {
        const float total = vec_sum(sum[i]);
        y[i * ldy] = add ? y[i * ldy] + total : total;
    }
}

TILE void quant_rows(const l2c_type type, float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t from,
                     size_t m, size_t n, bool add) {
    for (size_t j = 0; j < n; j++) {
        const uint8_t *p = w->data + j * w->row_bytes;
        size_t i = 0;
        for (; QUANT_M > 4 && i + 8 <= m; i += 8) {
            quant_tile(type, QUANT_M > 4 ? 8 : 1, y + i * ldy + j, ldy, x, from + i, p, w->k, add);
        }
        for (; QUANT_M > 2 && i + 4 <= m; i += 4) {
            quant_tile(type, QUANT_M > 2 ? 4 : 1, y + i * ldy + j, ldy, x, from + i, p, w->k, add);
        }
        for (; QUANT_M > 1 && i + 2 <= m; i += 2) {
            quant_tile(type, QUANT_M > 1 ? 2 : 1, y + i * ldy + j, ldy, x, from + i, p, w->k, add);
        }
        for (; i < m; i++) {
            quant_tile(type, 1, y + i * ldy + j, ldy, x, from + i, p, w->k, add);
        }
    }
}

/* ---- Panels: sixteen columns, [superblocks] of values [64][16 columns][4], scales [16 lanes][16 columns], mins alike ---- */

enum { PANEL_VALUES = SUPER * L2C_LANES / 4, PANEL_SCALES = L2C_LANES * L2C_LANES }; /* floats */
enum { PANEL_SUPER = PANEL_VALUES + 2 * PANEL_SCALES };
enum { PANEL_AHEAD = 2 };  /* superblocks that are fetched before they are unpacked */
enum { PANEL_SUPERS = 8 }; /* superblocks whose part of a tile's rows stays in the first-level cache */

/* Fetches what follows superblock s of column j: so many streams side by side are more than the hardware follows. After
 * the ends of the `width` columns the next ones begin. */
TILE void fetch_ahead(const l2c_type type, const l2c_matrix *w, size_t j, size_t width, size_t s) {
    const size_t supers = (w->k + SUPER - 1) / SUPER, next = s + PANEL_AHEAD, over = next < supers ? 0 : width;
    const uint8_t *soon = w->data + (j + over) * w->row_bytes + (over ? next - supers : next) * super_bytes(type);
    UNROLL for (size_t at = 0; at < super_bytes(type); at += 64) PREFETCH((const char *)soon + at);
}

/* Superblock s of n columns into *panel. */
TILE void pack_super(const l2c_type type, float *panel, const l2c_matrix *w, size_t n, size_t s) {
    float values[CHUNKS][L2C_LANES * L2C_LANES], scales[PANEL_SCALES], mins[PANEL_SCALES];
    uint8_t last[8 * 34];
    for (size_t j = 0; j < L2C_LANES; j++) {
        vec of_mins = vec_zero();
        if (j >= n) {
            for (int c = 0; c < CHUNKS; c++) {
                vec_store(values[c] + j * L2C_LANES, vec_zero());
            }
            vec_store(scales + j * L2C_LANES, vec_zero());
            vec_store(mins + j * L2C_LANES, vec_zero());
            continue;
        }
        const uint8_t *p = super_at(type, last, w->data + j * w->row_bytes, s, w->k);
        fetch_ahead(type, w, j, L2C_LANES, s);
        vec_store(scales + j * L2C_LANES, super_scales(type, p, &of_mins));
        vec_store(mins + j * L2C_LANES, of_mins);
        UNROLL for (int c = 0; c < CHUNKS; c++) bvec_store(values[c] + j * L2C_LANES, super_values(type, p, c));
    }
    for (int c = 0; c < CHUNKS; c++) {
        pack_block(panel + c * L2C_LANES * L2C_LANES, L2C_LANES, values[c], L2C_LANES);
    }
    pack_block(panel + PANEL_VALUES, L2C_LANES, scales, L2C_LANES);
    if (!is_signed(type)) {
        pack_block(panel + PANEL_VALUES + PANEL_SCALES, L2C_LANES, mins, L2C_LANES);
    }
}

/* sums [M][16 lanes][16 columns] += superblocks [s, end) for M rows: lane by lane, so that the sums of one stay in
 * registers. Fetches `ahead` bytes for each superblock and lane, from *next on. */
TILE void panel_supers(const bool with_sign, const size_t M, float *sums, const float *panel, const l2c_s8_rows *x,
                       size_t row, size_t s, size_t end, const char **next, size_t ahead) {
    for (size_t g = 0; g < L2C_LANES; g++) {
        const size_t lane = g % 4 * 4 + g / 4;
        const float *of_super = panel + s * PANEL_SUPER;
        const int8_t *values = x->values + (s * x->rows + row) * SUPER + 16 * g;
        const float *factors = x->lanes + (s * x->rows + row) * L2C_SUPER_LANES + lane;
        vec sum[PANEL_M];
        UNROLL for (size_t i = 0; i < M; i++) sum[i] = vec_load(sums + i * PANEL_SCALES + lane * L2C_LANES);
        for (size_t left = end - s; left > 0; left--) {
            ivec products[PANEL_M];
            UNROLL for (size_t i = 0; i < M; i++) {
                products[i] = ivec_first(with_sign, factors + i * L2C_SUPER_LANES + 2 * L2C_LANES);
            }
            UNROLL for (size_t t = 0; t < 4; t++) {
                const bvec w = bvec_load((const int8_t *)(of_super + (4 * g + t) * L2C_LANES));
                UNROLL for (size_t i = 0; i < M; i++) {
                    const int8_t *four = values + i * SUPER + 4 * t;
                    products[i] =
                        with_sign ? ivec_add_dot4(products[i], w, four) : ivec_add_dot4u(products[i], w, four);
                }
            }
            const vec scales = vec_load(of_super + PANEL_VALUES + lane * L2C_LANES);
            UNROLL for (size_t i = 0; i < M; i++) {
                const vec scale = vec_mul(scales, vec_set1(factors[i * L2C_SUPER_LANES]));
                sum[i] = vec_fma(vec_of_ints(products[i]), scale, sum[i]);
            }
            if (!with_sign) {
                const vec mins = vec_load(of_super + PANEL_VALUES + PANEL_SCALES + lane * L2C_LANES);
                UNROLL for (size_t i = 0; i < M; i++) {
                    sum[i] = vec_fma(mins, vec_set1(factors[i * L2C_SUPER_LANES + L2C_LANES]), sum[i]);
                }
            }
            for (size_t at = 0; at < ahead; at += 64) {
                PREFETCH_L2(*next + at);
            }
            *next += ahead;
            of_super += PANEL_SUPER;
            values += x->rows * SUPER;
            factors += x->rows * L2C_SUPER_LANES;
        }
        UNROLL for (size_t i = 0; i < M; i++) vec_store(sums + i * PANEL_SCALES + lane * L2C_LANES, sum[i]);
    }
}

/* The lanes of `sums` [16][16 columns] added as vec_sum adds them, into n columns of y. */
static void panel_total(float *y, const float *sums, size_t n, bool add) {
    vec lanes[L2C_LANES];
    for (size_t l = 0; l < L2C_LANES; l++) {
        lanes[l] = vec_load(sums + l * L2C_LANES);
    }
    for (size_t half = L2C_LANES / 2; half > 0; half /= 2) {
        for (size_t l = 0; l < half; l++) {
            lanes[l] = vec_add(lanes[l], lanes[l + half]);
        }
    }
    const vec before = n < L2C_LANES ? vec_load_n(y, add ? n : 0) : add ? vec_load(y) : vec_zero();
    const vec total = add ? vec_add(before, lanes[0]) : lanes[0];
    if (n < L2C_LANES) {
        vec_store_n(y, total, n);
    } else {
        vec_store(y, total);
    }
}

TILE void panel_tile(const bool with_sign, const size_t M, float *y, size_t ldy, const float *panel,
                     const l2c_s8_rows *x, size_t row, size_t n, size_t k, bool add, const char *next, size_t ahead) {
    float sums[PANEL_M * PANEL_SCALES];
    memset(sums, 0, M * PANEL_SCALES * sizeof *sums);
    const size_t supers = (k + SUPER - 1) / SUPER;
    for (size_t s = 0; s < supers; s += PANEL_SUPERS) {
        panel_supers(with_sign, M, sums, panel, x, row, s, smaller(s + PANEL_SUPERS, supers), &next, ahead);
    }
    for (size_t i = 0; i < M; i++) {
        panel_total(y + i * ldy, sums + i * PANEL_SCALES, n, add);
    }
}

/* Rows of x in tiles; returns the first row that is left, of fewer than half a tile. Meanwhile the next panel's weights
 * are fetched, `ahead` bytes for each of its superblocks. */
TILE size_t panel_tiles(const bool with_sign, float *y, size_t ldy, const float *panel, const l2c_s8_rows *x, size_t m,
                        size_t n, size_t k, bool add, const uint8_t *next, size_t ahead) {
    size_t i = 0;
    for (; i + PANEL_M <= m; i += PANEL_M) {
        panel_tile(with_sign, PANEL_M, y + i * ldy, ldy, panel, x, i, n, k, add, (const char *)next, i ? 0 : ahead);
    }
    for (; i + PANEL_M / 2 <= m; i += PANEL_M / 2) {
        panel_tile(with_sign, PANEL_M / 2, y + i * ldy, ldy, panel, x, i, n, k, add, (const char *)next, i ? 0 : ahead);
    }
    return i;
}

/* Once for all types of a kind: what differs is in the panel. */
static size_t signed_panel(float *y, size_t ldy, const float *panel, const l2c_s8_rows *x, size_t m, size_t n, size_t k,
                           bool add, const uint8_t *next, size_t ahead) {
    return panel_tiles(true, y, ldy, panel, x, m, n, k, add, next, ahead);
}

static size_t unsigned_panel(float *y, size_t ldy, const float *panel, const l2c_s8_rows *x, size_t m, size_t n,
                             size_t k, bool add, const uint8_t *next, size_t ahead) {
    return panel_tiles(false, y, ldy, panel, x, m, n, k, add, next, ahead);
}

TILE void quant_product(const l2c_type type, float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m,
                        size_t n, bool add, float *panel) {
    size_t tiled = 0;
    for (size_t j = 0; j < n && m >= PANEL_ROWS; j += L2C_LANES) {
        const size_t width = smaller(L2C_LANES, n - j);
        const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
        for (size_t s = 0; s * SUPER < w->k; s++) {
            pack_super(type, panel + s * PANEL_SUPER, &columns, width, s);
        }
        tiled = (is_signed(type) ? signed_panel : unsigned_panel)(
            y + j, ldy, panel, x, m, width, w->k, add, columns.data + L2C_LANES * w->row_bytes, super_bytes(type));
    }
    quant_rows(type, y + tiled * ldy, ldy, x, w, tiled, m - tiled, n, add);
}

/* CASE(type); for all of them */
#define EACH_INTEGER_TYPE                                                                                              \
    CASE(L2C_TYPE_Q4_0);                                                                                               \
    CASE(L2C_TYPE_Q4_1);                                                                                               \
    CASE(L2C_TYPE_Q5_0);                                                                                               \
    CASE(L2C_TYPE_Q5_1);                                                                                               \
    CASE(L2C_TYPE_Q8_0);                                                                                               \
    CASE(L2C_TYPE_Q2_K);                                                                                               \
    CASE(L2C_TYPE_Q3_K);                                                                                               \
    CASE(L2C_TYPE_Q4_K);                                                                                               \
    CASE(L2C_TYPE_Q5_K);                                                                                               \
    CASE(L2C_TYPE_Q6_K);                                                                                               \
    CASE(L2C_TYPE_IQ4_NL);                                                                                             \
    CASE(L2C_TYPE_IQ4_XS);                                                                                             \
    CASE(L2C_TYPE_TQ2_0);

static void dot_quant(float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                      float *panel) {
#define CASE(type)                                                                                                     \
    case type: quant_product(type, y, ldy, x, w, m, n, add, panel); break
    switch (w->type->type) {
        EACH_INTEGER_TYPE
    default: break; /* not computed as integers */
    }
#undef CASE
}

/* A group so small that its scale may be subnormal is zero. */
static void quantize_s8(const l2c_s8_rows *q, size_t row, const float *x, size_t k) {
    for (size_t s = 0; s * SUPER < k; s++) {
        const size_t length = smaller(SUPER, k - s * SUPER);
        int8_t *values = q->values + (s * q->rows + row) * SUPER;
        float *lanes = q->lanes + (s * q->rows + row) * L2C_SUPER_LANES, padded[SUPER];
        const float *block = x + s * SUPER;
        if (length < SUPER) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, block, length * sizeof *padded);
            block = padded;
        }
        for (size_t g = 0; g < L2C_LANES; g += 2) {
            const vec low = vec_load(block + g * L2C_LANES), high = vec_load(block + (g + 1) * L2C_LANES);
            const vec most = vec_max(vec_max(low, vec_sub(vec_zero(), low)), vec_max(high, vec_sub(vec_zero(), high)));
            const float top = vec_hmax(most) / 127.0f, scale = top > 0x1p-100f ? top : 0.0f;
            const vec divisor = vec_set1(scale > 0.0f ? scale : INFINITY);
            vec_store_s8(values + g * L2C_LANES, vec_div(low, divisor));
            vec_store_s8(values + (g + 1) * L2C_LANES, vec_div(high, divisor));
            for (size_t half = g; half < g + 2; half++) {
                const size_t lane = half % 4 * 4 + half / 4;
                int32_t sum = 0;
                for (size_t i = 0; i < L2C_LANES; i++) {
                    sum += values[half * L2C_LANES + i];
                }
                lanes[lane] = scale;
                lanes[L2C_LANES + lane] = scale * (float)sum;
                sum *= -128;
                memcpy(lanes + 2 * L2C_LANES + lane, &sum, sizeof sum);
            }
        }
    }
}
