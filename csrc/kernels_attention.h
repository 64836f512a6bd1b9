/* kernels_attention.h: keys and values in their blocks, and attention over them, once for every level; part of
 * kernels_template.h.
 *
 * A task is some rows of one sequence that follow each other, and one KV head with all its query heads: the queries, of which
 * tiles of ATT_H share each load of a key or value. Chunks of L2C_KV_CHUNK positions at places that never move are reduced
 * one after the other, so that a query's result depends on its own positions alone. A position that a query may not see
 * has weight 0 there. */

enum { CHUNK_BLOCKS = L2C_KV_CHUNK / L2C_KV_BLOCK, PAGE_BLOCKS = L2C_KV_PAGE / L2C_KV_BLOCK };

TILE size_t kv_bytes(const l2c_kv_type type) {
    return type == L2C_KV_F32 ? 4 : type == L2C_KV_F16 ? 2 : 1;
}

/* Sixteen from element i on. */
TILE vec load_kv(const l2c_kv_type type, const uint8_t *p, size_t i) {
    const uint8_t *at = p + i * kv_bytes(type);
    return type == L2C_KV_F32 ? vec_load_bytes(at) : type == L2C_KV_F16 ? vec_load_f16(at) : vec_load_s8(at);
}

/* ---- Storing ---- */

/* x [n], n <= L2C_LANES, as elements of the type; `inverse` of the scale, for Q8. */
TILE void encode_kv(const l2c_kv_type type, uint8_t out[4 * L2C_LANES], const float *x, size_t n, float inverse) {
    vec v = n < L2C_LANES ? vec_load_n(x, n) : vec_load(x);
    if (type == L2C_KV_F32) {
        vec_store((float *)(void *)out, v);
    } else if (type == L2C_KV_F16) {
        const vec above = vec_max(v, vec_set1(-L2C_LARGEST_F16)), zero = vec_zero();
        v = vec_sub(zero, vec_max(vec_sub(zero, above), vec_set1(-L2C_LARGEST_F16)));
        vec_store_f16(out, v);
    } else {
        vec_store_s8((int8_t *)out, vec_mul(v, vec_set1(inverse)));
    }
}

static float magnitude(const float *x, size_t n) {
    float most = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(x[i]);
        most = size > most ? size : most;
    }
    return most;
}

/* The factor that takes the largest of x to 127; *scale takes it back. */
static float q8_inverse(float *scale, const float *x, size_t n) {
    const float most = magnitude(x, n);
    const bool some = most > 0x1p-100f;
    *scale = some ? most / 127.0f : 0.0f;
    return some ? 127.0f / most : 0.0f;
}

TILE void store_as(const l2c_kv_type type, uint8_t *block, const l2c_kv_layout *layout, size_t t, const float *k,
                   const float *v) {
    const size_t bytes = kv_bytes(type), n = layout->head_dim;
    uint8_t *value = block + layout->values + t * layout->value_stride * bytes;
    float of_key = 0, of_value = 0, scale_k = 0, scale_v = 0;
    if (type == L2C_KV_Q8) {
        of_key = q8_inverse(&scale_k, k, n);
        of_value = q8_inverse(&scale_v, v, n);
        memcpy(block + layout->scales + t * sizeof(float), &scale_k, sizeof scale_k);
        memcpy(block + layout->scales + (L2C_KV_BLOCK + t) * sizeof(float), &scale_v, sizeof scale_v);
    }
    for (size_t d = 0; d < n; d += L2C_LANES) {
        _Alignas(64) uint8_t some[4 * L2C_LANES];
        const size_t width = smaller(L2C_LANES, n - d);
        encode_kv(type, some, v + d, width, of_value);
        memcpy(value + d * bytes, some, L2C_LANES * bytes); /* the stride leaves room */
        encode_kv(type, some, k + d, width, of_key);
        for (size_t i = 0; i < width; i++) {
            memcpy(block + ((d + i) * L2C_KV_BLOCK + t) * bytes, some + i * bytes, bytes);
        }
    }
}

static void store_kv(uint8_t *block, const l2c_kv_layout *layout, size_t t, const float *k, const float *v) {
    switch (layout->type) {
    case L2C_KV_F32: store_as(L2C_KV_F32, block, layout, t, k, v); break;
    case L2C_KV_F16: store_as(L2C_KV_F16, block, layout, t, k, v); break;
    case L2C_KV_Q8: store_as(L2C_KV_Q8, block, layout, t, k, v); break;
    }
}

/* ---- Attending ---- */

/* The scratch of a task of Q queries. */
typedef struct attention_work {
    float *q;                                   /* [Q][head_dim] */
    float *p;                                   /* [Q][L2C_KV_CHUNK] scores, then weights */
    float *mean, *mean_new;                     /* [Q][value_stride] */
    float *high, *total, *high_new, *total_new; /* [Q] */
    const uint8_t *blocks[CHUNK_BLOCKS];
} attention_work;

/* p[q][16 b + lane] = q . key: lanes are positions, the sum runs along head_dim. */
TILE void score_tile(const l2c_kv_type type, const size_t H, const size_t B, float *p, const float *q, size_t head_dim,
                     size_t scales, const uint8_t *const *blocks) {
    vec sum[ATT_H][ATT_V];
    UNROLL for (size_t h = 0; h < H; h++) UNROLL for (size_t b = 0; b < B; b++) sum[h][b] = vec_zero();
    for (size_t d = 0; d < head_dim; d++) {
        vec key[ATT_V];
        UNROLL for (size_t b = 0; b < B; b++) key[b] = load_kv(type, blocks[b], d * L2C_KV_BLOCK);
        UNROLL for (size_t h = 0; h < H; h++) {
            const vec qd = vec_set1(q[h * head_dim + d]);
            UNROLL for (size_t b = 0; b < B; b++) sum[h][b] = vec_fma(key[b], qd, sum[h][b]);
        }
    }
    UNROLL for (size_t b = 0; b < B; b++) UNROLL for (size_t h = 0; h < H; h++) {
        const vec score = type == L2C_KV_Q8 ? vec_mul(sum[h][b], vec_load_bytes(blocks[b] + scales)) : sum[h][b];
        vec_store(p + h * L2C_KV_CHUNK + b * L2C_KV_BLOCK, score);
    }
}

/* out[q][lanes] = sum_t p[q][t] value[t]: lanes run along head_dim, the sum along positions. */
TILE void value_tile(const l2c_kv_type type, const size_t H, const size_t V, float *out, size_t stride, const float *p,
                     size_t values, const uint8_t *const *blocks, size_t from, size_t length) {
    vec sum[ATT_H][ATT_V];
    UNROLL for (size_t h = 0; h < H; h++) UNROLL for (size_t v = 0; v < V; v++) sum[h][v] = vec_zero();
    for (size_t t = 0; t < length; t++) {
        const uint8_t *value = blocks[t / L2C_KV_BLOCK] + values;
        vec row[ATT_V];
        UNROLL for (size_t v = 0; v < V; v++) {
            row[v] = load_kv(type, value, t % L2C_KV_BLOCK * stride + from + v * L2C_LANES);
        }
        UNROLL for (size_t h = 0; h < H; h++) {
            const vec weight = vec_set1(p[h * L2C_KV_CHUNK + t]);
            UNROLL for (size_t v = 0; v < V; v++) sum[h][v] = vec_fma(row[v], weight, sum[h][v]);
        }
    }
    UNROLL for (size_t h = 0; h < H; h++) UNROLL for (size_t v = 0; v < V; v++) {
        vec_store(out + h * stride + from + v * L2C_LANES, sum[h][v]);
    }
}

TILE void score_queries(const l2c_kv_type type, const size_t H, const attention_work *w, const l2c_kv_layout *layout,
                        size_t query, size_t length) {
    const size_t n_blocks = (length + L2C_KV_BLOCK - 1) / L2C_KV_BLOCK, head_dim = layout->head_dim;
    const float *q = w->q + query * head_dim;
    float *p = w->p + query * L2C_KV_CHUNK;
    size_t b = 0;
    for (; b + ATT_V <= n_blocks; b += ATT_V) {
        score_tile(type, H, ATT_V, p + b * L2C_KV_BLOCK, q, head_dim, layout->scales, w->blocks + b);
    }
    for (; b < n_blocks; b++) {
        score_tile(type, H, 1, p + b * L2C_KV_BLOCK, q, head_dim, layout->scales, w->blocks + b);
    }
}

TILE void value_queries(const l2c_kv_type type, const size_t H, const attention_work *w, const l2c_kv_layout *layout,
                        size_t query, size_t length) {
    const size_t stride = layout->value_stride;
    const float *p = w->p + query * L2C_KV_CHUNK;
    float *out = w->mean_new + query * stride;
    size_t v = 0;
    for (; v + ATT_V * L2C_LANES <= stride; v += ATT_V * L2C_LANES) {
        value_tile(type, H, ATT_V, out, stride, p, layout->values, w->blocks, v, length);
    }
    for (; v < stride; v += L2C_LANES) {
        value_tile(type, H, 1, out, stride, p, layout->values, w->blocks, v, length);
    }
}

/* Queries [from, end) by tiles. */
#define EACH_TILE(of_queries)                                                                                          \
    do {                                                                                                               \
        size_t i = from;                                                                                               \
        for (; i + ATT_H <= end; i += ATT_H)                                                                           \
            of_queries(type, ATT_H, w, layout, i, length);                                                             \
        for (; ATT_H > 2 && i + 2 <= end; i += 2)                                                                      \
            of_queries(type, ATT_H > 2 ? 2 : 1, w, layout, i, length);                                                 \
        for (; i < end; i++)                                                                                           \
            of_queries(type, 1, w, layout, i, length);                                                                 \
    } while (0)

TILE void scores_of_chunk(const l2c_kv_type type, const attention_work *w, const l2c_kv_layout *layout, size_t from,
                          size_t end, size_t length) {
    EACH_TILE(score_queries);
}

TILE void values_of_chunk(const l2c_kv_type type, const attention_work *w, const l2c_kv_layout *layout, size_t from,
                          size_t end, size_t length) {
    EACH_TILE(value_queries);
}

#undef EACH_TILE

/* A query's scores of a chunk become weights: e^(score - highest) for positions [from, end), 0 for the others of
 * `length`. *high: the highest score; returns the sum. */
static float weigh(float *p, float *high, size_t from, size_t end, size_t length, float scale) {
    const float most = maximum(p + from, end - from);
    const float sum = exponentials(p + from, end - from, most, scale);
    for (size_t t = 0; t < from; t++) {
        p[t] = 0.0f;
    }
    for (size_t t = end; t < length; t++) {
        p[t] = 0.0f;
    }
    *high = most * scale;
    return sum;
}

/* (high, total, mean) of a softmax over some positions, joined with those of the next chunk. */
static void merge_chunk(float *high, float *total, float *mean, float high_new, float total_new, const float *mean_new,
                        size_t n) {
    const float top = *high > high_new ? *high : high_new;
    float factors[L2C_LANES] = {*high - top, high_new - top};
    vec_store(factors, vec_exp(vec_load(factors)));
    const vec keep = vec_set1(factors[0]), take = vec_set1(factors[1]);
    for (size_t v = 0; v < n; v += L2C_LANES) {
        vec_store(mean + v, vec_fma(vec_load(mean_new + v), take, vec_mul(vec_load(mean + v), keep)));
    }
    /* fused by name: left to the compiler, some fuse it and some do not */
    *total = fmaf(*total, factors[0], total_new * factors[1]);
    *high = top;
}

/* The first position that a row of `length` positions sees. */
static size_t window_start(const l2c_attention *a, size_t length) {
    return l2c_window_start(length, a->window);
}

static attention_work work_of(const l2c_attention *a) {
    const size_t head_dim = a->layout->head_dim, stride = a->layout->value_stride, queries = a->rows * a->heads;
    attention_work w = {.q = a->scratch};
    w.p = w.q + queries * stride;
    w.mean = w.p + queries * L2C_KV_CHUNK;
    w.mean_new = w.mean + queries * stride;
    w.high = w.mean_new + queries * stride;
    w.total = w.high + queries;
    w.high_new = w.total + queries;
    w.total_new = w.high_new + queries;
    for (size_t i = 0; i < a->rows; i++) {
        memcpy(w.q + i * a->heads * head_dim, a->q + i * a->row_stride, a->heads * head_dim * sizeof(float));
    }
    return w;
}

/* Where the blocks of positions [from, from + length) lie. */
static void find_blocks(const l2c_attention *a, attention_work *w, size_t from, size_t length) {
    for (size_t b = 0; b * L2C_KV_BLOCK < length; b++) {
        const size_t block = from / L2C_KV_BLOCK + b;
        w->blocks[b] = a->pages[block / PAGE_BLOCKS] + a->offset + block % PAGE_BLOCKS * a->layout->block;
    }
}

/* Chunk [from, from + length) for the rows [first, end), all of which see some of it: w->..._new */
TILE void attend_chunk(const l2c_kv_type type, const l2c_attention *a, attention_work *w, size_t first, size_t end,
                       size_t from, size_t length) {
    const l2c_kv_layout *layout = a->layout;
    const size_t heads = a->heads;
    find_blocks(a, w, from, length);
    scores_of_chunk(type, w, layout, first * heads, end * heads, length);
    for (size_t q = first * heads; q < end * heads; q++) {
        const size_t seen = a->length + q / heads, start = window_start(a, seen);
        float *p = w->p + q * L2C_KV_CHUNK;
        w->total_new[q] =
            weigh(p, &w->high_new[q], start > from ? start - from : 0, smaller(seen - from, length), length, a->scale);
        for (size_t t = 0; type == L2C_KV_Q8 && t < length; t += L2C_LANES) {
            const uint8_t *scales = w->blocks[t / L2C_KV_BLOCK] + layout->scales + L2C_KV_BLOCK * sizeof(float);
            const size_t n = smaller(L2C_LANES, length - t);
            vec_store_n(p + t, vec_mul(vec_load_n(p + t, n), vec_load_bytes(scales)), n);
        }
    }
    values_of_chunk(type, w, layout, first * heads, end * heads, length);
}

/* Query q of chunk `from`, number i of w->..._new, joins that of the chunks before it. */
static void join_query(const l2c_attention *a, attention_work *w, size_t q, size_t i, size_t from) {
    const size_t stride = a->layout->value_stride;
    const float *mean = w->mean_new + i * stride;
    if (window_start(a, a->length + q / a->heads) >= from) { /* its first chunk */
        w->high[q] = w->high_new[i];
        w->total[q] = w->total_new[i];
        memcpy(w->mean + q * stride, mean, stride * sizeof(float));
    } else {
        merge_chunk(&w->high[q], &w->total[q], w->mean + q * stride, w->high_new[i], w->total_new[i], mean, stride);
    }
}

static void join_chunk(const l2c_attention *a, attention_work *w, size_t first, size_t end, size_t from) {
    for (size_t q = first; q < end; q++) {
        join_query(a, w, q, q, from);
    }
}

static void store_attended(const l2c_attention *a, const attention_work *w) {
    const size_t head_dim = a->layout->head_dim, stride = a->layout->value_stride;
    for (size_t q = 0; q < a->rows * a->heads; q++) {
        float *out = a->out + q / a->heads * a->row_stride + q % a->heads * head_dim;
        const float inverse = 1.0f / w->total[q];
        for (size_t d = 0; d < head_dim; d++) {
            out[d] = w->mean[q * stride + d] * inverse;
        }
    }
}

/* The first chunk that any row sees. */
static size_t first_chunk(const l2c_attention *a) {
    return window_start(a, a->length) / L2C_KV_CHUNK * L2C_KV_CHUNK;
}

/* Rows [first, end) see some of a chunk, of its positions `length` at most. */
typedef struct chunk_rows {
    size_t first, end, length;
} chunk_rows;

static chunk_rows rows_of_chunk(const l2c_attention *a, size_t from) {
    chunk_rows rows = {from >= a->length ? from - a->length + 1 : 0, a->rows, 0};
    while (window_start(a, a->length + rows.end - 1) >= from + L2C_KV_CHUNK) {
        rows.end--;
    }
    rows.length = smaller(L2C_KV_CHUNK, a->length + rows.end - 1 - from);
    return rows;
}

TILE void attend_as(const l2c_kv_type type, const l2c_attention *a) {
    attention_work w = work_of(a);
    const size_t last = a->length + a->rows - 1; /* positions of the last row, the most */
    for (size_t from = first_chunk(a); from < last; from += L2C_KV_CHUNK) {
        const chunk_rows rows = rows_of_chunk(a, from);
        attend_chunk(type, a, &w, rows.first, rows.end, from, rows.length);
        join_chunk(a, &w, rows.first * a->heads, rows.end * a->heads, from);
    }
    store_attended(a, &w);
}

TILE void attend_part_as(const l2c_kv_type type, const l2c_attention *a, size_t chunk, float *part) {
    attention_work w = work_of(a);
    const size_t from = chunk * L2C_KV_CHUNK;
    w.mean_new = part;
    w.high_new = w.mean_new + a->heads * a->layout->value_stride;
    w.total_new = w.high_new + a->heads;
    attend_chunk(type, a, &w, 0, 1, from, smaller(L2C_KV_CHUNK, a->length - from));
}

/* ---- One row, its chunks shared out ---- */

static void attend_part(const l2c_attention *a, size_t chunk, float *part) {
    switch (a->layout->type) {
    case L2C_KV_F32: attend_part_as(L2C_KV_F32, a, chunk, part); break;
    case L2C_KV_F16: attend_part_as(L2C_KV_F16, a, chunk, part); break;
    case L2C_KV_Q8: attend_part_as(L2C_KV_Q8, a, chunk, part); break;
    }
}

static void attend_join(const l2c_attention *a, float *parts) {
    attention_work w = work_of(a);
    const l2c_chunks chunks = l2c_attention_chunks(a->length, a->window);
    for (size_t chunk = chunks.from; chunk < chunks.to; chunk++) {
        w.mean_new = parts + (chunk - chunks.from) * l2c_attention_part(a->heads, a->layout->value_stride);
        w.high_new = w.mean_new + a->heads * a->layout->value_stride;
        w.total_new = w.high_new + a->heads;
        join_chunk(a, &w, 0, a->heads, chunk * L2C_KV_CHUNK);
    }
    store_attended(a, &w);
}

static void attend(const l2c_attention *a) {
    switch (a->layout->type) {
    case L2C_KV_F32: attend_as(L2C_KV_F32, a); break;
    case L2C_KV_F16: attend_as(L2C_KV_F16, a); break;
    case L2C_KV_Q8: attend_as(L2C_KV_Q8, a); break;
    }
}
