/* kernels_quant.h: products with GGUF's quantised types, once for every level; part of kernels_template.h.
 *
 * Values that share a scale, 16 or 32 of them, are a group. The products of a group give an exact integer, which is scaled
 * and added to one of sixteen partial sums; what a type takes from its values, a power of two, is taken from the integer.
 * A step is sixteen groups, one for each partial sum: a superblock of 256 values with groups of 16, two with groups of 32.
 * The partial sums, lanes of a vector, are in an order of their own: lane 4q + c belongs to quarter q of chunk c of 64
 * values, or lane 8s + 4h + c to half h of chunk c of superblock s. Mins meet only the sums of a group's activations.
 *
 * Few rows of x: QUANT_N rows of W at a time, unpacked in registers for all rows of x, so that W is read as one stream.
 * More rows: panels of unpacked columns (kernels_panel.h), or tiles of bytes (kernels_quant_tiles.h). The operations on every
 * element of y are the same. */

enum { SUPER = L2C_SUPER, CHUNKS = SUPER / L2C_Q8_CHUNK };

/* Bytes of a superblock. */
TILE size_t super_bytes(const l2c_type type) {
    switch (type) {
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL: return 8 * 18;
    case L2C_TYPE_Q4_1: return 8 * 20;
    case L2C_TYPE_Q5_0: return 8 * 22;
    case L2C_TYPE_Q5_1: return 8 * 24;
    case L2C_TYPE_Q8_0: return 8 * 34;
    case L2C_TYPE_Q2_K: return 84;
    case L2C_TYPE_Q3_K: return 110;
    case L2C_TYPE_Q4_K: return 144;
    case L2C_TYPE_Q5_K: return 176;
    case L2C_TYPE_Q6_K: return 210;
    case L2C_TYPE_IQ4_XS: return 136;
    default: return 66; /* TQ2_0 */
    }
}

/* Values are signed bytes, else unsigned and less than 64. */
TILE bool is_signed(const l2c_type type) {
    return type == L2C_TYPE_Q8_0 || type == L2C_TYPE_IQ4_NL || type == L2C_TYPE_IQ4_XS;
}

/* Groups have 16 values, else 32. */
TILE bool is_narrow(const l2c_type type) {
    return type == L2C_TYPE_Q2_K || type == L2C_TYPE_Q3_K || type == L2C_TYPE_Q6_K;
}

TILE size_t step_supers(const l2c_type type) {
    return is_narrow(type) ? 1 : 2;
}

TILE bool has_mins(const l2c_type type) {
    return type == L2C_TYPE_Q4_1 || type == L2C_TYPE_Q5_1 || type == L2C_TYPE_Q2_K || type == L2C_TYPE_Q4_K ||
           type == L2C_TYPE_Q5_K;
}

/* A type takes 1 << bias_bits from its unsigned values; -1: nothing. */
TILE int bias_bits(const l2c_type type) {
    return type == L2C_TYPE_Q4_0    ? 3
           : type == L2C_TYPE_Q5_0  ? 4
           : type == L2C_TYPE_Q3_K  ? 2
           : type == L2C_TYPE_Q6_K  ? 5
           : type == L2C_TYPE_TQ2_0 ? 0
                                    : -1;
}

/* What the products of a group are too large by is -(m >> excess_shift), m being -128 times the sum of its activations:
 * the type's bias, or the 128 that some levels make signed values unsigned with. -1: they are not. */
TILE int excess_shift(const l2c_type type) {
    return is_signed(type) ? (SIGNED_EXCESS ? 0 : -1) : bias_bits(type) < 0 ? -1 : 7 - bias_bits(type);
}

/* What a type adds to its values. */
TILE float bias_of(const l2c_type type) {
    return bias_bits(type) < 0 ? 0.0f : -(float)(1 << bias_bits(type));
}

TILE uint64_t u64_at(const uint8_t *p) {
    return (uint64_t)l2c_u32(p) | (uint64_t)l2c_u32(p + 4) << 32;
}

#ifndef LEVEL_HAS_F16_OF_BLOCKS
/* Four f16 that lie `stride` bytes apart. */
TILE uint64_t four_f16(const uint8_t *p, size_t stride) {
    return (uint64_t)l2c_u16(p) | (uint64_t)l2c_u16(p + stride) << 16 | (uint64_t)l2c_u16(p + 2 * stride) << 32 |
           (uint64_t)l2c_u16(p + 3 * stride) << 48;
}

TILE vec vec_f16_of_blocks(const uint8_t *a, const uint8_t *b, size_t stride) {
    return vec_f16(four_f16(a, 2 * stride), four_f16(a + stride, 2 * stride), four_f16(b, 2 * stride),
                   four_f16(b + stride, 2 * stride));
}
#endif

#ifndef LEVEL_HAS_K4_SCALES
TILE vec vec_k4_scales(const uint8_t *a, const uint8_t *b, vec *mins) {
    uint64_t of_a, of_b, mins_of_a, mins_of_b;
    l2c_k4_scales(a + 4, &of_a, &mins_of_a);
    l2c_k4_scales(b + 4, &of_b, &mins_of_b);
    *mins = vec_lanes_of_blocks(vec_mul(vec_u8(mins_of_a, mins_of_b), vec_halves(-f16_at(a + 2), -f16_at(b + 2))));
    return vec_lanes_of_blocks(vec_mul(vec_u8(of_a, of_b), vec_halves(f16_at(a), f16_at(b))));
}
#endif

/* The scales of a step in lane order, and its mins where it has_mins. p: its superblocks. */
TILE vec step_scales(const l2c_type type, const uint8_t *const p[2], vec *mins) {
    const size_t stride = super_bytes(type) / 8;
    uint64_t a, b;
    switch (type) {
    case L2C_TYPE_Q4_1:
    case L2C_TYPE_Q5_1: *mins = vec_f16_of_blocks(p[0] + 2, p[1] + 2, stride); /* fall through */
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL:
    case L2C_TYPE_Q5_0:
    case L2C_TYPE_Q8_0: return vec_f16_of_blocks(p[0], p[1], stride);
    case L2C_TYPE_Q4_K:
    case L2C_TYPE_Q5_K: return vec_k4_scales(p[0], p[1], mins);
    case L2C_TYPE_IQ4_XS: {
        a = l2c_iq4_scales(p[0] + 4, l2c_u16(p[0] + 2));
        b = l2c_iq4_scales(p[1] + 4, l2c_u16(p[1] + 2));
        const vec scales = vec_sub(vec_u8(a, b), vec_set1(32.0f));
        return vec_lanes_of_blocks(vec_mul(scales, vec_halves(f16_at(p[0]), f16_at(p[1]))));
    }
    case L2C_TYPE_Q2_K: {
        const uint64_t low = 0x0f0f0f0f0f0f0f0f;
        a = u64_at(p[0]);
        b = u64_at(p[0] + 8);
        *mins = vec_lanes_of_16(vec_mul(vec_u8(a >> 4 & low, b >> 4 & low), vec_set1(-f16_at(p[0] + 82))));
        return vec_lanes_of_16(vec_mul(vec_u8(a & low, b & low), vec_set1(f16_at(p[0] + 80))));
    }
    case L2C_TYPE_Q3_K:
        l2c_q3_scales(p[0] + 96, &a, &b);
        return vec_lanes_of_16(vec_mul(vec_sub(vec_u8(a, b), vec_set1(32.0f)), vec_set1(f16_at(p[0] + 108))));
    case L2C_TYPE_Q6_K:
        return vec_lanes_of_16(vec_mul(vec_s8(u64_at(p[0] + 192), u64_at(p[0] + 200)), vec_set1(f16_at(p[0] + 208))));
    default: /* TQ2_0 */ return vec_halves(f16_at(p[0] + 64), f16_at(p[1] + 64));
    }
}

/* The values of chunk c, less than their bias where they are unsigned. */
TILE bvec super_values(const l2c_type type, const uint8_t *p, const int c) {
    static const int8_t iq4[16] = {L2C_IQ4_VALUES};
    const size_t stride = super_bytes(type) / 8;
    const uint8_t *a = p + 2 * (size_t)c * stride, *b = a + stride; /* the two blocks of types of 32 */
    const int n = c / 2, odd = c % 2;
    switch (type) {
    case L2C_TYPE_Q4_0: return bvec_nibbles(a + 2, b + 2);
    case L2C_TYPE_IQ4_NL: return bvec_lookup(bvec_nibbles(a + 2, b + 2), iq4);
    case L2C_TYPE_Q4_1: return bvec_nibbles(a + 4, b + 4);
    case L2C_TYPE_Q5_0:
        return bvec_or_bits(bvec_nibbles(a + 6, b + 6), l2c_u32(a + 2) | (uint64_t)l2c_u32(b + 2) << 32, 4);
    case L2C_TYPE_Q5_1:
        return bvec_or_bits(bvec_nibbles(a + 8, b + 8), l2c_u32(a + 4) | (uint64_t)l2c_u32(b + 4) << 32, 4);
    case L2C_TYPE_Q8_0: return bvec_join(a + 2, b + 2);
    case L2C_TYPE_Q4_K: return bvec_twice(p + 16 + 32 * c, 0, 4, 15);
    case L2C_TYPE_Q5_K:
        return bvec_or_shl(bvec_twice(p + 48 + 32 * c, 0, 4, 15), bvec_twice(p + 16, 2 * c, 2 * c + 1, 1), 4);
    case L2C_TYPE_IQ4_XS: return bvec_lookup(bvec_nibbles(p + 8 + 32 * c, p + 24 + 32 * c), iq4);
    case L2C_TYPE_Q2_K: return bvec_twice(p + 16 + 32 * n, 4 * odd, 4 * odd + 2, 3);
    case L2C_TYPE_Q3_K:
        return bvec_or_shl(bvec_twice(p + 32 + 32 * n, 4 * odd, 4 * odd + 2, 3), bvec_twice(p, 2 * c, 2 * c + 1, 1), 2);
    case L2C_TYPE_Q6_K:
        return bvec_or_shl(bvec_shr(bvec_load((const int8_t *)p + 64 * n), 4 * odd, 15),
                           bvec_twice(p + 128 + 32 * n, 4 * odd, 4 * odd + 2, 3), 4);
    default: return bvec_twice(p + 32 * n, 4 * odd, 4 * odd + 2, 3); /* TQ2_0 */
    }
}

enum { MOST_SUPER_BYTES = 8 * 34 };

/* Superblock s of a row, at `last` if it is not there in full: the missing blocks of a type of 32 are zeros. */
TILE const uint8_t *super_at(const l2c_type type, uint8_t last[MOST_SUPER_BYTES], const uint8_t *w, size_t s,
                             size_t k) {
    static const uint8_t none[MOST_SUPER_BYTES] = {0};
    const size_t bytes = super_bytes(type);
    if ((s + 1) * SUPER <= k) {
        return w + s * bytes;
    }
    if (s * SUPER >= k) {
        return none;
    }
    memset(last, 0, MOST_SUPER_BYTES);
    memcpy(last, w + s * bytes, k % SUPER / 32 * (bytes / 8));
    return last;
}

/* Of a step and a row of x: scales of its groups, their sums, scaled, and -128 times the sums; in lane order. */
TILE const float *lanes_of(const l2c_type type, const l2c_s8_rows *x, size_t step, size_t row) {
    return (is_narrow(type) ? x->of_16 : x->of_32) + (step * x->rows + row) * L2C_STEP_LANES;
}

/* ---- Few rows ---- */

#ifdef LEVEL_HAS_TURNS
#include "kernels_turned.h"
#endif

/* The values of a step; p: its superblocks. They lie chunk by chunk, unless they are turned: the types that are turned
 * before they are unpacked, and all for several rows, whose sums of lanes cost more. */
TILE void step_values(const l2c_type type, const bool several, bvec w[2 * CHUNKS], const uint8_t *const p[2]) {
#ifdef LEVEL_HAS_TURNS
    if (several || is_turned(type)) {
        turned_values(type, w, p);
        return;
    }
#else
    (void)several;
#endif
    UNROLL for (size_t half = 0; half < step_supers(type); half++) {
        UNROLL for (int c = 0; c < CHUNKS; c++) w[half * CHUNKS + (size_t)c] = super_values(type, p[half], c);
    }
}

/* The values of a row of x for a step, alike. */
TILE void step_row(const l2c_type type, const bool several, const int8_t *of[2], const l2c_s8_rows *x, size_t step,
                   size_t row) {
#ifdef LEVEL_HAS_TURNS
    if (several || is_turned(type)) {
        turned_row(type, of, x, step, row);
        return;
    }
#else
    (void)several;
#endif
    of[0] = x->values + (step * step_supers(type) * x->rows + row) * SUPER;
    of[1] = of[0] + x->rows * SUPER;
}

/* Sums of the groups of a step. */
TILE ivec group_sums(const l2c_type type, const bool several, const bvec w[2 * CHUNKS], const int8_t *const x[2]) {
#ifdef LEVEL_HAS_TURNS
    if (several || is_turned(type)) {
        return turned_sums(type, w, x);
    }
#else
    (void)several;
#endif
    ivec sums[2];
    UNROLL for (size_t half = 0; half < step_supers(type); half++) {
        ivec of_chunk[CHUNKS];
        UNROLL for (size_t c = 0; c < CHUNKS; c++) {
            const bvec xs = bvec_load(x[half] + c * L2C_Q8_CHUNK);
            of_chunk[c] = is_signed(type) ? ivec_dot4(w[half * CHUNKS + c], xs) : ivec_dot4u(w[half * CHUNKS + c], xs);
        }
        sums[half] = ivec_sums_of_4(of_chunk[0], of_chunk[1], of_chunk[2], of_chunk[3]);
    }
    return is_narrow(type) ? sums[0] : ivec_sums_of_2(sums[0], sums[1]);
}

/* sum [m][N] += m rows of x, from row `row` on, times N columns, of a step that is there in full or not: columns are
 * unpacked once for all rows. */
TILE void quant_step(const l2c_type type, const bool several, const bool whole, const size_t N, vec sum[][QUANT_N],
                     const l2c_s8_rows *x, size_t row, const uint8_t *w, size_t row_bytes, size_t m, size_t k,
                     size_t step) {
    const size_t supers = step_supers(type), bytes = supers * super_bytes(type);
    bvec values[QUANT_N][2 * CHUNKS];
    vec scales[QUANT_N], mins[QUANT_N];
    UNROLL for (size_t n = 0; n < N; n++) {
        const uint8_t *column = w + n * row_bytes;
        const uint8_t *p[2] = {column + step * bytes, column + step * bytes + super_bytes(type)};
        uint8_t last[MOST_SUPER_BYTES];
        UNROLL for (size_t ahead = 0; whole && ahead < bytes; ahead += 64) {
            PREFETCH((const char *)p[0] + ahead + PREFETCH_BYTES);
        }
        if (!whole) {
            p[0] = super_at(type, last, column, step * supers, k);
            p[1] = super_at(type, last, column, step * supers + 1, k);
        }
        mins[n] = vec_zero();
        scales[n] = step_scales(type, p, &mins[n]);
        step_values(type, several, values[n], p);
    }
    for (size_t i = 0; i < m; i++) {
        const float *lanes = lanes_of(type, x, step, row + i);
        const int8_t *of_row[2];
        step_row(type, several, of_row, x, step, row + i);
        UNROLL for (size_t n = 0; n < N; n++) {
            ivec of_group = group_sums(type, several, values[n], of_row);
            if (excess_shift(type) >= 0) {
                of_group = ivec_add(of_group, ivec_shr(ivec_load(lanes + 2 * L2C_LANES), excess_shift(type)));
            }
            sum[i][n] = vec_fma(vec_of_ints(of_group), vec_mul(scales[n], vec_load(lanes)), sum[i][n]);
            if (has_mins(type)) {
                sum[i][n] = vec_fma(mins[n], vec_load(lanes + L2C_LANES), sum[i][n]);
            }
        }
    }
}

/* y [m][N] (+)= the same, of all steps. */
TILE void quant_columns(const l2c_type type, const bool several, const size_t N, float *y, size_t ldy,
                        const l2c_s8_rows *x, size_t row, const uint8_t *w, size_t row_bytes, size_t m, size_t k,
                        bool add) {
    const size_t values = step_supers(type) * SUPER, steps = k / values;
    vec sum[L2C_FEW][QUANT_N];
    for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t n = 0; n < N; n++) sum[i][n] = vec_zero();
    }
    for (size_t step = 0; step < steps; step++) {
        quant_step(type, several, true, N, sum, x, row, w, row_bytes, m, k, step);
    }
    if (steps * values < k) {
        quant_step(type, several, false, N, sum, x, row, w, row_bytes, m, k, steps);
    }
    for (size_t i = 0; i < m; i++) {
        UNROLL for (size_t n = 0; n < N; n++) {
            const float total = vec_sum(sum[i][n]);
            y[i * ldy + n] = add ? y[i * ldy + n] + total : total;
        }
    }
}

TILE void quant_rows(const l2c_type type, float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m,
                     size_t n, bool add) {
    const size_t bytes = w->row_bytes;
    size_t j = 0;
    for (; m > 1 && j + QUANT_N <= n; j += QUANT_N) {
        for (size_t i = 0; i < m; i += L2C_FEW) {
            quant_columns(type, true, QUANT_N, y + i * ldy + j, ldy, x, i, w->data + j * bytes, bytes,
                          smaller(L2C_FEW, m - i), w->k, add);
        }
    }
    for (; j < n; j++) {
        for (size_t i = 0; i < m; i++) {
            quant_columns(type, false, 1, y + i * ldy + j, ldy, x, i, w->data + j * bytes, bytes, 1, w->k, add);
        }
    }
}

/* ---- Many rows ---- */

/* Where they never are, their code is not compiled. */
TILE bool are_many(const l2c_s8_rows *x) {
    return PANEL_ROWS < INT_MAX && x->rows >= PANEL_ROWS;
}

/* The weights after these columns, fetched meanwhile into the second-level cache, so that memory is never idle: bytes for
 * each superblock of a column that is unpacked, and for each superblock of what is multiplied at once. */
typedef struct next_weights {
    const char *at, *end;
    size_t unpacking, multiplying;
} next_weights;

TILE void fetch_next(next_weights *next, size_t bytes) {
    for (size_t done = 0; done < bytes && next->at < next->end; done += 64) {
        PREFETCH_L2(next->at);
        next->at += 64;
    }
}

/* The share of the fetching while columns are unpacked is that of so many rows while they are multiplied. */
enum { UNPACKING_ROWS = 8 };

TILE next_weights weights_after(const l2c_type type, const l2c_matrix *w, size_t columns, size_t m, size_t products) {
    const size_t unpacking = super_bytes(type) * UNPACKING_ROWS / (UNPACKING_ROWS + m);
    const char *after = (const char *)w->data + columns * w->row_bytes;
    return (next_weights){after, after + columns * w->row_bytes, unpacking,
                          (super_bytes(type) - unpacking) * columns / products + 1};
}

#ifdef LEVEL_HAS_TILES
#include "kernels_quant_tiles.h"
#else
#include "kernels_panel.h"
#endif

/* CASE(type); for all of them */
#define EACH_INTEGER_TYPE                                                                                              \
    CASE(L2C_TYPE_Q4_0);                                                                                               \
    CASE(L2C_TYPE_Q4_1);                                                                                               \
    CASE(L2C_TYPE_Q5_0);                                                                                               \
    CASE(L2C_TYPE_Q5_1);                                                                                               \
    CASE(L2C_TYPE_Q8_0);                                                                                               \
    CASE(L2C_TYPE_Q2_K);                                                                                               \
    CASE(L2C_TYPE_Q3_K);                                                                                               \
    CASE(L2C_TYPE_Q4_K);                                                                                               \
    CASE(L2C_TYPE_Q5_K);                                                                                               \
    CASE(L2C_TYPE_Q6_K);                                                                                               \
    CASE(L2C_TYPE_IQ4_NL);                                                                                             \
    CASE(L2C_TYPE_IQ4_XS);                                                                                             \
    CASE(L2C_TYPE_TQ2_0);

#define CASE(type)                                                                                                     \
    APART void few_##type(float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m, size_t n,         \
                          bool add) {                                                                                  \
        quant_rows(type, y, ldy, x, w, m, n, add);                                                                     \
    }                                                                                                                  \
    APART void many_##type(float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m, size_t n,        \
                           bool add, float *scratch) {                                                                 \
        many_rows(type, y, ldy, x, w, m, n, add, scratch);                                                             \
    }                                                                                                                  \
    _Static_assert(true, "")
EACH_INTEGER_TYPE
#undef CASE

static void dot_quant(float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                      float *scratch) {
    const bool many = are_many(x);
#define CASE(type)                                                                                                     \
    case type:                                                                                                         \
        if (many) {                                                                                                    \
            many_##type(y, ldy, x, w, m, n, add, scratch);                                                             \
        } else {                                                                                                       \
            few_##type(y, ldy, x, w, m, n, add);                                                                       \
        }                                                                                                              \
        break
    switch (w->type->type) {
        EACH_INTEGER_TYPE
    default: break; /* not computed as integers */
    }
#undef CASE
}

/* What lanes_of tells of sixteen groups, their scales being there. */
static void complete_lanes(float *lanes, ivec of_group) {
    int32_t sums[L2C_LANES], excess[L2C_LANES];
    ivec_store(sums, of_group);
    for (size_t i = 0; i < L2C_LANES; i++) {
        lanes[L2C_LANES + i] = lanes[i] * (float)sums[i];
        excess[i] = -128 * sums[i];
    }
    memcpy(lanes + 2 * L2C_LANES, excess, sizeof excess);
}

/* Where the products will look for them. */
static void keep_lanes(const l2c_s8_rows *q, float *of, size_t step, size_t row, const float lanes[L2C_STEP_LANES]) {
    if (are_many(q)) {
        place_lanes(q, of, step, row, lanes);
    } else {
        memcpy(of + (step * q->rows + row) * L2C_STEP_LANES, lanes, L2C_STEP_LANES * sizeof *lanes);
    }
}

/* A group so small that its scale may be subnormal is zero. The last step is filled up with zeros. */
static void quantize_s8(const l2c_s8_rows *q, size_t row, const float *x, size_t k) {
    const bool many = are_many(q);
    int8_t ones[L2C_Q8_CHUNK];
    memset(ones, 1, sizeof ones);
    const bvec one = bvec_load(ones);
    ivec sums[2]; /* of groups of 16 */
    float of_16[L2C_STEP_LANES], of_32[L2C_STEP_LANES];
    size_t s = 0;
    for (; s * SUPER < k || s % 2; s++) {
        const size_t length = smaller(SUPER, k - smaller(k, s * SUPER));
        int8_t values[SUPER];
        float padded[SUPER];
        if (length < SUPER) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, x + (k - length), length * sizeof *padded);
        }
        const float *block = length < SUPER ? padded : x + s * SUPER;
        for (size_t g = 0; g < SUPER / 32; g++) {
            const vec low = vec_load(block + 2 * g * L2C_LANES), high = vec_load(block + (2 * g + 1) * L2C_LANES);
            const vec most = vec_max(vec_max(low, vec_sub(vec_zero(), low)), vec_max(high, vec_sub(vec_zero(), high)));
            const float top = vec_hmax(most) / 127.0f, scale = top > 0x1p-100f ? top : 0.0f;
            const vec divisor = vec_set1(scale > 0.0f ? scale : INFINITY);
            vec_store_s8(values + 2 * g * L2C_LANES, vec_div(low, divisor));
            vec_store_s8(values + (2 * g + 1) * L2C_LANES, vec_div(high, divisor));
            of_16[g % 2 * 8 + g / 2] = of_16[g % 2 * 8 + 4 + g / 2] = scale;
            of_32[s % 2 * 8 + g % 2 * 4 + g / 2] = scale;
        }
        ivec of_chunk[CHUNKS];
        for (int c = 0; c < CHUNKS; c++) {
            of_chunk[c] = ivec_dot4u(one, bvec_load(values + c * L2C_Q8_CHUNK));
        }
        sums[s % 2] = ivec_sums_of_4(of_chunk[0], of_chunk[1], of_chunk[2], of_chunk[3]);
        complete_lanes(of_16, sums[s % 2]);
        if (s % 2) {
            complete_lanes(of_32, ivec_sums_of_2(sums[0], sums[1]));
        }
        if (many) {
            place_values(q, s, row, values);
        } else {
            memcpy(q->values + (s * q->rows + row) * SUPER, values, sizeof values);
        }
        keep_lanes(q, q->of_16, s, row, of_16);
        if (s % 2) {
            keep_lanes(q, q->of_32, s / 2, row, of_32);
        }
    }
#ifdef LEVEL_HAS_TURNS
    if (!many) {
        turn_row(q, row, s);
    }
#endif
}
