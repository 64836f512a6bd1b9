/* kernels_quant_tiles.h: the products of kernels_quant.h with many rows of x by tiles of bytes; part of kernels_amx.c.
 *
 *   w A [16 columns][a group's values] --\
 *                                         tdpbssd --> C [16 columns][16 rows] --memory--> vectors: * scales, + sums
 *   x B [quads of it][16 rows][4] -------/
 *
 * Sixteen columns are unpacked to the bytes of A, in order, for a few instructions on 64 values; it is x that is transposed,
 * once for all columns, by quantize_s8. A product is a group of sixteen columns and rows: exact, so that what follows is
 * what kernels_quant.h tells. While those of a lane are made, for a block of BLOCK_SUPERS superblocks, the vectors take those
 * of the lane before it, each from where its successor will go. No more than three tiles are in use: with all eight in turn
 * fewer products are under way at once. What it costs is the microcode of the tiles' loads and stores, more than products.
 *
 * Of x there are [superblocks][blocks of 16 rows][64 quads][16 rows][4] and, for each step of such a block, [16 lanes]
 * [scales, scaled sums][16 rows]; the last block's rows that are not there are anything. */

enum { HEIGHT = L2C_LANES, A_VALUES = HEIGHT * SUPER, FACTORS = 2 * HEIGHT * L2C_LANES, PRODUCT = HEIGHT * L2C_LANES };
/* Bytes of a lane in a block of unpacked columns, a line more than its values, and of the block; floats of its scales, then
 * of as many mins: [columns][steps][lanes]. */
enum {
    BLOCK_SUPERS = L2C_PANEL_SUPERS,
    A_LANE = BLOCK_SUPERS * A_VALUES / L2C_LANES + 64,
    A_BLOCK = L2C_LANES * A_LANE,
    A_SCALES = HEIGHT * BLOCK_SUPERS * L2C_LANES,
};
_Static_assert((int)A_BLOCK + 2 * (int)A_SCALES * 4 <= 4 * (int)L2C_PANEL_BLOCK, "a block fits the scratch");
_Static_assert((int)FACTORS <= (int)HEIGHT * (int)L2C_STEP_LANES, "the factors of sixteen rows fit their room");

TILE size_t row_blocks(const l2c_s8_rows *x) {
    return (x->rows + HEIGHT - 1) / HEIGHT;
}

TILE void place_values(const l2c_s8_rows *x, size_t s, size_t row, const int8_t values[SUPER]) {
    int8_t *to = x->values + (s * row_blocks(x) + row / HEIGHT) * A_VALUES + row % HEIGHT * 4;
    for (size_t quad = 0; quad < SUPER / 4; quad++) {
        memcpy(to + quad * HEIGHT * 4, values + quad * 4, 4);
    }
}

TILE void place_lanes(const l2c_s8_rows *x, float *of, size_t step, size_t row, const float lanes[L2C_STEP_LANES]) {
    float *to = of + (step * row_blocks(x) + row / HEIGHT) * FACTORS + row % HEIGHT;
    for (size_t lane = 0; lane < L2C_LANES; lane++) {
        to[2 * lane * HEIGHT] = lanes[lane];
        to[(2 * lane + 1) * HEIGHT] = lanes[L2C_LANES + lane];
    }
}

/* Sixteen columns of a block, and what they are scaled by. */
typedef struct unpacked {
    uint8_t *values;
    float *scales, *mins;
} unpacked;

TILE unpacked block_of(float *scratch, size_t number) {
    uint8_t *values = (uint8_t *)(scratch + number * L2C_PANEL_BLOCK);
    float *scales = (float *)(values + A_BLOCK);
    return (unpacked){values, scales, scales + A_SCALES};
}

/* Values of superblock s of a block, of column j: signed, as they are. */
TILE void unpack_super(const l2c_type type, const unpacked *to, size_t j, size_t s, const uint8_t *p) {
    const size_t values = is_narrow(type) ? 16 : 32, step = s / step_supers(type);
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        bvec w = super_values(type, p, c);
        w = bias_bits(type) < 0 ? w : bvec_sub(w, (int8_t)(1 << bias_bits(type)));
        for (size_t part = 0; part < L2C_Q8_CHUNK / values; part++) {
            const size_t lane = is_narrow(type) ? part * 4 + (size_t)c : s % 2 * 8 + part * 4 + (size_t)c;
            uint8_t *at = to->values + lane * A_LANE + (step * HEIGHT + j) * values;
            if (is_narrow(type)) {
                _mm_storeu_si128((__m128i *)at, part == 0   ? _mm512_castsi512_si128(w)
                                                : part == 1 ? _mm512_extracti32x4_epi32(w, 1)
                                                : part == 2 ? _mm512_extracti32x4_epi32(w, 2)
                                                            : _mm512_extracti32x4_epi32(w, 3));
            } else {
                _mm256_storeu_si256((__m256i *)at, part ? _mm512_extracti64x4_epi64(w, 1) : _mm512_castsi512_si256(w));
            }
        }
    }
}

/* Sixteen columns, or as many as there are, step by step: what one writes stays in the first-level cache for the others. */
TILE void unpack_columns(const l2c_type type, float *scratch, const l2c_matrix *w, size_t n, next_weights *next) {
    const size_t in_step = step_supers(type), steps = BLOCK_SUPERS / in_step;
    for (size_t from = 0; from * SUPER < w->k; from += BLOCK_SUPERS) {
        const unpacked to = block_of(scratch, from / BLOCK_SUPERS);
        for (size_t s = 0; s < BLOCK_SUPERS && (from + s) * SUPER < w->k; s += in_step) {
            for (size_t j = 0; j < n; j++) {
                const uint8_t *row = w->data + j * w->row_bytes;
                uint8_t last[2][MOST_SUPER_BYTES];
                const uint8_t *const p[2] = {super_at(type, last[0], row, from + s, w->k),
                                             super_at(type, last[1], row, from + s + in_step - 1, w->k)};
                const size_t at = (j * steps + s / in_step) * L2C_LANES;
                vec mins = vec_zero();
                vec_store(to.scales + at, step_scales(type, p, &mins));
                if (has_mins(type)) {
                    vec_store(to.mins + at, mins);
                }
                UNROLL for (size_t half = 0; half < in_step; half++) unpack_super(type, &to, j, s + half, p[half]);
                fetch_next(next, in_step * next->unpacking);
            }
        }
    }
}

/* A lane of a block, and the strides of x from a step to the next. */
typedef struct lane_parts {
    const uint8_t *w;
    const int8_t *x;
    const float *scales, *mins, *factors; /* of x */
    size_t x_stride, factors_stride;
} lane_parts;

TILE lane_parts parts_of(const bool narrow, const unpacked *w, const l2c_s8_rows *x, size_t rows, size_t from,
                         size_t lane) {
    const size_t in_step = narrow ? 1 : 2, super = narrow ? 0 : lane / 8;
    const size_t group = narrow ? lane % 4 * 4 + lane / 4 : lane % 4 * 2 + lane / 4 % 2, blocks = row_blocks(x);
    return (lane_parts){
        .w = w->values + lane * A_LANE,
        .x = x->values + ((from + super) * blocks + rows) * A_VALUES + group * HEIGHT * (narrow ? 16 : 32),
        .scales = w->scales + lane,
        .mins = w->mins + lane,
        .factors = (narrow ? x->of_16 : x->of_32) + (from / in_step * blocks + rows) * FACTORS + 2 * lane * HEIGHT,
        .x_stride = in_step * blocks * A_VALUES,
        .factors_stride = blocks * FACTORS,
    };
}

/* For each step, the products of the lane `before` are taken to its sums [columns][rows], and those of `now` are made. */
TILE void lane_by_tiles(const bool narrow, const bool mins, bool add, float *sums, float *products,
                        const lane_parts *before, const lane_parts *now, size_t steps, next_weights *next) {
    const size_t in_step = narrow ? 1 : 2, values = 16 * in_step, of_column = BLOCK_SUPERS / in_step * L2C_LANES;
    vec sum[HEIGHT];
    UNROLL for (size_t j = 0; before && j < HEIGHT; j++) sum[j] = add ? vec_load(sums + j * L2C_LANES) : vec_zero();
    for (size_t s = 0; s < steps; s++, products += PRODUCT) {
        if (before) {
            const float *of_w = before->scales + s * L2C_LANES, *min = before->mins + s * L2C_LANES;
            const vec of_x = vec_load(before->factors + s * before->factors_stride);
            const vec sum_of_x = vec_load(before->factors + s * before->factors_stride + HEIGHT);
            UNROLL for (size_t j = 0; j < HEIGHT; j++) {
                const vec both = vec_mul(of_x, vec_set1(of_w[j * of_column]));
                sum[j] = vec_fma(vec_of_ints(ivec_load(products + j * L2C_LANES)), both, sum[j]);
                if (mins) {
                    sum[j] = vec_fma(sum_of_x, vec_set1(min[j * of_column]), sum[j]);
                }
            }
        }
        if (now) {
            _tile_loadd(1, now->w + s * HEIGHT * values, values);
            _tile_loadd(2, now->x + s * now->x_stride, TILE_BYTES);
            _tile_zero(0);
            _tile_dpbssd(0, 1, 2);
            _tile_stored(0, products, TILE_BYTES);
            fetch_next(next, next->multiplying);
        }
    }
    UNROLL for (size_t j = 0; before && j < HEIGHT; j++) vec_store(sums + j * L2C_LANES, sum[j]);
}

/* sums [16 lanes][16 columns][16 rows] (+)= a block that begins with superblock `from` */
TILE void block_by_tiles(const bool narrow, const bool mins, float *sums, const unpacked *w, const l2c_s8_rows *x,
                         size_t rows, size_t from, size_t supers, next_weights *next) {
    const size_t steps = narrow ? supers : (supers + 1) / 2;
    _Alignas(64) float products[BLOCK_SUPERS * PRODUCT];
    lane_parts before = parts_of(narrow, w, x, rows, from, 0);
    lane_by_tiles(narrow, mins, from > 0, NULL, products, NULL, &before, steps, next);
    for (size_t lane = 1; lane < L2C_LANES; lane++, sums += PRODUCT) {
        const lane_parts now = parts_of(narrow, w, x, rows, from, lane);
        lane_by_tiles(narrow, mins, from > 0, sums, products, &before, &now, steps, next);
        before = now;
    }
    lane_by_tiles(narrow, mins, from > 0, sums, products, &before, NULL, steps, next);
}

/* y [m][n] (+)= rows [m][16], of a tile */
static void add_rows(float *y, size_t ldy, const float *rows, size_t m, size_t n, bool add) {
    for (size_t i = 0; i < m; i++) {
        const vec row = vec_load(rows + i * L2C_LANES);
        float *out = y + i * ldy;
        if (n < L2C_LANES) {
            vec_store_n(out, add ? vec_add(vec_load_n(out, n), row) : row, n);
        } else {
            vec_store(out, add ? vec_add(vec_load(out), row) : row);
        }
    }
}

/* The lanes of sums [16 lanes][16 columns][16 rows] added as vec_sum adds them, into y [m][n]. */
static void add_totals(float *y, size_t ldy, const float *sums, size_t m, size_t n, bool add) {
    float totals[PRODUCT], rows[PRODUCT];
    for (size_t j = 0; j < HEIGHT; j++) {
        vec lanes[L2C_LANES];
        UNROLL for (size_t l = 0; l < L2C_LANES; l++) lanes[l] = vec_load(sums + l * PRODUCT + j * L2C_LANES);
        for (size_t half = L2C_LANES / 2; half > 0; half /= 2) {
            for (size_t l = 0; l < half; l++) {
                lanes[l] = vec_add(lanes[l], lanes[l + half]);
            }
        }
        vec_store(totals + j * L2C_LANES, lanes[0]);
    }
    pack_block(rows, L2C_LANES, totals, L2C_LANES);
    add_rows(y, ldy, rows, m, n, add);
}

/* All rows of x by sixteen unpacked columns, n of which are there. */
TILE void rows_by_tiles(const bool narrow, const bool mins, float *y, size_t ldy, const l2c_s8_rows *x, float *scratch,
                        size_t m, size_t n, size_t k, bool add, next_weights *next) {
    const size_t supers = (k + SUPER - 1) / SUPER;
    _Alignas(64) float sums[L2C_LANES * PRODUCT];
    STORED();
    for (size_t i = 0; i < m; i += HEIGHT) {
        for (size_t s = 0; s == 0 || s < supers; s += BLOCK_SUPERS) {
            const unpacked w = block_of(scratch, s / BLOCK_SUPERS);
            block_by_tiles(narrow, mins, sums, &w, x, i / HEIGHT, s, smaller(BLOCK_SUPERS, supers - s), next);
        }
        add_totals(y + i * ldy, ldy, sums, smaller(HEIGHT, m - i), n, add);
    }
}

/* Once for all types of a kind: what differs is unpacked. */
#define KIND(name, narrow, mins)                                                                                       \
    static void name(float *y, size_t ldy, const l2c_s8_rows *x, float *scratch, size_t m, size_t n, size_t k,         \
                     bool add, next_weights *next) {                                                                   \
        rows_by_tiles(narrow, mins, y, ldy, x, scratch, m, n, k, add, next);                                           \
    }
KIND(wide_rows, false, false)
KIND(wide_rows_with_mins, false, true)
KIND(narrow_rows, true, false)
KIND(narrow_rows_with_mins, true, true)
#undef KIND

/* y [m][n] (+)= x w^T by tiles */
TILE void many_rows(const l2c_type type, float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m,
                    size_t n, bool add, float *scratch) {
    /* Static: see eight_tiles. */
    static const tile_shapes wide_tiles = {1, 0, {0}, {64, 32, 64}, {16, 16, 8}};
    static const tile_shapes narrow_tiles = {1, 0, {0}, {64, 16, 64}, {16, 16, 4}};
    _tile_loadconfig(is_narrow(type) ? &narrow_tiles : &wide_tiles);
    const size_t products = L2C_LANES / step_supers(type) * ((m + HEIGHT - 1) / HEIGHT);
    for (size_t j = 0; j < n; j += HEIGHT) {
        const size_t width = smaller(HEIGHT, n - j);
        const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
        next_weights next = weights_after(type, &columns, HEIGHT, m, products);
        unpack_columns(type, scratch, &columns, width, &next);
        (is_narrow(type)  ? has_mins(type) ? narrow_rows_with_mins : narrow_rows
         : has_mins(type) ? wide_rows_with_mins
                          : wide_rows)(y + j, ldy, x, scratch, m, width, w->k, add, &next);
    }
    _tile_release();
}
