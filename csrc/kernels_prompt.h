/* kernels_prompt.h: products of prompt rows with GGUF's integer types, once for every level; part of kernels_template.h.
 *
 * Activations are int16, x = d q with |q| <= L2C_S16_MAX for each superblock of 256 values. The weights of a superblock
 * are small integers u: the values of a type of 32, less their bias; those of a K type times the scales of their groups,
 * at most 128 * 32. A sum of u q over 256 values then fits 31 bits, so it is exact, whatever its order and the level:
 *
 *   K types       y += d_x (d float(sum_256 u q) + sum_g min_g float(sum_g q))
 *   types of 32   y += d_x (sum_b d_b float(sum_32 u q) + sum_b min_b float(sum_b q))
 *
 * Rounding x to 12 bits leaves a hundredth of the error that 8 bits would, at the cost of bf16 products.
 *
 * The superblocks of PANEL_N columns are unpacked to a panel, then all rows go over it by tiles of PROMPT_M (types of 32, which
 * keep float sums beside the integers: PROMPT_M_BLOCKS) by GEMM_V. */

enum { PROMPT_PAIRS = SUPER / 2, PROMPT_GROUPS = 16 };
/* Floats of a panel: pairs of int16 [PROMPT_PAIRS][PANEL_N], scales [8][PANEL_N], mins [16][PANEL_N]; then the columns'
 * values before they are transposed. */
enum {
    PROMPT_SCALES = PROMPT_PAIRS * PANEL_N,
    PROMPT_MINS = PROMPT_SCALES + 8 * PANEL_N,
    PROMPT_PLAIN = PROMPT_MINS + PROMPT_GROUPS * PANEL_N,
    PROMPT_END = PROMPT_PLAIN + PROMPT_PAIRS * L2C_LANES,
};
_Static_assert((int)PROMPT_END <= (int)L2C_PANEL_FLOATS,
               "a panel of prompt rows fits the scratch of a panel of floats");

/* One block of 256 values, not eight of 32. */
TILE bool is_k_type(const l2c_type type) {
    return type == L2C_TYPE_Q2_K || type == L2C_TYPE_Q3_K || type == L2C_TYPE_Q4_K || type == L2C_TYPE_Q5_K ||
           type == L2C_TYPE_Q6_K || type == L2C_TYPE_IQ4_XS || type == L2C_TYPE_TQ2_0;
}

/* Groups of a superblock that have a min. */
TILE size_t min_groups(const l2c_type type) {
    return type == L2C_TYPE_Q2_K                                                                              ? 16
           : type == L2C_TYPE_Q4_1 || type == L2C_TYPE_Q5_1 || type == L2C_TYPE_Q4_K || type == L2C_TYPE_Q5_K ? 8
                                                                                                              : 0;
}

/* What a superblock's values are multiplied by and added: integers of sixteen values each; floats of the whole, or of its
 * eight blocks; mins of its groups. */
typedef struct super_factors {
    int16_t integers[16];
    float floats[8], mins[PROMPT_GROUPS];
} super_factors;

TILE void factors_of(const l2c_type type, const uint8_t *p, super_factors *f) {
    const size_t stride = super_bytes(type) / 8;
    uint64_t a, b;
    switch (type) {
    case L2C_TYPE_Q4_1:
    case L2C_TYPE_Q5_1:
        for (size_t i = 0; i < 8; i++) {
            f->mins[i] = f16_at(p + i * stride + 2);
        } /* fall through */
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL:
    case L2C_TYPE_Q5_0:
    case L2C_TYPE_Q8_0:
        for (size_t i = 0; i < 8; i++) {
            f->floats[i] = f16_at(p + i * stride);
        }
        break;
    case L2C_TYPE_Q4_K:
    case L2C_TYPE_Q5_K:
        l2c_k4_scales(p + 4, &a, &b);
        f->floats[0] = f16_at(p);
        for (int i = 0; i < 8; i++) {
            f->integers[2 * i] = f->integers[2 * i + 1] = (int16_t)(a >> 8 * i & 0xff);
            f->mins[i] = (float)(int)(b >> 8 * i & 0xff) * -f16_at(p + 2);
        }
        break;
    case L2C_TYPE_IQ4_XS:
        a = l2c_iq4_scales(p + 4, l2c_u16(p + 2));
        f->floats[0] = f16_at(p);
        for (int i = 0; i < 8; i++) {
            f->integers[2 * i] = f->integers[2 * i + 1] = (int16_t)((int)(a >> 8 * i & 0xff) - 32);
        }
        break;
    case L2C_TYPE_Q2_K:
        f->floats[0] = f16_at(p + 80);
        for (int i = 0; i < 16; i++) {
            f->integers[i] = (int16_t)(p[i] & 15);
            f->mins[i] = (float)(p[i] >> 4) * -f16_at(p + 82);
        }
        break;
    case L2C_TYPE_Q3_K:
        l2c_q3_scales(p + 96, &a, &b);
        f->floats[0] = f16_at(p + 108);
        for (int i = 0; i < 16; i++) {
            f->integers[i] = (int16_t)((int)((i < 8 ? a : b) >> 8 * (i % 8) & 0xff) - 32);
        }
        break;
    case L2C_TYPE_Q6_K:
        f->floats[0] = f16_at(p + 208);
        for (int i = 0; i < 16; i++) {
            f->integers[i] = (int8_t)p[192 + i];
        }
        break;
    default: /* TQ2_0 */ f->floats[0] = f16_at(p + 64);
    }
}

/* The integers u of a superblock, in order, to out [256]; their factors to column j of a panel. */
TILE void unpack_column(const l2c_type type, float *panel, float *out, size_t j, const uint8_t *p) {
    super_factors f;
    factors_of(type, p, &f);
    UNROLL for (int c = 0; c < CHUNKS; c++) {
        const bvec w = super_values(type, p, c);
        svec low = svec_low(w), high = svec_high(w);
        if (bias_of(type) != 0.0f) {
            low = svec_add(low, (int16_t)bias_of(type));
            high = svec_add(high, (int16_t)bias_of(type));
        }
        if (is_k_type(type) && type != L2C_TYPE_TQ2_0) {
            low = svec_mul(low, f.integers[4 * c], f.integers[4 * c + 1]);
            high = svec_mul(high, f.integers[4 * c + 2], f.integers[4 * c + 3]);
        }
        svec_store(out + (2 * c) * L2C_LANES, low);
        svec_store(out + (2 * c + 1) * L2C_LANES, high);
    }
    for (size_t b = 0; b < (is_k_type(type) ? 1 : 8); b++) {
        panel[PROMPT_SCALES + b * PANEL_N + j] = f.floats[b];
    }
    for (size_t g = 0; g < min_groups(type); g++) {
        panel[PROMPT_MINS + g * PANEL_N + j] = f.mins[g];
    }
}

enum { FETCH_SUPERS = 2 }; /* superblocks that are fetched before they are unpacked */

/* Fetches `count` superblocks of column j that follow superblock s: so many streams side by side are more than the hardware
 * follows. After the ends of the `width` columns of a panel the next ones begin. */
TILE void fetch_ahead(const l2c_type type, const size_t count, const l2c_matrix *w, size_t j, size_t width, size_t s) {
    const size_t supers = (w->k + SUPER - 1) / SUPER, next = s + FETCH_SUPERS, over = next < supers ? 0 : width;
    const uint8_t *soon = w->data + (j + over) * w->row_bytes + (over ? next - supers : next) * super_bytes(type);
    UNROLL for (size_t at = 0; at < count * super_bytes(type); at += 64) PREFETCH((const char *)soon + at);
}

/* Superblock s of `n` columns, and zeros for the rest of the panel. */
TILE void unpack_panel(const l2c_type type, float *panel, const l2c_matrix *w, size_t n, size_t s) {
    float *plain = panel + PROMPT_PLAIN;
    uint8_t last[MOST_SUPER_BYTES];
    for (size_t from = 0; from < PANEL_N; from += L2C_LANES) {
        for (size_t i = 0; i < L2C_LANES; i++) {
            const size_t j = from + i;
            if (j >= n) {
                memset(plain + i * PROMPT_PAIRS, 0, PROMPT_PAIRS * sizeof *plain);
                for (size_t row = 0; row < 8 + PROMPT_GROUPS; row++) {
                    panel[PROMPT_SCALES + row * PANEL_N + j] = 0.0f;
                }
                continue;
            }
            fetch_ahead(type, 1, w, j, PANEL_N, s);
            unpack_column(type, panel, plain + i * PROMPT_PAIRS, j,
                          super_at(type, last, w->data + j * w->row_bytes, s, w->k));
        }
        for (size_t pair = 0; pair < PROMPT_PAIRS; pair += L2C_LANES) {
            pack_block(panel + pair * PANEL_N + from, PANEL_N, plain + pair, PROMPT_PAIRS);
        }
    }
}

/* y [M][n] (+)= M rows of x times one superblock of a panel. `blocks`: 8 for types of 32, else 1. */
TILE void prompt_tile(const size_t blocks, const size_t M, float *y, size_t ldy, const float *panel, size_t mins,
                      const l2c_s16_rows *x, size_t row, size_t s, size_t n, bool add) {
    const size_t first = s * x->rows + row;
    const int16_t *values = x->values + first * SUPER;
    const float *scales = x->scales + first, *sums = x->sums + first * L2C_S16_SUMS + (mins == 8 ? PROMPT_GROUPS : 0);
    vec total[GEMM_M][GEMM_V];
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) total[i][v] = vec_zero();
    for (size_t b = 0; b < blocks; b++) {
        ivec sum[GEMM_M][GEMM_V];
        UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) sum[i][v] = ivec_zero();
        for (size_t pair = b * PROMPT_PAIRS / blocks; pair < (b + 1) * PROMPT_PAIRS / blocks; pair++) {
            pvec w[GEMM_V];
            UNROLL for (size_t v = 0; v < GEMM_V; v++) w[v] = pvec_load(panel + pair * PANEL_N + v * L2C_LANES);
            UNROLL for (size_t i = 0; i < M; i++) {
                const two_s16 q = two_s16_load(values + i * SUPER + 2 * pair);
                UNROLL for (size_t v = 0; v < GEMM_V; v++) sum[i][v] = ivec_add_dot2(sum[i][v], w[v], q);
            }
        }
        UNROLL for (size_t v = 0; v < GEMM_V; v++) {
            const vec d = vec_load(panel + PROMPT_SCALES + b * PANEL_N + v * L2C_LANES);
            UNROLL for (size_t i = 0; i < M; i++) {
                total[i][v] = vec_fma(vec_of_ints(sum[i][v]), d, total[i][v]);
            }
        }
    }
    for (size_t g = 0; g < mins; g++) {
        UNROLL for (size_t v = 0; v < GEMM_V; v++) {
            const vec min = vec_load(panel + PROMPT_MINS + g * PANEL_N + v * L2C_LANES);
            UNROLL for (size_t i = 0; i < M; i++) {
                total[i][v] = vec_fma(min, vec_set1(sums[i * L2C_S16_SUMS + g]), total[i][v]);
            }
        }
    }
    UNROLL for (size_t i = 0; i < M; i++) UNROLL for (size_t v = 0; v < GEMM_V; v++) {
        const vec d = vec_set1(scales[i]);
        float *out = y + i * ldy + v * L2C_LANES;
        if (n >= (v + 1) * L2C_LANES) {
            vec_store(out, vec_fma(total[i][v], d, add ? vec_load(out) : vec_zero()));
        } else if (n > v * L2C_LANES) {
            const size_t left = n - v * L2C_LANES;
            vec_store_n(out, vec_fma(total[i][v], d, add ? vec_load_n(out, left) : vec_zero()), left);
        }
    }
}

TILE void prompt_panel(const size_t blocks, float *y, size_t ldy, const float *panel, size_t mins,
                       const l2c_s16_rows *x, size_t s, size_t m, size_t n, bool add) {
    const size_t M = blocks == 8 ? PROMPT_M_BLOCKS : PROMPT_M, few = M > 3 ? 3 : 1;
    size_t i = 0;
    for (; i + M <= m; i += M) {
        prompt_tile(blocks, M, y + i * ldy, ldy, panel, mins, x, i, s, n, add);
    }
    for (; few > 1 && i + few <= m; i += few) {
        prompt_tile(blocks, few, y + i * ldy, ldy, panel, mins, x, i, s, n, add);
    }
    for (; i < m; i++) {
        prompt_tile(blocks, 1, y + i * ldy, ldy, panel, mins, x, i, s, n, add);
    }
}

/* Once for all types of a kind: what differs is in the panel. */
static void k_panel(float *y, size_t ldy, const float *panel, size_t mins, const l2c_s16_rows *x, size_t s, size_t m,
                    size_t n, bool add) {
    prompt_panel(1, y, ldy, panel, mins, x, s, m, n, add);
}

static void blocks_panel(float *y, size_t ldy, const float *panel, size_t mins, const l2c_s16_rows *x, size_t s,
                         size_t m, size_t n, bool add) {
    prompt_panel(8, y, ldy, panel, mins, x, s, m, n, add);
}

/* Rows go by blocks whose superblocks, and part of y, stay in the cache while k advances. */
TILE void prompt_product(const l2c_type type, float *y, size_t ldy, const l2c_s16_rows *x, const l2c_matrix *w,
                         size_t m, size_t n, bool add, float *panel) {
    for (size_t j = 0; j < n; j += PANEL_N) {
        const size_t width = smaller(PANEL_N, n - j);
        const l2c_matrix columns = {w->data + j * w->row_bytes, w->row_bytes, w->k, w->type};
        for (size_t s = 0; s * SUPER < w->k; s++) {
            unpack_panel(type, panel, &columns, width, s);
            (is_k_type(type) ? k_panel : blocks_panel)(y + j, ldy, panel, min_groups(type), x, s, m, width,
                                                       add || s > 0);
        }
    }
}

#define CASE(type)                                                                                                     \
    APART void product_of_##type(float *y, size_t ldy, const l2c_s16_rows *x, const l2c_matrix *w, size_t m, size_t n, \
                                 bool add, float *panel) {                                                             \
        prompt_product(type, y, ldy, x, w, m, n, add, panel);                                                          \
    }                                                                                                                  \
    _Static_assert(true, "")
EACH_INTEGER_TYPE
#undef CASE

static void gemm_quant(float *y, size_t ldy, const l2c_s16_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                       float *panel) {
#define CASE(type)                                                                                                     \
    case type: product_of_##type(y, ldy, x, w, m, n, add, panel); break
    switch (w->type->type) {
        EACH_INTEGER_TYPE
    default: break; /* not computed as integers */
    }
#undef CASE
}

/* A block so small that its inverse scale overflows is zero. */
static void quantize_s16(const l2c_s16_rows *q, size_t row, const float *x, size_t k) {
    for (size_t s = 0; s * SUPER < k; s++) {
        const size_t length = smaller(SUPER, k - s * SUPER);
        const size_t at = s * q->rows + row;
        int16_t *values = q->values + at * SUPER;
        float *sums = q->sums + at * L2C_S16_SUMS, padded[SUPER];
        const float *block = x + s * SUPER;
        if (length < SUPER) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, block, length * sizeof *padded);
            block = padded;
        }
        vec most = vec_zero();
        for (size_t i = 0; i < SUPER; i += L2C_LANES) {
            const vec v = vec_load(block + i);
            most = vec_max(most, vec_max(v, vec_sub(vec_zero(), v)));
        }
        const float top = vec_hmax(most), inverse = top > 0x1p-100f ? L2C_S16_MAX / top : 0.0f;
        for (size_t g = 0; g < PROMPT_GROUPS; g++) {
            const vec rounded = vec_round(vec_mul(vec_load(block + g * L2C_LANES), vec_set1(inverse)));
            vec_store_s16(values + g * L2C_LANES, rounded);
            sums[g] = vec_sum(rounded);
        }
        for (size_t b = 0; b < 8; b++) {
            sums[PROMPT_GROUPS + b] = sums[2 * b] + sums[2 * b + 1];
        }
        q->scales[at] = inverse > 0.0f ? top / L2C_S16_MAX : 0.0f;
    }
}
