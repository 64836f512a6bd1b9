/* kernels_float.h: products with weights that are computed as f32, once for every level; part of kernels_template.h. */

/* ---- Products of generated rows: lanes run along k ----
 *
 * One row of x takes one column of y, that is one row of W, at a time: consecutive columns then read one sequential stream,
 * which the hardware prefetches best (four rows side by side cost 8 % from memory and 20 % from the cache). DOT_M rows
 * take DOT_N columns, for there it is x that is read again and again. DOT_CHAINS partial sums hide the latency of the
 * multiply-add; they are part of the definition of the result. */

enum { DOT_CHAINS = 2, DOT_STEP = DOT_CHAINS * L2C_LANES };

TILE vec load_weights(const l2c_type type, const uint8_t *w) {
    return type == L2C_TYPE_F32 ? vec_load_bytes(w) : type == L2C_TYPE_F16 ? vec_load_f16(w) : vec_load_bf16(w);
}

TILE vec load_weights_n(const l2c_type type, const uint8_t *w, size_t n) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    uint8_t padded[4 * L2C_LANES] = {0};
    memcpy(padded, w, n * bytes);
    return load_weights(type, padded);
}

TILE void dot_tile(const l2c_type type, const size_t M, const size_t N, float *y, size_t ldy, const float *x,
                   size_t ldx, const uint8_t *w, size_t row_bytes, size_t k, bool add) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    vec sum[DOT_M][DOT_N][DOT_CHAINS];
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t j = 0; j < N; j++) {
        UNROLL for (size_t c = 0; c < DOT_CHAINS; c++) sum[i][j][c] = vec_zero();
    }
    size_t p = 0;
    for (; p + DOT_STEP <= k; p += DOT_STEP) {
        UNROLL for (size_t c = 0; c < DOT_CHAINS; c++) {
            const size_t at = p + c * L2C_LANES;
            vec wp[DOT_N];
            UNROLL for (size_t j = 0; j < N; j++) {
                const uint8_t *from = w + j * row_bytes + at * bytes;
                PREFETCH((const char *)from + PREFETCH_BYTES);
                wp[j] = load_weights(type, from);
            }
            UNROLL for (size_t i = 0; i < M; i++) {
                const vec xp = vec_load(x + i * ldx + at);
                UNROLL for (size_t j = 0; j < N; j++) sum[i][j][c] = vec_fma(wp[j], xp, sum[i][j][c]);
            }
        }
    }
    for (size_t c = 0; p < k; p += L2C_LANES, c++) {
        const size_t left = k - p;
        UNROLL for (size_t j = 0; j < N; j++) {
            const uint8_t *from = w + j * row_bytes + p * bytes;
            const vec wp = left < L2C_LANES ? load_weights_n(type, from, left) : load_weights(type, from);
            UNROLL for (size_t i = 0; i < M; i++) {
                const vec xp = left < L2C_LANES ? vec_load_n(x + i * ldx + p, left) : vec_load(x + i * ldx + p);
                sum[i][j][c] = vec_fma(wp, xp, sum[i][j][c]);
            }
        }
    }
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t j = 0; j < N; j++) {
        const float total = vec_sum(vec_add(sum[i][j][0], sum[i][j][1]));
        y[i * ldy + j] = add ? y[i * ldy + j] + total : total;
    }
}

/* N columns for all rows of x. */
TILE void dot_columns(const l2c_type type, const size_t N, float *y, size_t ldy, const float *x, size_t ldx,
                      const l2c_matrix *w, size_t column, size_t m, bool add) {
    const uint8_t *p = w->data + column * w->row_bytes;
    size_t i = 0;
    for (; i + DOT_M <= m; i += DOT_M) {
        dot_tile(type, DOT_M, N, y + i * ldy + column, ldy, x + i * ldx, ldx, p, w->row_bytes, w->k, add);
    }
    for (; i + 2 <= m && DOT_M > 2; i += 2) {
        dot_tile(type, DOT_M > 2 ? 2 : 1, N, y + i * ldy + column, ldy, x + i * ldx, ldx, p, w->row_bytes, w->k, add);
    }
    for (; i < m; i++) {
        dot_tile(type, 1, N, y + i * ldy + column, ldy, x + i * ldx, ldx, p, w->row_bytes, w->k, add);
    }
}

TILE void dot_product(const l2c_type type, float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w,
                      size_t m, size_t n, bool add) {
    size_t j = 0;
    for (; j + DOT_N <= n && m >= DOT_M && DOT_N > 1; j += DOT_N) {
        dot_columns(type, DOT_N, y, ldy, x, ldx, w, j, m, add);
    }
    for (; j < n; j++) {
        dot_columns(type, 1, y, ldy, x, ldx, w, j, m, add);
    }
}

static void dot_f32(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                    bool add) {
    if (w->type->type == L2C_TYPE_F32) {
        dot_product(L2C_TYPE_F32, y, ldy, x, ldx, w, m, n, add);
    } else if (w->type->type == L2C_TYPE_F16) {
        dot_product(L2C_TYPE_F16, y, ldy, x, ldx, w, m, n, add);
    } else {
        dot_product(L2C_TYPE_BF16, y, ldy, x, ldx, w, m, n, add);
    }
}

/* ---- Products of prompt rows: lanes run along the columns of a packed panel ---- */

enum { PANEL_N = GEMM_V * L2C_LANES, LINES_AHEAD = 4 }; /* cache lines that a row is fetched ahead */

/* panel[p][j] = w[j][p]; columns past n are zero. */
static void pack_panel(float *panel, const float *w, size_t n, size_t k, size_t depth) {
    for (size_t j = 0; j < PANEL_N; j += L2C_LANES) {
        size_t p = 0;
        if (j + L2C_LANES <= n) {
            for (; p + L2C_LANES <= depth; p += L2C_LANES) {
                for (size_t i = j; i < j + L2C_LANES; i++) {
                    PREFETCH((const char *)(w + i * k + p + L2C_LANES * LINES_AHEAD));
                }
                pack_block(panel + p * PANEL_N + j, PANEL_N, w + j * k + p, k);
            }
        }
        for (; p < depth; p++) {
            for (size_t lane = 0; lane < L2C_LANES; lane++) {
                panel[p * PANEL_N + j + lane] = j + lane < n ? w[(j + lane) * k + p] : 0.0f;
            }
        }
    }
}

TILE void gemm_tile(const size_t M, float *y, size_t ldy, const float *x, size_t ldx, const float *panel, size_t n,
                    size_t depth, bool add) {
    vec sum[GEMM_M][GEMM_V];
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) sum[i][v] = vec_zero();
    for (size_t p = 0; p < depth; p++) {
        vec w[GEMM_V];
        UNROLL for (size_t v = 0; v < GEMM_V; v++) w[v] = vec_load(panel + p * PANEL_N + v * L2C_LANES);
        UNROLL for (size_t i = 0; i < M; i++) {
            const vec xi = vec_set1(x[i * ldx + p]);
            UNROLL for (size_t v = 0; v < GEMM_V; v++) sum[i][v] = vec_fma(w[v], xi, sum[i][v]);
        }
    }
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) {
        float *out = y + i * ldy + v * L2C_LANES;
        if (n >= (v + 1) * L2C_LANES) {
            vec_store(out, add ? vec_add(vec_load(out), sum[i][v]) : sum[i][v]);
        } else if (n > v * L2C_LANES) {
            const size_t left = n - v * L2C_LANES;
            vec_store_n(out, add ? vec_add(vec_load_n(out, left), sum[i][v]) : sum[i][v], left);
        }
    }
}

static void gemm_panel(float *y, size_t ldy, const float *x, size_t ldx, const float *panel, size_t m, size_t n,
                       size_t depth, bool add) {
    size_t i = 0;
    for (; i + GEMM_M <= m; i += GEMM_M) {
        gemm_tile(GEMM_M, y + i * ldy, ldy, x + i * ldx, ldx, panel, n, depth, add);
    }
    for (; i + 4 <= m && GEMM_M > 4; i += 4) {
        gemm_tile(GEMM_M > 4 ? 4 : 1, y + i * ldy, ldy, x + i * ldx, ldx, panel, n, depth, add);
    }
    for (; i < m; i++) {
        gemm_tile(1, y + i * ldy, ldy, x + i * ldx, ldx, panel, n, depth, add);
    }
}

enum { HALVES = 32 }; /* in a cache line */

/* pack_block of sixteen columns whose halves lie in whole cache lines: rows a power of two apart share the cache's sets. */
TILE void pack_lines(const l2c_type type, float *panel, const uint8_t *data, size_t row_bytes) {
    for (size_t i = 0; i < L2C_LANES; i++) {
        PREFETCH((const char *)data + i * row_bytes + 2 * HALVES * LINES_AHEAD);
    }
    UNROLL for (size_t p = 0; p < HALVES; p += L2C_LANES) {
        float plain[L2C_LANES * L2C_LANES];
        UNROLL for (size_t i = 0; i < L2C_LANES; i++) {
            const uint8_t *at = data + i * row_bytes + 2 * p;
            vec_store(plain + i * L2C_LANES, type == L2C_TYPE_F16 ? vec_load_f16(at) : vec_load_bf16(at));
        }
        pack_block(panel + p * PANEL_N, PANEL_N, plain, L2C_LANES);
    }
}

/* pack_panel from rows of halves. */
TILE void pack_halves(const l2c_type type, float *panel, const l2c_matrix *w, const uint8_t *data, size_t n,
                      size_t depth) {
    for (size_t j = 0; j < PANEL_N; j += L2C_LANES) {
        size_t p = 0;
        for (; j + L2C_LANES <= n && p + HALVES <= depth; p += HALVES) {
            pack_lines(type, panel + p * PANEL_N + j, data + j * w->row_bytes + 2 * p, w->row_bytes);
        }
        for (size_t i = j; i < j + L2C_LANES && p < depth; i++) {
            float plain[L2C_PANEL_K] = {0};
            if (i < n) {
                w->type->dequantize(plain, data + i * w->row_bytes + 2 * p, depth - p);
            }
            for (size_t at = p; at < depth; at++) {
                panel[at * PANEL_N + i] = plain[at - p];
            }
        }
    }
}

/* Columns [from, from + n), k [p, p + depth) of w as f32; *stride floats apart. `out` is used unless they lie so. */
static const float *weights_f32(float *out, size_t *stride, const l2c_matrix *w, size_t from, size_t n, size_t p,
                                size_t depth) {
    const l2c_type_info *type = w->type;
    const uint8_t *data = w->data + from * w->row_bytes + p / type->values * type->bytes;
    if (type->type == L2C_TYPE_F32) {
        *stride = w->row_bytes / sizeof(float);
        return (const float *)(const void *)data;
    }
    *stride = L2C_PANEL_K;
    for (size_t j = 0; j < n; j++) {
        type->dequantize(out + j * L2C_PANEL_K, data + j * w->row_bytes, depth / type->values);
    }
    return out;
}

/* Columns go by groups whose part of y stays in the cache while k advances. */
static void gemm_f32(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                     bool add, float *panel) {
    float *plain = panel + L2C_PANEL_FLOATS / 2;
    const size_t k = w->k;
    for (size_t group = 0; group < n; group += GEMM_GROUP) {
        const size_t end = smaller(group + GEMM_GROUP, n);
        for (size_t p = 0; p < k; p += L2C_PANEL_K) {
            const size_t depth = smaller(L2C_PANEL_K, k - p);
            for (size_t j = group; j < end; j += PANEL_N) {
                const size_t width = smaller(PANEL_N, end - j);
                if (w->type->type == L2C_TYPE_F16) {
                    pack_halves(L2C_TYPE_F16, panel, w, w->data + j * w->row_bytes + 2 * p, width, depth);
                } else if (w->type->type == L2C_TYPE_BF16) {
                    pack_halves(L2C_TYPE_BF16, panel, w, w->data + j * w->row_bytes + 2 * p, width, depth);
                } else {
                    size_t stride;
                    const float *weights = weights_f32(plain, &stride, w, j, width, p, depth);
                    pack_panel(panel, weights, width, stride, depth);
                }
                gemm_panel(y + j, ldy, x + p, ldx, panel, m, width, depth, add || p > 0);
            }
        }
    }
}
