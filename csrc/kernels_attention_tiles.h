/* kernels_attention_tiles.h: attention of prompt rows by tiles of bf16, over keys and values below f32; part of
 * kernels_amx.c.
 *
 *   q      [queries][d] ----------> A -\
 *                                       scores [queries][positions] --softmax--> A -\
 *   keys   [d][positions] --------> B -/                                             means [queries][d]
 *   values [positions][d] -------------------------------------------------------> B -/
 *
 * As in kernels_attention.h: one KV head, chunks of positions at places that never move, joined in order. A query's
 * result depends on its own positions alone: those that it may not see have weight 0, which adds nothing to a sum.
 *
 * Every number is two terms of bf16, a = a0 + a1, whose product leaves out a1 b1. Two hold an f16 as it is, and q and the
 * weights to 2^-17; one holds an int8. */

enum {
    QUERIES = 32, /* of a block, as the columns of one */
    /* bf16 of 32 queries, positions or d by TILE_K, in two terms; a line after each, as what is stored in turn should not lie
     * 2,048 bytes apart */
    TERM = STEP_U16 + TILE_K,
    STEP_TERMS = 2 * TERM,
    CHUNK_PIECES = (int)L2C_KV_CHUNK / TILE_K,  /* positions by TILE_K */
    SCORES = (int)L2C_KV_CHUNK + (int)L2C_LANES /* floats kept for a query's */
};

_Static_assert((int)L2C_ATT_TILE_QUERIES % QUERIES == 0, "queries lie by blocks");

/* The scratch of a task. */
typedef struct tile_work {
    attention_work work; /* p, mean_new, high_new and total_new are those of a block */
    uint16_t *q;         /* [queries / QUERIES][head_dim / TILE_K] steps, A */
    uint16_t *keys;      /* [CHUNK_PIECES][head_dim / TILE_K] steps, B */
    uint16_t *values;    /* [head_dim / TILE_K][CHUNK_PIECES] steps, B */
    uint16_t *weights;   /* [CHUNK_PIECES] steps, A */
    size_t steps;        /* head_dim / TILE_K, rounded up */
} tile_work;

TILE vec upper_bits(vec a) {
    return _mm512_and_ps(a, (vec)_mm512_set1_epi32((int)0xffff0000));
}

/* to[0 .. 32): the first terms of 32 values in order, to[TERM ...] the second ones */
TILE void store_row(uint16_t *to, vec low, vec high) {
    const vec low0 = upper_bits(low), high0 = upper_bits(high);
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high0, low0));
    _mm512_storeu_si512(to + TERM, (__m512i)_mm512_cvtne2ps_pbh(vec_sub(high, high0), vec_sub(low, low0)));
}

/* to[0 .. 32): the first terms of sixteen pairs, to[TERM ...] the second ones */
TILE void store_pairs(const size_t terms, uint16_t *to, vec first, vec second) {
    const __m512i top = _mm512_set1_epi32((int)0xffff0000);
    for (size_t term = 0; term < terms; term++, to += TERM) {
        const __m512i a = _mm512_srli_epi32((__m512i)first, 16);
        _mm512_storeu_si512(to, _mm512_ternarylogic_epi32((__m512i)second, top, a, 0xea)); /* a & b | c */
        first = vec_sub(first, upper_bits(first));
        second = vec_sub(second, upper_bits(second));
    }
}

TILE size_t kv_terms(const l2c_kv_type type) {
    return type == L2C_KV_F16 ? 2 : 1;
}

static tile_work tile_work_of(const l2c_attention *a) {
    const size_t queries = a->rows * a->heads, stride = a->layout->value_stride;
    tile_work w = {.steps = (a->layout->head_dim + TILE_K - 1) / TILE_K};
    w.q = (uint16_t *)a->scratch;
    w.keys = w.q + (queries + QUERIES - 1) / QUERIES * w.steps * STEP_TERMS;
    w.values = w.keys + CHUNK_PIECES * w.steps * STEP_TERMS;
    w.weights = w.values + CHUNK_PIECES * w.steps * STEP_TERMS;
    w.work.p = (float *)(w.weights + CHUNK_PIECES * STEP_TERMS);
    w.work.mean = w.work.p + QUERIES * SCORES;
    w.work.mean_new = w.work.mean + queries * stride;
    w.work.high = w.work.mean_new + QUERIES * stride;
    w.work.total = w.work.high + queries;
    w.work.high_new = w.work.total + queries;
    w.work.total_new = w.work.high_new + QUERIES;
    return w;
}

/* ---- Operands ---- */

/* Rows of queries, in order of their heads; zeros past head_dim. */
static void queries_to_tiles(const tile_work *w, const l2c_attention *a) {
    const size_t head_dim = a->layout->head_dim, queries = a->rows * a->heads;
    for (size_t i = 0; i < queries; i++) {
        const uint8_t *q = (const uint8_t *)(a->q + i / a->heads * a->row_stride + i % a->heads * head_dim);
        uint16_t *to = w->q + i / QUERIES * w->steps * STEP_TERMS + i % QUERIES * TILE_K;
        for (size_t d = 0; d < head_dim; d += TILE_K, to += STEP_TERMS) {
            store_row(to, load_some(L2C_TYPE_F32, q, d, head_dim), load_some(L2C_TYPE_F32, q, d + L2C_LANES, head_dim));
        }
    }
}

/* Of positions [0, length) of a chunk; what comes after them, to a multiple of TILE_K, has scores that nothing takes. */
TILE void keys_to_tiles(const l2c_kv_type type, const tile_work *w, const l2c_kv_layout *layout, size_t length) {
    for (size_t t = 0; t < l2c_round_up(length, TILE_K); t += L2C_KV_BLOCK) {
        const uint8_t *keys = w->work.blocks[t / L2C_KV_BLOCK];
        uint16_t *to = w->keys + t / TILE_K * w->steps * STEP_TERMS + t % TILE_K / L2C_LANES * TILE_U16;
        for (size_t d = 0; d < w->steps * TILE_K; d += 2) {
            const bool some = d < layout->head_dim;
            const vec first = some ? load_kv(type, keys, d * L2C_KV_BLOCK) : vec_zero();
            const vec second = some ? load_kv(type, keys, (d + 1) * L2C_KV_BLOCK) : vec_zero();
            store_pairs(kv_terms(type), to + d / TILE_K * STEP_TERMS + d % TILE_K / 2 * TILE_K, first, second);
        }
    }
}

/* The same; what comes after them is zeros, as 0 times anything else need not be 0. */
TILE void values_to_tiles(const l2c_kv_type type, const tile_work *w, const l2c_kv_layout *layout, size_t length) {
    const size_t stride = layout->value_stride;
    for (size_t t = 0; t < l2c_round_up(length, TILE_K); t += 2) {
        const uint8_t *values = w->work.blocks[t / L2C_KV_BLOCK] + layout->values;
        uint16_t *to = w->values + t / TILE_K * STEP_TERMS + t % TILE_K / 2 * TILE_K;
        const size_t at = t % L2C_KV_BLOCK * stride;
        for (size_t d = 0; d < stride; d += L2C_LANES) {
            const vec first = t < length ? load_kv(type, values, at + d) : vec_zero();
            const vec second = t + 1 < length ? load_kv(type, values, at + stride + d) : vec_zero();
            store_pairs(kv_terms(type), to + d / TILE_K * CHUNK_PIECES * STEP_TERMS + d % TILE_K / L2C_LANES * TILE_U16,
                        first, second);
        }
    }
}

/* Of query i of a block. */
static void weights_to_tiles(const tile_work *w, size_t i, size_t length) {
    const float *p = w->work.p + i * SCORES;
    uint16_t *to = w->weights + i * TILE_K;
    for (size_t t = 0; t < length; t += TILE_K, to += STEP_TERMS) {
        store_row(to, vec_load(p + t), vec_load(p + t + L2C_LANES));
    }
}

/* ---- Products ---- */

/* The two tiles of A at 4 and 5, of B at 6 and 7; half of one is left out where it has no rows, or no columns. */
TILE void load_a(const uint16_t *p, bool tall) {
    _tile_loadd(4, p, TILE_BYTES);
    if (tall) {
        _tile_loadd(5, p + TILE_U16, TILE_BYTES);
    }
}

TILE void load_b(const uint16_t *p, bool wide) {
    _tile_loadd(6, p, TILE_BYTES);
    if (wide) {
        _tile_loadd(7, p + TILE_U16, TILE_BYTES);
    }
}

TILE void multiply(bool tall, bool wide) {
    _tile_dpbf16ps(0, 4, 6);
    if (wide) {
        _tile_dpbf16ps(1, 4, 7);
    }
    if (tall) {
        _tile_dpbf16ps(2, 5, 6);
        if (wide) {
            _tile_dpbf16ps(3, 5, 7);
        }
    }
}

/* to[32 or 16][32 or 16] = A B over so many steps; B has so many terms. */
TILE void terms_product(const size_t terms, float *to, size_t stride, const uint16_t *a, const uint16_t *b,
                        size_t steps, bool tall, bool wide) {
    zero_sums();
    STORED();
    for (size_t s = 0; s < steps; s++, a += STEP_TERMS, b += STEP_TERMS) {
        load_a(a + TERM, tall);
        load_b(b, wide);
        multiply(tall, wide);
        load_a(a, tall);
        multiply(tall, wide);
        if (terms > 1) {
            load_b(b + TERM, wide);
            multiply(tall, wide);
        }
    }
    _tile_stored(0, to, stride * sizeof *to);
    if (wide) {
        _tile_stored(1, to + L2C_LANES, stride * sizeof *to);
    }
    if (tall) {
        _tile_stored(2, to + L2C_LANES * stride, stride * sizeof *to);
        if (wide) {
            _tile_stored(3, to + L2C_LANES * stride + L2C_LANES, stride * sizeof *to);
        }
    }
    STORED();
}

/* ---- Attending ---- */

/* p of a query times the scales of positions [0, length), which lie `at` bytes from each block's start */
static void scale_positions(const tile_work *w, float *p, size_t at, size_t length) {
    for (size_t t = 0; t < length; t += L2C_KV_BLOCK) {
        const vec scales = vec_load_bytes(w->work.blocks[t / L2C_KV_BLOCK] + at);
        vec_store_n(p + t, vec_mul(vec_load(p + t), scales), smaller(L2C_KV_BLOCK, length - t));
    }
}

/* Chunk `from` for queries [first, end) of the block that begins with `block`; their own positions are among the chunk's
 * first `length`. */
TILE void attend_block(const l2c_kv_type type, const l2c_attention *a, tile_work *w, size_t block, size_t first,
                       size_t end, size_t from, size_t length) {
    const l2c_kv_layout *layout = a->layout;
    const size_t terms = kv_terms(type), stride = layout->value_stride, padded = l2c_round_up(length, TILE_K);
    const bool tall = end - block > L2C_LANES;
    attention_work *work = &w->work;
    for (size_t t = 0; t < padded; t += TILE_K) {
        terms_product(terms, work->p + t, SCORES, w->q + block / QUERIES * w->steps * STEP_TERMS,
                      w->keys + t / TILE_K * w->steps * STEP_TERMS, w->steps, tall, true);
    }
    for (size_t q = first; q < end; q++) {
        const size_t i = q - block, sees = a->length + q / a->heads, start = window_start(a, sees),
                     own = smaller(sees - from, length);
        float *p = work->p + i * SCORES;
        if (type == L2C_KV_Q8) {
            scale_positions(w, p, layout->scales, own);
        }
        work->total_new[i] = weigh(p, &work->high_new[i], start > from ? start - from : 0, own, padded, a->scale);
        if (type == L2C_KV_Q8) {
            scale_positions(w, p, layout->scales + L2C_KV_BLOCK * sizeof(float), own);
        }
        weights_to_tiles(w, i, padded);
    }
    for (size_t d = 0; d < stride; d += TILE_K) {
        terms_product(terms, work->mean_new + d, stride, w->weights, w->values + d / TILE_K * CHUNK_PIECES * STEP_TERMS,
                      padded / TILE_K, tall, d + L2C_LANES < stride);
    }
    for (size_t q = first; q < end; q++) {
        join_query(a, work, q, q - block, from);
    }
}

TILE void attend_tiles_as(const l2c_kv_type type, const l2c_attention *a) {
    tile_work w = tile_work_of(a);
    const size_t last = a->length + a->rows - 1, heads = a->heads;
    queries_to_tiles(&w, a);
    _tile_loadconfig(&eight_tiles);
    for (size_t from = first_chunk(a); from < last; from += L2C_KV_CHUNK) {
        const chunk_rows rows = rows_of_chunk(a, from);
        find_blocks(a, &w.work, from, l2c_round_up(rows.length, TILE_K));
        keys_to_tiles(type, &w, a->layout, rows.length);
        values_to_tiles(type, &w, a->layout, rows.length);
        for (size_t q = rows.first * heads, end; q < rows.end * heads; q = end) {
            end = smaller(l2c_round_up(q + 1, QUERIES), rows.end * heads);
            const size_t seen = a->length + (end - 1) / heads;
            attend_block(type, a, &w, q / QUERIES * QUERIES, q, end, from, smaller(seen - from, rows.length));
        }
    }
    _tile_release();
    store_attended(a, &w.work);
}

static void attend_tiles(const l2c_attention *a) {
    if (a->layout->type == L2C_KV_F16) {
        attend_tiles_as(L2C_KV_F16, a);
    } else {
        attend_tiles_as(L2C_KV_Q8, a);
    }
}
