/* kernels_template.h: every kernel, once, over the sixteen-lane vectors that the including file defines.
 *
 * The including file gives
 *   vec          16 f32; vec_zero set1 load load_n store store_n add sub mul div max fma(a,b,c)=a*b+c, vec_round (to even),
 *                vec_ldexp(x, n) = x 2^n for integral n, vec_sum and vec_hmax by halves (8+8, 4+4, 2+2, 1+1),
 *                vec_store_s8(p, x): x rounded to int8, ties away from 0
 *   bvec         64 int8; bvec_load, bvec_load_n, bvec_store
 *   vec_dot4(w, x, bias): lane i = sum of w[4i+j] x[4i+j], j < 4, exact
 *   vec_halves(a, b): lanes 0-7 = a, 8-15 = b; vec_swap_pairs(x): lanes 2i and 2i + 1 exchanged
 *   ivec         16 int32; ivec_zero load set1(p): lanes *p, add, shr(a, n) of multiples of 1 << n; vec_of_ints; ivec_dot4(w, x)
 *                and, for unsigned w < 64, ivec_dot4u: lane i = sum of w[4i+j] x[4i+j]; with SIGNED_EXCESS ivec_dot4 gives the
 *                sum of (w[4i+j] + 128) x[4i+j] instead, as VNNI does; ivec_add_dot4(sum, w, four), ivec_add_dot4u: the same
 *                four x in every lane, w of ivec_add_dot4 by way of bvec_of_panel; ivec_sums_of_4(a, b, c, d): lane 4q + c =
 *                the sum of quarter q of the c-th; ivec_sums_of_2(a, b): quarters that are a's first two added, a's last two,
 *                b's first two, b's last two
 *   vec_lanes_of_blocks(s): lane 8s + i = s[8s + i % 4 * 2 + i / 4], i < 8; vec_lanes_of_16: s[i % 4 * 4 + i / 4]
 *   vec_f16(a, b, c, d), vec_u8(a, b), vec_s8(a, b): sixteen numbers from the bits of integers, the lowest first
 *   vec_load_f16, vec_load_bf16 and vec_load_s8(p): sixteen from memory; f16_at(p): one; vec_store_f16(p, x): nearest, ties
 *                to even
 *   bvec_load_columns(out, columns, at): lane j of out[t] = bytes 4t to 4t + 3 of the sixteen at columns[j] + at
 *   bvec_join(a, b): 32 bytes of each; bvec_nibbles(a, b): of 16 bytes each, low then high nibbles
 *   bvec_twice(p, low, high, mask): 32 bytes shifted right by `low`, then by `high`, and masked; bvec_shr(w, n, mask)
 *   bvec_or_shl(w, h, n): w | h << n; bvec_or_bits(w, bits, n): bit i << n into byte i; bvec_lookup(w, table): table[w]
 *   svec         32 int16; svec_low(w), svec_high(w): of a bvec's bytes; svec_add(w, a); svec_mul(w, a, b): by a, the upper half
 *                by b; svec_store(p, w). pvec: sixteen pairs of int16, pvec_load(p); two_s16_load(p): one pair
 *   ivec_add_dot2(sum, w, x): lane i + w[2i] x[0] + w[2i+1] x[1]; vec_store_s16(p, x): of integral x
 *   pack_block(panel, stride, w, k): the transpose of 16 rows by 16 columns
 * and LEVEL (the name), DOT_M, DOT_N, GEMM_M, GEMM_V, Q8_M, Q8_N, QUANT_M, PANEL_M, PANEL_V, PROMPT_M, PROMPT_M_BLOCKS, ATT_H, ATT_V: how many accumulators its registers hold.
 * Tiles are inlined with constant sizes, so that their accumulators live in registers.
 * PANEL_ROWS: rows from which on panels of quantised types pay; 0: never. LEVEL_HAS_TILES: it has a gemm_tiles and a
 * probe_tiles.
 * LEVEL_HAS_F16_OF_BLOCKS: it has a vec_f16_of_blocks of its own. */
#include "kernels.h"

#include <math.h>
#include <string.h>

#if defined(_MSC_VER)
#define TILE static __forceinline
#define PREFETCH(p) ((void)(p))
#define PREFETCH_L2(p) ((void)(p))
#else
#define TILE static inline __attribute__((always_inline))
#define PREFETCH(p) __builtin_prefetch((p), 0, 3)
#define PREFETCH_L2(p) __builtin_prefetch((p), 0, 2)
#endif

/* Loops over accumulators are unrolled, unless the level says otherwise; with sanitizers it would take minutes to compile. */
#ifndef UNROLL
#if defined(_MSC_VER) || defined(__SANITIZE_ADDRESS__)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#endif

enum { PREFETCH_BYTES = 6144, GEMM_GROUP = 128, Q8_ROWS = 128 };

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

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

enum { PANEL_N = GEMM_V * L2C_LANES };

/* panel[p][j] = w[j][p]; columns past n are zero. */
static void pack_panel(float *panel, const float *w, size_t n, size_t k, size_t depth) {
    for (size_t j = 0; j < PANEL_N; j += L2C_LANES) {
        size_t p = 0;
        if (j + L2C_LANES <= n) {
            for (; p + L2C_LANES <= depth; p += L2C_LANES) {
                /* the next panel's rows lie PANEL_N strides away, too far for the hardware to foresee */
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

/* out [n] as f32 from a row of halves: sixteen at a time, as the table's dequantize() takes a nanosecond for each */
static void widen_row(float *out, const l2c_type_info *type, const uint8_t *row, size_t n) {
    size_t i = 0;
    for (; i + L2C_LANES <= n; i += L2C_LANES) {
        const uint8_t *at = row + 2 * i;
        vec_store(out + i, type->type == L2C_TYPE_F16 ? vec_load_f16(at) : vec_load_bf16(at));
    }
    type->dequantize(out + i, row + 2 * i, n - i);
}

/* pack_panel from rows of halves: by cache lines, since rows a power of two apart share the sets of the cache. */
static void pack_halves(float *panel, const l2c_matrix *w, const uint8_t *data, size_t n, size_t depth) {
    enum { LINE = 32, LINES_AHEAD = 4 }; /* values of a cache line */
    for (size_t j = 0; j < PANEL_N; j += L2C_LANES) {
        const size_t there = smaller(L2C_LANES, n - smaller(n, j));
        float plain[L2C_LANES * LINE] = {0};
        for (size_t p = 0; p < depth; p += LINE) {
            for (size_t i = 0; i < there; i++) {
                const uint8_t *at = data + (j + i) * w->row_bytes + 2 * p;
                PREFETCH((const char *)at + 2 * LINE * LINES_AHEAD);
                widen_row(plain + i * LINE, w->type, at, smaller(LINE, depth - p));
            }
            pack_block(panel + p * PANEL_N + j, PANEL_N, plain, LINE);
            if (depth - p > L2C_LANES) {
                pack_block(panel + (p + L2C_LANES) * PANEL_N + j, PANEL_N, plain + L2C_LANES, LINE);
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
                if (w->type->type == L2C_TYPE_F16 || w->type->type == L2C_TYPE_BF16) {
                    pack_halves(panel, w, w->data + j * w->row_bytes + 2 * p, width, depth);
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

/* ---- Products over int8: one column at a time, as above; chunks of 64 values alternate between the chains ---- */

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

#include "kernels_quant.h"

#include "kernels_prompt.h"

/* ---- Row operators ---- */

static void rmsnorm(float *y, const float *x, const float *weight, size_t n, float eps) {
    vec sum = vec_zero();
    for (size_t p = 0; p < n; p += L2C_LANES) {
        const vec v = n - p < L2C_LANES ? vec_load_n(x + p, n - p) : vec_load(x + p);
        sum = vec_fma(v, v, sum);
    }
    const vec inverse = vec_set1(1.0f / sqrtf(vec_sum(sum) / (float)n + eps));
    for (size_t p = 0; p < n; p += L2C_LANES) {
        if (n - p < L2C_LANES) {
            vec_store_n(y + p, vec_mul(vec_load_n(weight + p, n - p), vec_mul(inverse, vec_load_n(x + p, n - p))),
                        n - p);
        } else {
            vec_store(y + p, vec_mul(vec_load(weight + p), vec_mul(inverse, vec_load(x + p))));
        }
    }
}

/* The pair (a, b) of each head becomes (a cos - b sin, b cos + a sin). Written as one fused operation on the pair and its
 * swap: left to a compiler, the plain expression is contracted at some levels, whatever the flags say (GCC 12). */
static void rope(float *x, const float *angles, size_t heads, size_t head_dim) {
    const float *cosines = angles, *sines = angles + head_dim;
    for (size_t h = 0; h < heads; h++, x += head_dim) {
        for (size_t i = 0; i < head_dim; i += L2C_LANES) {
            const size_t left = head_dim - i;
            if (left < L2C_LANES) {
                const vec v = vec_load_n(x + i, left);
                const vec turned = vec_mul(vec_swap_pairs(v), vec_load_n(sines + i, left));
                vec_store_n(x + i, vec_fma(v, vec_load_n(cosines + i, left), turned), left);
            } else {
                const vec v = vec_load(x + i);
                const vec turned = vec_mul(vec_swap_pairs(v), vec_load(sines + i));
                vec_store(x + i, vec_fma(v, vec_load(cosines + i), turned));
            }
        }
    }
}

/* e^x by 2^n e^r, |r| <= ln 2 / 2, a polynomial of degree 7: below 2 ulp. x is clamped to [-87.3, 88]. */
TILE vec vec_exp(vec x) {
    x = vec_max(x, vec_set1(-87.3f));
    x = vec_sub(vec_zero(), vec_max(vec_sub(vec_zero(), x), vec_set1(-88.0f)));
    const vec n = vec_round(vec_mul(x, vec_set1(1.44269504088896341f)));
    vec r = vec_fma(n, vec_set1(-0.693359375f), x);
    r = vec_fma(n, vec_set1(2.12194440e-4f), r);
    vec p = vec_set1(1.98412698e-4f); /* 1 / 7! */
    p = vec_fma(p, r, vec_set1(1.38888889e-3f));
    p = vec_fma(p, r, vec_set1(8.33333333e-3f));
    p = vec_fma(p, r, vec_set1(4.16666667e-2f));
    p = vec_fma(p, r, vec_set1(1.66666667e-1f));
    p = vec_fma(p, r, vec_set1(0.5f));
    p = vec_fma(p, vec_mul(r, r), vec_add(r, vec_set1(1.0f)));
    return vec_ldexp(p, n);
}

static void swiglu(float *gate, const float *up, size_t n) {
    const vec one = vec_set1(1.0f);
    for (size_t p = 0; p < n; p += L2C_LANES) {
        const size_t left = n - p;
        const vec g = left < L2C_LANES ? vec_load_n(gate + p, left) : vec_load(gate + p);
        const vec u = left < L2C_LANES ? vec_load_n(up + p, left) : vec_load(up + p);
        const vec act = vec_mul(vec_div(g, vec_add(one, vec_exp(vec_sub(vec_zero(), g)))), u);
        if (left < L2C_LANES) {
            vec_store_n(gate + p, act, left);
        } else {
            vec_store(gate + p, act);
        }
    }
}

/* x[p] for p < n, padding with -3e38 (whose e^x is 1e-38 of the largest and is never stored or summed) */
TILE vec load_padded(const float *x, size_t n) {
    float lanes[L2C_LANES];
    for (size_t i = 0; i < L2C_LANES; i++) {
        lanes[i] = i < n ? x[i] : -3e38f;
    }
    return vec_load(lanes);
}

static float maximum(const float *x, size_t n) {
    vec high = vec_set1(-3e38f);
    for (size_t p = 0; p < n; p += L2C_LANES) {
        high = vec_max(high, n - p < L2C_LANES ? load_padded(x + p, n - p) : vec_load(x + p));
    }
    return vec_hmax(high);
}

/* x = e^((x - high) factor); returns the sum. */
static float exponentials(float *x, size_t n, float high, float factor) {
    const vec shift = vec_set1(high), times = vec_set1(factor);
    vec sum = vec_zero();
    for (size_t p = 0; p < n; p += L2C_LANES) {
        if (n - p < L2C_LANES) {
            const vec e = vec_exp(vec_mul(vec_sub(load_padded(x + p, n - p), shift), times));
            vec_store_n(x + p, e, n - p);
            sum = vec_add(sum, vec_load_n(x + p, n - p));
        } else {
            const vec e = vec_exp(vec_mul(vec_sub(vec_load(x + p), shift), times));
            vec_store(x + p, e);
            sum = vec_add(sum, e);
        }
    }
    return vec_sum(sum);
}

static void softmax(float *x, size_t n, float factor) {
    const vec total = vec_set1(exponentials(x, n, maximum(x, n), factor));
    for (size_t p = 0; p < n; p += L2C_LANES) {
        if (n - p < L2C_LANES) {
            vec_store_n(x + p, vec_div(vec_load_n(x + p, n - p), total), n - p);
        } else {
            vec_store(x + p, vec_div(vec_load(x + p), total));
        }
    }
}

static size_t argmax(const float *x, size_t n) {
    const float high = maximum(x, n);
    size_t i = 0;
    while (i + 1 < n && x[i] != high) {
        i++;
    }
    return i < n && x[i] == high ? i : 0;
}

#include "kernels_attention.h"

/* ---- Limits ---- */

static double probe_read(const float *x, size_t n) {
    vec sum[8];
    UNROLL for (size_t i = 0; i < 8; i++) sum[i] = vec_zero();
    for (size_t p = 0; p + 8 * L2C_LANES <= n; p += 8 * L2C_LANES) {
        UNROLL for (size_t i = 0; i < 8; i++) {
            PREFETCH((const char *)(x + p + i * L2C_LANES) + 2 * PREFETCH_BYTES);
            sum[i] = vec_add(sum[i], vec_load(x + p + i * L2C_LANES));
        }
    }
    double total = 0;
    UNROLL for (size_t i = 0; i < 8; i++) total += (double)vec_sum(sum[i]);
    return total;
}

static double probe_fma(float *sink, size_t iterations) {
    vec sum[GEMM_M][GEMM_V];
    vec w[GEMM_V];
    /* chains that start alike would be one chain to the compiler */
    UNROLL for (size_t i = 0; i < GEMM_M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) {
        sum[i][v] = vec_set1(sink[i * GEMM_V + v]);
    }
    UNROLL for (size_t v = 0; v < GEMM_V; v++) w[v] = vec_set1(sink[v]);
    const vec x = vec_set1(sink[GEMM_V]);
    for (size_t n = 0; n < iterations; n++) {
        UNROLL for (size_t i = 0; i < GEMM_M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) {
            sum[i][v] = vec_fma(w[v], x, sum[i][v]);
        }
    }
    UNROLL for (size_t i = 0; i < GEMM_M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) {
        sink[0] += vec_sum(sum[i][v]);
    }
    return (double)iterations * GEMM_M * GEMM_V * L2C_LANES;
}

#define L2C_JOIN_(a, b) a##b
#define L2C_JOIN(a, b) L2C_JOIN_(a, b)
#define L2C_TEXT_(a) #a
#define L2C_TEXT(a) L2C_TEXT_(a)

const l2c_kernels L2C_JOIN(l2c_kernels_, LEVEL) = {
    .name = L2C_TEXT(LEVEL),
    .dot_f32 = dot_f32,
    .gemm_f32 = gemm_f32,
    .dot_q8 = dot_q8,
    .quantize_q8 = quantize_q8,
    .dot_quant = dot_quant,
    .gemm_quant = gemm_quant,
    .quantize_s16 = quantize_s16,
    .quantize_s8 = quantize_s8,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .softmax = softmax,
    .argmax = argmax,
    .store_kv = store_kv,
    .attend = attend,
    .attend_part = attend_part,
    .attend_join = attend_join,
    .probe_read = probe_read,
    .probe_fma = probe_fma,
#ifdef LEVEL_HAS_TILES
    .gemm_tiles = gemm_tiles,
    .probe_tiles = probe_tiles,
#endif
};
