/* kernels_amx.c: AVX-512 VNNI, and prompt rows of any type but F32 by AMX's tiles of bf16.
 *
 *   weights --unpacked, rounded----> A [16 columns][32 k] ----------\
 *                                                                    tdpbf16ps --> sums [16 columns][16 rows] --> y
 *   x       --rounded, transposed--> B [16 pairs of k][16 rows][2] --/
 *
 * Weights are A as it takes them as they lie: few rows go over many columns, so what is transposed is x, and the sums.
 * A sum is one chain over k in f32. A tile's rows know nothing of one another, so that a row of y depends neither on the
 * rows beside it nor on their number. bf16 holds 8 of an f16's 11 bits, so that these weights are taken in two terms,
 * w = w0 + w1. F32 would need three of each, or lose a thousandfold against gemm_f32. */
#include "vec_avx512vnni.h"

#include "kernels.h"

#define LEVEL amx
#define LEVEL_HAS_TILES

static void gemm_tiles(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                       bool add, float *panel);
static double probe_tiles(size_t iterations);

#include "kernels_template.h"

enum {
    TILE_K = 32,     /* k of a tile of A or B */
    TILE_U16 = 512,  /* bf16 in one */
    TILE_SUMS = 256, /* floats of a tile of sums */
    TILE_BYTES = 64, /* of a row of any */
    BLOCK = 32,      /* rows and columns of a block: two by two tiles of sums, with two of A and two of B all eight */
    BLOCK_SUMS = 4 * TILE_SUMS,
    STEP_U16 = 2 * TILE_U16,                    /* w or x of a block for TILE_K */
    TERM_U16 = L2C_PANEL_K / TILE_K * STEP_U16, /* the same for L2C_PANEL_K */
};

_Static_assert(L2C_TILE_ROWS % BLOCK == 0 && L2C_TILE_COLUMNS % BLOCK == 0, "whole blocks");

/* Scratch: the sums of a pass stay in the second-level cache, one block's weights in the first. */
typedef struct tiles {
    uint16_t *x; /* [blocks of rows][L2C_PANEL_K / TILE_K][2][16 pairs of k][16 rows][2] */
    uint16_t *w; /* [w_terms][L2C_PANEL_K / TILE_K][2][16 columns][32 k] */
    float *sums; /* [blocks of columns][blocks of rows][2][2][16 columns][16 rows] */
    size_t w_terms;
} tiles;

/* What a thread's tile registers are while it is inside a product; static, as GCC 12 takes only the first eight bytes of
 * the argument of _tile_loadconfig for read and drops what was stored to the others. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} eight_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* GCC does not know either that a tile is loaded from memory: what it still holds back is stored here. */
#if defined(__GNUC__)
#define STORED() __asm__ volatile("" ::: "memory")
#else
#define STORED() ((void)0)
#endif

/* ---- f32 to bf16 ---- */

TILE size_t w_terms(const l2c_type type) {
    return type == L2C_TYPE_F16 ? 2 : 1;
}

/* p[0 .. 32) = bf16(low, high), to even, subnormals to zero as the tiles take them */
TILE void store_bf16(uint16_t *p, vec low, vec high) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* The same, and what is left of them `after` values further on, in terms of two. */
TILE void store_terms(uint16_t *p, vec low, vec high, size_t terms, size_t after) {
    store_bf16(p, low, high);
    if (terms > 1) {
        const uint8_t *first = (const uint8_t *)p;
        store_bf16(p + after, vec_sub(low, vec_load_bf16(first)), vec_sub(high, vec_load_bf16(first + 2 * L2C_LANES)));
    }
}

/* Sixteen of the n values at p, zeros past them. */
TILE vec load_some(const l2c_type type, const uint8_t *p, size_t at, size_t n) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    return at + L2C_LANES <= n ? load_weights(type, p + at * bytes)
           : at < n            ? load_weights_n(type, p + at * bytes, n - at)
                               : vec_zero();
}

/* x of one block: rows [0, m), k [0, depth); zeros past both, but sixteen rows without any are left as they are */
static void pack_rows(uint16_t *to, const float *x, size_t ldx, size_t m, size_t depth) {
    float plain[TILE_SUMS]; /* [16 rows][16 pairs of bf16], which move as floats */
    for (size_t i = 0; i < m; i += L2C_LANES) {
        for (size_t p = 0; p < depth; p += TILE_K) {
            const bool whole = i + L2C_LANES <= m && p + TILE_K <= depth;
            for (size_t lane = 0; lane < L2C_LANES; lane++) {
                uint16_t *out = (uint16_t *)(plain + lane * L2C_LANES);
                if (whole) {
                    const float *from = x + (i + lane) * ldx + p;
                    store_bf16(out, vec_load(from), vec_load(from + L2C_LANES));
                } else {
                    const size_t n = i + lane < m ? depth : 0;
                    const uint8_t *row = (const uint8_t *)(x + (n ? (i + lane) * ldx : 0));
                    store_bf16(out, load_some(L2C_TYPE_F32, row, p, n), load_some(L2C_TYPE_F32, row, p + L2C_LANES, n));
                }
            }
            uint16_t *tile = to + p / TILE_K * STEP_U16 + i / L2C_LANES * TILE_U16;
            pack_block((float *)tile, L2C_LANES, plain, L2C_LANES);
        }
    }
}

/* ---- Weights to bf16 ---- */

/* A column is a row of tiles: its values by TILE_K, STEP_U16 apart. */

/* n values of a float type, zeros up to a multiple of TILE_K */
TILE void floats_to_bf16(const l2c_type type, uint16_t *out, const uint8_t *w, size_t n, size_t terms) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    size_t p = 0;
    for (; p + TILE_K <= n; p += TILE_K, out += STEP_U16) {
        const uint8_t *from = w + p * bytes;
        if (type == L2C_TYPE_BF16) { /* as they are: the tiles themselves take subnormals for zeros */
            bvec_store(out, bvec_load((const int8_t *)from));
        } else {
            store_terms(out, load_weights(type, from), load_weights(type, from + L2C_LANES * bytes), terms, TERM_U16);
        }
    }
    if (p < n) {
        store_terms(out, load_some(type, w, p, n), load_some(type, w, p + L2C_LANES, n), terms, TERM_U16);
    }
}

TILE vec sixteen_values(const int8_t *values, float scale, float min) {
    const vec w = vec_of_ints(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)values)));
    return vec_fma(w, vec_set1(scale), vec_set1(min));
}

/* 256 values, scale value + min: superblock s of a row (kernels_quant.h) */
TILE void super_to_bf16(const l2c_type type, uint16_t *out, const uint8_t *row, size_t s, size_t k) {
    uint8_t last[MOST_SUPER_BYTES];
    int8_t values[L2C_Q8_CHUNK];
    float scales[L2C_LANES], mins[L2C_LANES];
    const uint8_t *p = super_at(type, last, row, s, k);
    vec of_mins = vec_zero();
    const vec of_scales = step_scales(type, (const uint8_t *const[2]){p, p}, &of_mins);
    vec_store(scales, of_scales);
    vec_store(mins, has_mins(type) ? of_mins : vec_mul(of_scales, vec_set1(bias_of(type))));
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        bvec_store(values, super_values(type, p, c));
        UNROLL for (int q = 0; q < 4; q += 2) {
            const int lane = is_narrow(type) ? 4 * q + c : 2 * q + c, next = is_narrow(type) ? lane + 4 : lane;
            store_bf16(out + (2 * c + q / 2) * STEP_U16,
                       sixteen_values(values + q * L2C_LANES, scales[lane], mins[lane]),
                       sixteen_values(values + (q + 1) * L2C_LANES, scales[next], mins[next]));
        }
    }
}

/* k [p, p + depth) of one column, which begins with byte `at` of its row, zeros up to a multiple of TILE_K */
TILE void column_to_bf16(const l2c_type type, uint16_t *out, const l2c_matrix *w, const uint8_t *row, size_t at,
                         size_t p, size_t depth) {
    const uint8_t *from = row + at;
    if (type == L2C_TYPE_F16 || type == L2C_TYPE_BF16) {
        floats_to_bf16(type, out, from, depth, w_terms(type));
    } else if (type == L2C_TYPE_IQ3_S) { /* and TQ1_0: they have no vectors of integers */
        float plain[L2C_PANEL_K];
        w->type->dequantize(plain, from, depth / w->type->values);
        floats_to_bf16(L2C_TYPE_F32, out, (const uint8_t *)plain, depth, 1);
    } else {
        super_to_bf16(type, out, row, p / SUPER, w->k);
    }
}

/* w of one block: columns [0, n), k [p, p + depth); zeros past both */
TILE void pack_columns_of(const l2c_type type, uint16_t *to, const l2c_matrix *w, size_t n, size_t p, size_t depth) {
    const size_t values = w->type->values, at = p / values * w->type->bytes, bytes = depth / values * w->type->bytes;
    for (size_t j = 0; j < BLOCK; j++) {
        uint16_t *out = to + j * TILE_K; /* the two tiles of a step lie one after the other */
        if (j < n) {
            const uint8_t *row = w->data + j * w->row_bytes;
            /* the next block's column: so many streams are more than the hardware follows */
            for (size_t ahead = 0; ahead < bytes; ahead += 64) {
                PREFETCH((const char *)row + BLOCK * w->row_bytes + at + ahead);
            }
            column_to_bf16(type, out, w, row, at, p, depth);
        } else {
            for (size_t step = 0; step < L2C_PANEL_K / TILE_K; step++) {
                store_terms(out + step * STEP_U16, vec_zero(), vec_zero(), w_terms(type), TERM_U16);
            }
        }
    }
}

static void pack_columns(uint16_t *to, const l2c_matrix *w, size_t n, size_t p, size_t depth) {
#define CASE(type)                                                                                                     \
    case type: pack_columns_of(type, to, w, n, p, depth); break
    switch (w->type->type) {
        CASE(L2C_TYPE_F16);
        CASE(L2C_TYPE_BF16);
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
    default: pack_columns_of(L2C_TYPE_IQ3_S, to, w, n, p, depth);
    }
#undef CASE
}

/* ---- Products of tiles: 0 to 3 are the sums, 4 and 5 columns of w, 6 and 7 rows of x ---- */

TILE void load_sums(const float *sums) {
    _tile_loadd(0, sums, TILE_BYTES);
    _tile_loadd(1, sums + TILE_SUMS, TILE_BYTES);
    _tile_loadd(2, sums + 2 * TILE_SUMS, TILE_BYTES);
    _tile_loadd(3, sums + 3 * TILE_SUMS, TILE_BYTES);
}

TILE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

TILE void store_sums(float *sums) {
    _tile_stored(0, sums, TILE_BYTES);
    _tile_stored(1, sums + TILE_SUMS, TILE_BYTES);
    _tile_stored(2, sums + 2 * TILE_SUMS, TILE_BYTES);
    _tile_stored(3, sums + 3 * TILE_SUMS, TILE_BYTES);
}

/* sums[j][i] += sum_k w[j][k] x[k][i] over so many steps of TILE_K; not wide: the second sixteen rows are not there */
TILE void multiply(const bool wide, const uint16_t *w, const uint16_t *x, size_t steps) {
    for (size_t s = 0; s < steps; s++, w += STEP_U16, x += STEP_U16) {
        _tile_loadd(4, w, TILE_BYTES);
        _tile_loadd(6, x, TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w + TILE_U16, TILE_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) {
            _tile_loadd(7, x + TILE_U16, TILE_BYTES);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

TILE void block_product(const bool wide, float *sums, const tiles *t, const uint16_t *x, size_t steps, bool first) {
    STORED();
    if (first) {
        zero_sums();
    } else {
        load_sums(sums);
    }
    if (t->w_terms > 1) {
        multiply(wide, t->w + TERM_U16, x, steps);
    }
    multiply(wide, t->w, x, steps);
    store_sums(sums);
}

/* y[m][n] (+)= the sums of one block */
static void add_block(float *y, size_t ldy, const float *sums, size_t m, size_t n, bool add) {
    float rows[TILE_SUMS];
    for (size_t i = 0; i < m; i += L2C_LANES) {
        for (size_t j = 0; j < n; j += L2C_LANES) {
            const size_t height = smaller(L2C_LANES, m - i), width = smaller(L2C_LANES, n - j);
            pack_block(rows, L2C_LANES, sums + (j / L2C_LANES * 2 + i / L2C_LANES) * TILE_SUMS, L2C_LANES);
            for (size_t r = 0; r < height; r++) {
                const vec sum = vec_load(rows + r * L2C_LANES);
                float *out = y + (i + r) * ldy + j;
                vec_store_n(out, add ? vec_add(vec_load_n(out, width), sum) : sum, width);
            }
        }
    }
}

/* All of k for m <= L2C_TILE_ROWS rows, n <= L2C_TILE_COLUMNS columns. */
static void pass(const tiles *t, float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m,
                 size_t n, bool add) {
    const size_t height = (m + BLOCK - 1) / BLOCK;
    for (size_t p = 0; p < w->k; p += L2C_PANEL_K) {
        const size_t depth = smaller(L2C_PANEL_K, w->k - p), steps = (depth + TILE_K - 1) / TILE_K;
        for (size_t i = 0; i < m; i += BLOCK) {
            pack_rows(t->x + i / BLOCK * TERM_U16, x + i * ldx + p, ldx, smaller(BLOCK, m - i), depth);
        }
        for (size_t j = 0; j < n; j += BLOCK) {
            const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
            pack_columns(t->w, &columns, smaller(BLOCK, n - j), p, depth);
            for (size_t i = 0; i < m; i += BLOCK) {
                const uint16_t *rows = t->x + i / BLOCK * TERM_U16;
                float *sums = t->sums + (j / BLOCK * height + i / BLOCK) * BLOCK_SUMS;
                if (m - i > L2C_LANES) {
                    block_product(true, sums, t, rows, steps, p == 0);
                } else {
                    block_product(false, sums, t, rows, steps, p == 0);
                }
            }
        }
    }
    for (size_t j = 0; j < n; j += BLOCK) {
        for (size_t i = 0; i < m; i += BLOCK) {
            add_block(y + i * ldy + j, ldy, t->sums + (j / BLOCK * height + i / BLOCK) * BLOCK_SUMS,
                      smaller(BLOCK, m - i), smaller(BLOCK, n - j), add);
        }
    }
}

static void gemm_tiles(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                       bool add, float *panel) {
    tiles t = {.w = (uint16_t *)panel, .w_terms = w_terms(w->type->type)};
    const size_t height = (smaller(m, L2C_TILE_ROWS) + BLOCK - 1) / BLOCK;
    t.x = t.w + t.w_terms * TERM_U16;
    t.sums = (float *)(t.x + height * TERM_U16);
    _tile_loadconfig(&eight_tiles);
    for (size_t i = 0; i < m; i += L2C_TILE_ROWS) {
        for (size_t j = 0; j < n; j += L2C_TILE_COLUMNS) {
            const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
            pass(&t, y + i * ldy + j, ldy, x + i * ldx, ldx, &columns, smaller(L2C_TILE_ROWS, m - i),
                 smaller(L2C_TILE_COLUMNS, n - j), add);
        }
    }
    _tile_release(); /* the system need not save the registers of a thread that does something else */
}

static double probe_tiles(size_t iterations) {
    _tile_loadconfig(&eight_tiles);
    zero_sums();
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (size_t n = 0; n < iterations; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)iterations * BLOCK * BLOCK * TILE_K;
}
