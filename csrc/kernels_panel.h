/* kernels_panel.h: the products of kernels_quant.h with many rows of x; part of kernels_template.h.
 *
 * PANEL_COLUMNS columns are unpacked once, to a panel whose lanes are the columns, which lies in the second-level cache.
 * Pieces of sixteen bytes of sixteen columns are transposed to dwords of all columns first, and unpacked then, many columns
 * at a time.
 *
 * A panel has blocks of PANEL_SUPERS superblocks: values [16 lanes][steps][16 or 32 values / 4][columns][4], then scales
 * [lanes][steps][columns], then mins alike. A lane is one stream, whose sums stay in registers. */

enum { PANEL_COLUMNS = PANEL_V * L2C_LANES, PANEL_SUPERS = L2C_PANEL_SUPERS };
enum { OF_LANE = PANEL_SUPERS * SUPER / L2C_LANES / 4 * PANEL_COLUMNS, LANE_SUMS = L2C_LANES * PANEL_COLUMNS };
/* Sixteen lanes whole pages apart would share the few lines of one set of the first-level cache. */
enum { LANE_VALUES = OF_LANE + (OF_LANE * (int)sizeof(float) % 4096 == 0 ? L2C_LANES : 0) };
enum { PANEL_SCALES = L2C_LANES * LANE_VALUES, PANEL_MINS = PANEL_SCALES + PANEL_SUPERS * LANE_SUMS };
enum { PANEL_BLOCK = PANEL_MINS + PANEL_SUPERS * LANE_SUMS }; /* floats */
_Static_assert((int)PANEL_BLOCK <= (int)L2C_PANEL_BLOCK, "blocks fit the scratch of l2c_quant_panel");

enum { X_GROUP = 32 };

/* 32 values of superblock s of a row; those of other rows lie beside them, as they meet a panel together. */
TILE int8_t *group_of_rows(const l2c_s8_rows *x, size_t s, size_t group, size_t row) {
    return x->values + ((s * (SUPER / X_GROUP) + group) * x->rows + row) * X_GROUP;
}

TILE void place_values(const l2c_s8_rows *x, size_t s, size_t row, const int8_t values[SUPER]) {
    for (size_t g = 0; g < SUPER / X_GROUP; g++) {
        memcpy(group_of_rows(x, s, g, row), values + g * X_GROUP, X_GROUP);
    }
}

TILE void place_lanes(const l2c_s8_rows *x, float *of, size_t step, size_t row, const float lanes[L2C_STEP_LANES]) {
    memcpy(of + (step * x->rows + row) * L2C_STEP_LANES, lanes, L2C_STEP_LANES * sizeof *lanes);
}

/* Bits of a value in the piece of 16 bytes that it is taken from; 8 for what only super_values can unpack. */
TILE int piece_bits(const l2c_type type) {
    return type == L2C_TYPE_Q8_0 || type == L2C_TYPE_Q5_0 || type == L2C_TYPE_Q5_1    ? 8
           : type == L2C_TYPE_Q2_K || type == L2C_TYPE_Q3_K || type == L2C_TYPE_TQ2_0 ? 2
                                                                                      : 4;
}

/* Where piece i of a superblock begins. */
TILE size_t piece_at(const l2c_type type, size_t i) {
    const size_t stride = super_bytes(type) / 8;
    switch (type) {
    case L2C_TYPE_Q5_0:
    case L2C_TYPE_Q5_1: return 16 * i; /* of values that super_values has unpacked */
    case L2C_TYPE_Q8_0: return i / 2 * stride + 2 + 16 * (i % 2);
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL: return i * stride + 2;
    case L2C_TYPE_Q4_1: return i * stride + 4;
    case L2C_TYPE_Q2_K:
    case L2C_TYPE_Q4_K: return 16 + 16 * i;
    case L2C_TYPE_Q3_K: return 32 + 16 * i;
    case L2C_TYPE_Q5_K: return 48 + 16 * i;
    case L2C_TYPE_IQ4_XS: return 8 + 16 * i;
    default: return 16 * i; /* Q6_K, TQ2_0 */
    }
}

/* Which sixteen values part e of piece i is. */
TILE size_t sixteen_of(const l2c_type type, size_t i, size_t e) {
    switch (type) {
    case L2C_TYPE_Q4_K:
    case L2C_TYPE_Q5_K: return i / 2 * 4 + 2 * e + i % 2;
    case L2C_TYPE_Q6_K: return i / 4 * 8 + 4 * e + i % 4;
    case L2C_TYPE_Q2_K:
    case L2C_TYPE_Q3_K:
    case L2C_TYPE_TQ2_0: return i / 2 * 8 + 2 * e + i % 2;
    default: return piece_bits(type) == 8 ? i : 2 * i + e;
    }
}

/* Pieces of upper bits, which lie at upper_at. */
TILE size_t upper_pieces(const l2c_type type) {
    return type == L2C_TYPE_Q6_K ? 4 : type == L2C_TYPE_Q5_K || type == L2C_TYPE_Q3_K ? 2 : 0;
}

TILE size_t upper_at(const l2c_type type) {
    return type == L2C_TYPE_Q6_K ? 128 : type == L2C_TYPE_Q5_K ? 16 : 0;
}

/* Four values of each of sixteen columns, part e of piece i, from that piece and the pieces of upper bits. */
TILE bvec part_of_piece(const l2c_type type, bvec piece, const bvec *upper, size_t t, size_t i, int e) {
    static const int8_t iq4[16] = {L2C_IQ4_VALUES};
    const int bits = piece_bits(type);
    const bvec w = bits == 8 ? piece : bvec_shr(piece, bits * e, (1 << bits) - 1);
    const int number = (int)i;
    switch (type) {
    case L2C_TYPE_IQ4_NL:
    case L2C_TYPE_IQ4_XS: return bvec_lookup(w, iq4);
    case L2C_TYPE_Q3_K: return bvec_or_shl(w, bvec_shr(upper[i % 2 * 4 + t], number / 2 * 4 + e, 1), 2);
    case L2C_TYPE_Q5_K: return bvec_or_shl(w, bvec_shr(upper[i % 2 * 4 + t], number / 2 * 2 + e, 1), 4);
    case L2C_TYPE_Q6_K:
        return bvec_or_shl(w, bvec_shr(upper[(i / 4 * 2 + i % 2) * 4 + t], 4 * e + number % 4 / 2 * 2, 3), 4);
    default: return w;
    }
}

/* Where four values, of sixteen `g` of superblock s of a block, lie in it. */
TILE size_t panel_at(const l2c_type type, size_t s, size_t g, size_t t) {
    const size_t half = g / 2;
    return is_narrow(type)
               ? (g % 4 * 4 + g / 4) * LANE_VALUES + (s * 4 + t) * PANEL_COLUMNS
               : (s % 2 * 8 + half % 2 * 4 + half / 2) * LANE_VALUES + (s / 2 * 8 + g % 2 * 4 + t) * PANEL_COLUMNS;
}

/* Values of superblock s of a block, of sixteen columns whose superblocks are at p. */
TILE void pack_values(const l2c_type type, float *block, const uint8_t *const p[L2C_LANES], size_t s,
                      next_weights *next) {
    const uint8_t *from[L2C_LANES];
    float plain[L2C_LANES][SUPER / 4];
    bvec upper[16], piece[4];
    const bool unpack = piece_bits(type) == 8 && !is_signed(type);
    for (size_t j = 0; j < L2C_LANES; j++) {
        UNROLL for (int c = 0; unpack && c < CHUNKS; c++) {
            bvec_store(plain[j] + c * L2C_LANES, super_values(type, p[j], c));
        }
        from[j] = unpack ? (const uint8_t *)plain[j] : p[j];
    }
    UNROLL for (size_t i = 0; i < upper_pieces(type); i++)
        bvec_load_columns(upper + 4 * i, from, upper_at(type) + 16 * i);
    UNROLL for (size_t i = 0; i < 2 * (size_t)piece_bits(type); i++) {
        bvec_load_columns(piece, from, piece_at(type, i));
        fetch_next(next, next->unpacking * L2C_LANES / (2 * (size_t)piece_bits(type)));
        UNROLL for (int e = 0; e < 8 / piece_bits(type); e++) {
            const size_t g = sixteen_of(type, i, (size_t)e);
            UNROLL for (size_t t = 0; t < 4; t++) {
                const bvec w = part_of_piece(type, piece[t], upper, t, i, e);
                bvec_store(block + panel_at(type, s, g, t), is_signed(type) ? bvec_of_panel(w) : w);
            }
        }
    }
}

/* Superblock s of sixteen columns from j on; those from n on are zeros. */
TILE void super_columns(const l2c_type type, const uint8_t *p[L2C_LANES], uint8_t last[L2C_LANES][MOST_SUPER_BYTES],
                        const l2c_matrix *w, size_t j, size_t n, size_t s) {
    if (j + L2C_LANES <= n && (s + 1) * SUPER <= w->k) {
        for (size_t i = 0; i < L2C_LANES; i++) {
            p[i] = w->data + (j + i) * w->row_bytes + s * super_bytes(type);
        }
        return;
    }
    for (size_t i = 0; i < L2C_LANES; i++) {
        const bool there = j + i < n;
        p[i] = super_at(type, last[i], w->data + (there ? j + i : 0) * w->row_bytes, s, there ? w->k : 0);
    }
}

/* The step of a block that begins with its superblock s; the block with superblock `from` of the columns. */
TILE void pack_step(const l2c_type type, float *block, const l2c_matrix *w, size_t n, size_t from, size_t s,
                    next_weights *next) {
    const size_t in_step = step_supers(type), stride = PANEL_SUPERS / in_step * PANEL_COLUMNS;
    uint8_t last[L2C_LANES][MOST_SUPER_BYTES];
    for (size_t v = 0; v < PANEL_COLUMNS; v += L2C_LANES) {
        const uint8_t *p[2][L2C_LANES];
        float scales[L2C_LANES * L2C_LANES], mins[L2C_LANES * L2C_LANES];
        for (size_t half = 0; half < in_step; half++) {
            super_columns(type, p[half], last, w, v, n, from + s + half);
        }
        for (size_t i = 0; i < L2C_LANES; i++) {
            const uint8_t *const of_column[2] = {p[0][i], p[in_step - 1][i]};
            vec of_mins = vec_zero();
            vec_store(scales + i * L2C_LANES, step_scales(type, of_column, &of_mins));
            if (has_mins(type)) {
                vec_store(mins + i * L2C_LANES, of_mins);
            }
        }
        for (size_t half = 0; half < in_step; half++) {
            pack_values(type, block + v, p[half], s + half, next);
        }
        float *factors = block + s / in_step * PANEL_COLUMNS + v;
        pack_block(factors + PANEL_SCALES, stride, scales, L2C_LANES);
        if (has_mins(type)) {
            pack_block(factors + PANEL_MINS, stride, mins, L2C_LANES);
        }
    }
}

/* What a panel's types have in common: two of a kind differ in nothing but the excess. */
typedef struct panel_kind {
    bool narrow, with_sign, with_excess, with_mins;
    int most; /* of a value without a sign */
} panel_kind;

#ifdef LEVEL_HAS_SHORT_DOTS
enum { SHORT_DOTS = 1 };

/* Products whose sum is widened at once: pairs of them, by values of x of at most 127, fit 16 bits. */
TILE size_t panel_run(const panel_kind kind, const size_t quads) {
    return kind.with_sign ? quads : smaller(quads, INT16_MAX / (2 * 127 * (size_t)kind.most));
}
#else
enum { SHORT_DOTS = 0 };
typedef ivec dots;

TILE dots dots_begin(ivec sum) {
    return sum;
}

TILE dots dots_add(dots d, bvec w, const int8_t *four) {
    return ivec_add_dot4u(d, w, four);
}

TILE ivec dots_end(dots d, ivec sum) {
    (void)sum;
    return d;
}

TILE size_t panel_run(const panel_kind kind, const size_t quads) {
    (void)kind;
    return quads;
}
#endif

/* sums [M][lanes][columns] (+)= a block of `supers` superblocks, the first of them number `from`, for M rows of x. */
TILE void panel_block(const panel_kind kind, const int excess, const size_t M, float *sums, const float *block,
                      const l2c_s8_rows *x, size_t row, size_t from, size_t supers, next_weights *next) {
    const size_t per_step = kind.narrow ? 1 : 2, quads = kind.narrow ? 4 : 8, steps = PANEL_SUPERS / per_step;
    const size_t run = panel_run(kind, quads);
    const float *lanes = (kind.narrow ? x->of_16 : x->of_32) + (from / per_step * x->rows + row) * L2C_STEP_LANES;
    for (size_t lane = 0; lane < L2C_LANES; lane++) {
        const size_t super = kind.narrow ? 0 : lane / 8, part = kind.narrow ? lane / 4 * 16 : lane / 4 % 2 * X_GROUP;
        const int8_t *values = group_of_rows(x, from + super, lane % 4 * 2 + part / X_GROUP, row) + part % X_GROUP;
        const float *w = block + lane * LANE_VALUES, *factors = lanes + lane;
        const float *scales = block + PANEL_SCALES + lane * steps * PANEL_COLUMNS;
        const float *mins = block + PANEL_MINS + lane * steps * PANEL_COLUMNS;
        float *of_lane = sums + lane * PANEL_COLUMNS;
        vec sum[PANEL_M][PANEL_V];
        UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < PANEL_V; v++) {
            sum[i][v] = from ? vec_load(of_lane + i * LANE_SUMS + v * L2C_LANES) : vec_zero();
        }
        for (size_t s = 0; s < supers; s += per_step) {
            ivec products[PANEL_M][PANEL_V];
            UNROLL for (size_t i = 0; i < M; i++) {
                const float *sum_of_x = factors + i * L2C_STEP_LANES + 2 * L2C_LANES;
                const ivec first = kind.with_excess ? ivec_shr(ivec_set1(sum_of_x), excess) : ivec_zero();
                UNROLL for (size_t v = 0; v < PANEL_V; v++) products[i][v] = first;
            }
            UNROLL for (size_t from_quad = 0; from_quad < quads; from_quad += run) {
                dots dot[PANEL_M][PANEL_V];
                UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < PANEL_V; v++) {
                    dot[i][v] = dots_begin(products[i][v]);
                }
                UNROLL for (size_t t = from_quad; t < from_quad + run; t++) {
                    bvec four[PANEL_V];
                    UNROLL for (size_t v = 0; v < PANEL_V; v++) {
                        four[v] = bvec_load((const int8_t *)(w + v * L2C_LANES));
                    }
                    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < PANEL_V; v++) {
                        const int8_t *xs = values + i * X_GROUP + 4 * t;
                        if (kind.with_sign) {
                            products[i][v] = ivec_add_dot4(products[i][v], four[v], xs);
                        } else {
                            dot[i][v] = dots_add(dot[i][v], four[v], xs);
                        }
                    }
                    w += PANEL_COLUMNS;
                }
                UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < PANEL_V; v++) {
                    products[i][v] = kind.with_sign ? products[i][v] : dots_end(dot[i][v], products[i][v]);
                }
            }
            UNROLL for (size_t v = 0; v < PANEL_V; v++) {
                const vec scale = vec_load(scales + v * L2C_LANES);
                const vec min = kind.with_mins ? vec_load(mins + v * L2C_LANES) : vec_zero();
                UNROLL for (size_t i = 0; i < M; i++) {
                    const vec both = vec_mul(scale, vec_set1(factors[i * L2C_STEP_LANES]));
                    sum[i][v] = vec_fma(vec_of_ints(products[i][v]), both, sum[i][v]);
                    if (kind.with_mins) {
                        const vec sum_of_x = vec_set1(factors[i * L2C_STEP_LANES + L2C_LANES]);
                        sum[i][v] = vec_fma(min, sum_of_x, sum[i][v]);
                    }
                }
            }
            fetch_next(next, per_step * next->multiplying);
            scales += PANEL_COLUMNS;
            mins += PANEL_COLUMNS;
            values += per_step * x->rows * SUPER;
            factors += x->rows * L2C_STEP_LANES;
        }
        UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < PANEL_V; v++) {
            vec_store(of_lane + i * LANE_SUMS + v * L2C_LANES, sum[i][v]);
        }
    }
}

/* The lanes of `sums` [16][PANEL_COLUMNS] added as vec_sum adds them, into n of sixteen columns of y. */
static void panel_total(float *y, const float *sums, size_t n, bool add) {
    vec lanes[L2C_LANES];
    for (size_t l = 0; l < L2C_LANES; l++) {
        lanes[l] = vec_load(sums + l * PANEL_COLUMNS);
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

TILE void panel_tile(const panel_kind kind, const int excess, const size_t M, float *y, size_t ldy, const float *panel,
                     const l2c_s8_rows *x, size_t row, size_t n, size_t k, bool add, next_weights *next) {
    float sums[PANEL_M * LANE_SUMS];
    const size_t supers = (k + SUPER - 1) / SUPER;
    for (size_t s = 0; s == 0 || s < supers; s += PANEL_SUPERS, panel += PANEL_BLOCK) {
        panel_block(kind, excess, M, sums, panel, x, row, s, smaller(PANEL_SUPERS, supers - s), next);
    }
    for (size_t i = 0; i < M; i++) {
        for (size_t j = 0; j < n; j += L2C_LANES) {
            panel_total(y + i * ldy + j, sums + i * LANE_SUMS + j, smaller(L2C_LANES, n - j), add);
        }
    }
}

/* All rows of x, in tiles. */
TILE void panel_rows(const panel_kind kind, const int excess, float *y, size_t ldy, const float *panel,
                     const l2c_s8_rows *x, size_t m, size_t n, size_t k, bool add, next_weights *next) {
    size_t i = 0;
    for (; i + PANEL_M <= m; i += PANEL_M) {
        panel_tile(kind, excess, PANEL_M, y + i * ldy, ldy, panel, x, i, n, k, add, next);
    }
    for (; i + PANEL_M / 2 <= m; i += PANEL_M / 2) {
        panel_tile(kind, excess, PANEL_M / 2, y + i * ldy, ldy, panel, x, i, n, k, add, next);
    }
    for (; PANEL_M > 4 && i + PANEL_M / 4 <= m; i += PANEL_M / 4) {
        panel_tile(kind, excess, PANEL_M / 4, y + i * ldy, ldy, panel, x, i, n, k, add, next);
    }
    for (; i < m; i++) {
        panel_tile(kind, excess, 1, y + i * ldy, ldy, panel, x, i, n, k, add, next);
    }
}

/* Once for all types of a kind: what differs is in the panel. */
#define PANEL_KIND(name, ...)                                                                                          \
    static void name(int excess, float *y, size_t ldy, const float *panel, const l2c_s8_rows *x, size_t m, size_t n,   \
                     size_t k, bool add, next_weights *next) {                                                         \
        panel_rows((panel_kind){__VA_ARGS__}, excess, y, ldy, panel, x, m, n, k, add, next);                           \
    }
PANEL_KIND(panel_signed, .with_sign = true, .with_excess = SIGNED_EXCESS)
PANEL_KIND(panel_4_biased, .with_excess = true, .most = 15)
PANEL_KIND(panel_5_biased, .with_excess = true, .most = 31)
PANEL_KIND(panel_4_with_mins, .with_mins = true, .most = 15)
PANEL_KIND(panel_5_with_mins, .with_mins = true, .most = 31)
PANEL_KIND(panel_3_narrow_biased, .narrow = true, .with_excess = true, .most = 7)
PANEL_KIND(panel_6_narrow_biased, .narrow = true, .with_excess = true, .most = 63)
PANEL_KIND(panel_2_narrow_with_mins, .narrow = true, .with_mins = true, .most = 3)

typedef void panel_function(int excess, float *y, size_t ldy, const float *panel, const l2c_s8_rows *x, size_t m,
                            size_t n, size_t k, bool add, next_weights *next);

/* Kinds that differ in the bits of their values alone are one where a sum has room for all. */
TILE panel_function *panel_of(const l2c_type type) {
    if (is_narrow(type)) {
        return has_mins(type)                        ? panel_2_narrow_with_mins
               : SHORT_DOTS && type == L2C_TYPE_Q3_K ? panel_3_narrow_biased
                                                     : panel_6_narrow_biased;
    }
    const bool five = type == L2C_TYPE_Q5_0 || type == L2C_TYPE_Q5_1 || type == L2C_TYPE_Q5_K;
    return is_signed(type)      ? panel_signed
           : has_mins(type)     ? SHORT_DOTS && five ? panel_5_with_mins : panel_4_with_mins
           : SHORT_DOTS && five ? panel_5_biased
                                : panel_4_biased;
}

/* y [m][n] (+)= x w^T by panels */
TILE void many_rows(const l2c_type type, float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m,
                    size_t n, bool add, float *panel) {
    const size_t tiles = (m + PANEL_M - 1) / PANEL_M, supers = (w->k + SUPER - 1) / SUPER;
    for (size_t j = 0; j < n; j += PANEL_COLUMNS) {
        const size_t width = smaller(PANEL_COLUMNS, n - j);
        const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
        next_weights next = weights_after(type, &columns, PANEL_COLUMNS, m, tiles * L2C_LANES);
        for (size_t s = 0; s < supers; s += step_supers(type)) {
            const size_t in_block = s % PANEL_SUPERS;
            pack_step(type, panel + s / PANEL_SUPERS * PANEL_BLOCK, &columns, width, s - in_block, in_block, &next);
        }
        panel_of(type)(excess_shift(type), y + j, ldy, panel, x, m, width, w->k, add, &next);
    }
}
