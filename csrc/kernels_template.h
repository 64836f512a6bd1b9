/* kernels_template.h: every kernel, once, over the sixteen-lane vectors that the including file defines.
 *
 * The including file gives
 *   vec          16 f32; vec_zero set1 load load_n store store_n add sub mul div max fma(a,b,c)=a*b+c, vec_round (to even),
 *                vec_ldexp(x, n) = x 2^n for integral n, vec_sum and vec_hmax by halves (8+8, 4+4, 2+2, 1+1),
 *                vec_store_s8(p, x): x rounded to int8, ties away from 0
 *   bvec         64 int8; bvec_load, bvec_load_n, bvec_store
 *   vec_dot4(w, x, bias): lane i = sum of w[4i+j] x[4i+j], j < 4, exact
 *   vec_halves(a, b): lanes 0-7 = a, 8-15 = b; vec_swap_pairs(x): lanes 2i and 2i + 1 exchanged
 *   ivec         16 int32; ivec_zero load store set1(p): lanes *p, add, shr(a, n) of multiples of 1 << n; vec_of_ints; ivec_dot4(w, x)
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
 *   pack_block(panel, stride, w, k): the transpose of 16 rows by 16 columns
 * and, with LEVEL_HAS_WORDS,
 *   svec         32 int16; svec_low(w), svec_high(w): of a bvec's bytes; svec_add(w, a); svec_mul(w, a, b): by a, the upper half
 *                by b; svec_store(p, w). pvec: sixteen pairs of int16, pvec_load(p); two_s16_load(p): one pair
 *   ivec_add_dot2(sum, w, x): lane i + w[2i] x[0] + w[2i+1] x[1]; vec_store_s16(p, x): of integral x
 *   PROMPT_M, PROMPT_M_BLOCKS
 * and LEVEL (the name), DOT_M, DOT_N, GEMM_M, GEMM_V, Q8_M, Q8_N, QUANT_N, PANEL_M, PANEL_V, ATT_H, ATT_V: how many
 * accumulators its registers hold.
 * Tiles are inlined with constant sizes, so that their accumulators live in registers. What they are inlined into is APART
 * for each type: the time to compile a function grows faster than its length.
 * PANEL_ROWS: rows from which on panels of quantised types, or tiles, pay; INT_MAX: never.
 * LEVEL_HAS_TILES: it has gemm_tiles, rows_to_tiles and probe_tiles, and what kernels_quant_tiles.h takes.
 * LEVEL_HAS_WORDS: it has a gemm_quant; LEVEL_TAKES_WORDS: and takes prompt rows by it.
 * LEVEL_HAS_SHORT_DOTS: products with a panel are summed in 16 bits first: dots; dots_begin(sum), dots_add(d, w, four) for
 * unsigned w, dots_end(d, sum) = sum + d.
 * LEVEL_HAS_TURNS: a few rows are multiplied by kernels_turned.h, for which there are
 *   bvec_pieces(a, b, half): 16 bytes at a, a + half, b and b + half; bvec_turn(out, a, b, step, half): in lane 4q + c of out[d]
 *                dword d of quarter q of the pieces at a + c step and b + c step
 *   bvec_low_nibbles, bvec_high_nibbles; bvec_or_fifths(w, fifths, d, second)
 *   bvec_turn_quarters(out, a, b, c, d): in each quarter of out[i] dword i of that quarter of the four
 *   chain        sums of four ivec_dot4 or ivec_dot4u: chain_zero, chain_add(is_signed, sum, w, x), chain_end; of values of
 *                six bits CHAIN_OF_SIX_BITS of them
 *   ivec_sums_of_halves(a, b): lane 8s + 4h + c = of a (h = 0) or b the sum of lanes 8s + c and 8s + 4 + c
 * LEVEL_HAS_F16_OF_BLOCKS: it has a vec_f16_of_blocks of its own. LEVEL_HAS_K4_SCALES: a vec_k4_scales(a, b, mins), the
 * step_scales of Q4_K and Q5_K. */
#include "kernels.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#if defined(_MSC_VER)
#define TILE static __forceinline
#define APART static __declspec(noinline)
#define PREFETCH(p) ((void)(p))
#define PREFETCH_L2(p) ((void)(p))
#else
#define TILE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))
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

#include "kernels_float.h"

#include "kernels_q8.h"

#include "kernels_quant.h"

#ifdef LEVEL_HAS_WORDS
#include "kernels_prompt.h"
#endif

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
#ifdef LEVEL_HAS_WORDS
    .gemm_quant = gemm_quant,
    .quantize_s16 = quantize_s16,
#endif
#ifdef LEVEL_TAKES_WORDS
    .takes_words = true,
#endif
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
    .rows_to_tiles = rows_to_tiles,
    .attend_tiles = attend_tiles,
    .probe_tiles = probe_tiles,
#endif
};
