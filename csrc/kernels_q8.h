/* kernels_q8.h: products with llama2.c's int8 groups, once for every level; part of kernels_template.h.
 *
 * One column at a time, as in kernels_float.h; chunks of 64 values alternate between the chains. */

enum q8_groups { Q8_WIDE, Q8_HALF, Q8_ANY }; /* group a multiple of 64; 32; any multiple of 4, also across rows */

/* Scales of the sixteen lanes of a chunk. WIDE and HALF: `scales` points at the chunk's own. ANY: the chunk begins with
 * value `first` of a sequence that ends before `end`. */
TILE vec q8_scales(const enum q8_groups groups, const float *scales, size_t first, size_t end, size_t group) {
    if (groups == Q8_WIDE) {
        return vec_set1(*scales);
    }
    if (groups == Q8_HALF) {
        return vec_halves(scales[0], first + 32 < end ? scales[1] : 0.0f);
    }
    float lanes[L2C_LANES] = {0};
    for (size_t i = 0; i < L2C_LANES && first + 4 * i < end; i++) {
        lanes[i] = scales[(first + 4 * i) / group];
    }
    return vec_load(lanes);
}

/* Number of the scale that chunk p / 64 of a row begins with. */
TILE size_t q8_scale_at(const enum q8_groups groups, size_t p, size_t shift) {
    return groups == Q8_WIDE ? p >> shift : groups == Q8_HALF ? p / 32 : 0;
}

TILE void q8_tile(const enum q8_groups groups, const size_t shift, const size_t M, const size_t N, float *y, size_t ldy,
                  const l2c_q8_rows *x, size_t row, const l2c_q8_matrix *w, size_t column, bool add) {
    const size_t k = w->k, group = w->group, start = column * k;
    const int8_t *values = w->values + start;
    const float *w_scales = groups == Q8_ANY ? w->scales : w->scales + start / group;
    const size_t w_scale_stride = groups == Q8_ANY ? 0 : groups == Q8_HALF ? k / 32 : k >> shift;
    const int8_t *x_values = x->values + row * x->stride;
    const float *x_scales = x->scales + row * x->scale_stride;
    const int32_t *x_bias = x->bias + row * x->stride / 4;
    vec sum[Q8_M][Q8_N][DOT_CHAINS];
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t j = 0; j < N; j++) {
        UNROLL for (size_t c = 0; c < DOT_CHAINS; c++) sum[i][j][c] = vec_zero();
    }
    for (size_t from = 0; from < k; from += DOT_CHAINS * L2C_Q8_CHUNK) {
        UNROLL for (size_t c = 0; c < DOT_CHAINS; c++) {
            const size_t p = from + c * L2C_Q8_CHUNK;
            if (p >= k) {
                break;
            }
            const size_t scale = q8_scale_at(groups, p, shift);
            bvec wp[Q8_N];
            vec ws[Q8_N];
            UNROLL for (size_t j = 0; j < N; j++) {
                const int8_t *at = values + j * k + p;
                PREFETCH(at + PREFETCH_BYTES);
                wp[j] = k - p >= L2C_Q8_CHUNK ? bvec_load(at) : bvec_load_n(at, k - p);
                ws[j] = groups == Q8_ANY ? q8_scales(Q8_ANY, w_scales, start + j * k + p, start + (j + 1) * k, group)
                                         : q8_scales(groups, w_scales + j * w_scale_stride + scale, p, k, group);
            }
            UNROLL for (size_t i = 0; i < M; i++) {
                const vec xs = q8_scales(groups, x_scales + i * x->scale_stride + scale, p, k, group);
                const bvec xp = bvec_load(x_values + i * x->stride + p);
                const int32_t *bias = x_bias + (i * x->stride + p) / 4;
                UNROLL for (size_t j = 0; j < N; j++) {
                    sum[i][j][c] = vec_fma(vec_dot4(wp[j], xp, bias), vec_mul(ws[j], xs), sum[i][j][c]);
                }
            }
        }
    }
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t j = 0; j < N; j++) {
        const float total = vec_sum(vec_add(sum[i][j][0], sum[i][j][1]));
        y[i * ldy + j] = add ? y[i * ldy + j] + total : total;
    }
}

/* Many rows share each load of W; few rows read it as one stream. Rows go by blocks that stay in the cache. */
TILE void q8_product(const enum q8_groups groups, const size_t shift, float *y, size_t ldy, const l2c_q8_rows *x,
                     const l2c_q8_matrix *w, size_t from, size_t m, size_t n, bool add) {
    for (size_t block = 0; block < m; block += Q8_ROWS) {
        const size_t end = smaller(block + Q8_ROWS, m), tiled = block + (end - block) / Q8_M * Q8_M;
        size_t j = 0;
        for (; j + Q8_N <= n && tiled > block; j += Q8_N) {
            for (size_t i = block; i < tiled; i += Q8_M) {
                q8_tile(groups, shift, Q8_M, Q8_N, y + i * ldy + j, ldy, x, i, w, from + j, add);
            }
            for (size_t i = tiled; i < end; i++) {
                for (size_t c = 0; c < Q8_N; c++) {
                    q8_tile(groups, shift, 1, 1, y + i * ldy + j + c, ldy, x, i, w, from + j + c, add);
                }
            }
        }
        for (; j < n; j++) {
            for (size_t i = block; i < end; i++) {
                q8_tile(groups, shift, 1, 1, y + i * ldy + j, ldy, x, i, w, from + j, add);
            }
        }
    }
}

/* The common group sizes get loops of their own, where finding a chunk's scale costs a shift at most. */
static void dot_q8(float *y, size_t ldy, const l2c_q8_rows *x, const l2c_q8_matrix *w, size_t from, size_t m, size_t n,
                   bool add) {
    const bool whole = w->k % w->group == 0; /* no group runs over the end of a row */
    if (whole && w->group == 64) {
        q8_product(Q8_WIDE, 6, y, ldy, x, w, from, m, n, add);
    } else if (whole && w->group == 32) {
        q8_product(Q8_HALF, 5, y, ldy, x, w, from, m, n, add);
    } else if (whole && w->group == 128) {
        q8_product(Q8_WIDE, 7, y, ldy, x, w, from, m, n, add);
    } else {
        q8_product(Q8_ANY, 0, y, ldy, x, w, from, m, n, add);
    }
}

static void quantize_q8(const l2c_q8_rows *q, size_t row, const float *x, size_t k, size_t group) {
    int8_t *values = q->values + row * q->stride;
    for (size_t from = 0, g = 0; from < k; from += group, g++) {
        const size_t end = smaller(from + group, k);
        vec high = vec_zero();
        for (size_t p = from; p < end; p += L2C_LANES) {
            const vec v = end - p < L2C_LANES ? vec_load_n(x + p, end - p) : vec_load(x + p);
            high = vec_max(high, vec_max(v, vec_sub(vec_zero(), v)));
        }
        const float most = vec_hmax(high);
        const float scale = most / 127.0f;
        /* Below this a scale may be subnormal; such a group is zero for every purpose. */
        const bool zero = !(scale > 0x1p-100f);
        const vec divisor = vec_set1(zero ? INFINITY : scale);
        q->scales[row * q->scale_stride + g] = zero ? 0.0f : scale;
        for (size_t p = from; p < end; p += L2C_LANES) {
            if (end - p < L2C_LANES) {
                int8_t rest[L2C_LANES];
                vec_store_s8(rest, vec_div(vec_load_n(x + p, end - p), divisor));
                memcpy(values + p, rest, end - p);
            } else {
                vec_store_s8(values + p, vec_div(vec_load(x + p), divisor));
            }
        }
    }
    const size_t padded = (k + L2C_Q8_CHUNK - 1) / L2C_Q8_CHUNK * L2C_Q8_CHUNK;
    memset(values + k, 0, padded - k);
    int32_t *bias = q->bias + row * q->stride / 4;
    for (size_t i = 0; i < padded / 4; i++) {
        bias[i] = -128 * (values[4 * i] + values[4 * i + 1] + values[4 * i + 2] + values[4 * i + 3]);
    }
}
