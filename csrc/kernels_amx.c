/* kernels_amx.c: AVX-512 VNNI, and prompt rows of any type but F32 by AMX's tiles of bf16; their attention is in
 * kernels_attention_tiles.h, many generated rows of quantised types in kernels_quant_tiles.h.
 *
 *   weights --unpacked, rounded----> A [16 columns][32 k] ----------\
 *                                                                    tdpbf16ps --> sums [16 columns][16 rows] --> y
 *   x       --rounded, transposed--> B [16 pairs of k][16 rows][2] --/
 *
 * Weights are A as it takes them as they lie: few rows go over many columns, so what is transposed is x, once for all
 * products with it, and the sums. The tiles keep their sums over all of a panel of k: storing them, to memory that is not in
 * the first-level cache, costs as much as eight products. Meanwhile the vector units unpack the next columns and add the
 * last sums to y, piece by piece between the products, as many as a core looks ahead at once.
 *
 * A sum is one chain over a panel in f32; those of panels are added in order. A tile's rows know nothing of one another, so
 * that a row of y depends neither on the rows beside it nor on their number. bf16 holds 8 of an f16's 11 bits, so that
 * these weights are taken in two terms, w = w0 + w1. F32 would need three of each, or lose a thousandfold against
 * gemm_f32. */
#include "vec_avx512vnni.h"

#include "kernels.h"

#define LEVEL amx
#define LEVEL_HAS_TILES

/* What a thread's tile registers are while it is inside a product; static, as GCC 12 takes only the first eight bytes of
 * the argument of _tile_loadconfig for read and drops what was stored to the others. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static const tile_shapes eight_tiles = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

/* GCC does not know either that a tile is loaded from memory: what it still holds back is stored here. */
#if defined(__GNUC__)
#define STORED() __asm__ volatile("" ::: "memory")
/* Broadcasts of it are loads then, which cost less than permutations of a register. */
#define IN_MEMORY(x) __asm__("" : "+m"(x))
#else
#define STORED() ((void)0)
#define IN_MEMORY(x) ((void)0)
#endif

enum { PANEL_ROWS = 23, TILE_BYTES = 64 /* of a row of any */ };

static inline bvec bvec_sub(bvec a, int8_t b) {
    return _mm512_sub_epi8(a, _mm512_set1_epi8(b));
}

static void gemm_tiles(float *y, size_t ldy, const uint16_t *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                       float *scratch);
static void rows_to_tiles(uint16_t *to, const float *x, size_t ldx, size_t from, size_t end, size_t k);
static void attend_tiles(const l2c_attention *a);
static double probe_tiles(size_t iterations);

#include "kernels_template.h"

enum {
    TILE_K = 32,     /* k of a tile of A or B */
    TILE_U16 = 512,  /* bf16 in one */
    TILE_SUMS = 256, /* floats of a tile of sums */
    BLOCK = 32,      /* rows and columns of a block: two by two tiles of sums, with two of A and two of B all eight */
    BLOCK_TILES = 4,
    BLOCK_SUMS = BLOCK_TILES * TILE_SUMS,
    STEP_U16 = 2 * TILE_U16,   /* x of a block for TILE_K */
    PIECE_K = L2C_TILES_PIECE, /* of a column, unpacked at a time */
    PIECE_STEPS = PIECE_K / TILE_K,
    /* w of a column for PIECE_K, of a block for it, and of a panel. What is written one after the other lies together, and
     * columns are an odd number of lines apart: stores 2,048 bytes apart take up to three times as long. */
    COLUMN_U16 = PIECE_K + L2C_TILES_GAP,
    BLOCK_U16 = BLOCK * COLUMN_U16,
    TERM_U16 = L2C_TILES_K / PIECE_K * BLOCK_U16,
    COLUMN_BYTES = 2 * COLUMN_U16,
    GROUP_BLOCKS = 8, /* of rows that go over the columns together: they stay in the second-level cache */
};

_Static_assert((int)BLOCK == (int)L2C_TILE_ROWS, "rows lie by blocks");
_Static_assert((int)(4 * TERM_U16 / 2 + 2 * BLOCK_SUMS) == (int)L2C_TILES_FLOATS,
               "two blocks of columns, in two terms, and of sums");

/* ---- f32 to bf16 ---- */

TILE size_t w_terms(const l2c_type type) {
    return type == L2C_TYPE_F16 ? 2 : 1;
}

/* k is in the order of a tile: of 32 values first the even ones, then the odd ones, as bytes and nibbles come apart. */

/* p[0 .. 32) = bf16(even, odd), to even, subnormals to zero as the tiles take them */
TILE void store_bf16(uint16_t *p, vec even, vec odd) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

/* The same of values in order, and what is left of them `after` values further on, in terms of two. */
TILE void store_terms(uint16_t *p, vec low, vec high, size_t terms, size_t after) {
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const vec even = _mm512_permutex2var_ps(low, evens, high);
    const vec odd = _mm512_permutex2var_ps(low, _mm512_or_si512(evens, _mm512_set1_epi32(1)), high);
    store_bf16(p, even, odd);
    if (terms > 1) {
        const uint8_t *first = (const uint8_t *)p;
        store_bf16(p + after, vec_sub(even, vec_load_bf16(first)), vec_sub(odd, vec_load_bf16(first + 2 * L2C_LANES)));
    }
}

/* Sixteen of the n values at p, zeros past them. */
TILE vec load_some(const l2c_type type, const uint8_t *p, size_t at, size_t n) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    return at + L2C_LANES <= n ? load_weights(type, p + at * bytes)
           : at < n            ? load_weights_n(type, p + at * bytes, n - at)
                               : vec_zero();
}

/* Sixteen rows at most, k values of each: B's tiles, STEP_U16 apart; zeros past both. */
static void sixteen_rows(uint16_t *to, const float *x, size_t ldx, size_t m, size_t k) {
    float plain[TILE_SUMS]; /* [16 rows][16 pairs of bf16], which move as floats */
    for (size_t p = 0; p < k; p += TILE_K, to += STEP_U16) {
        for (size_t lane = 0; lane < L2C_LANES; lane++) {
            uint16_t *out = (uint16_t *)(plain + lane * L2C_LANES);
            const float *row = x + (lane < m ? lane : 0) * ldx;
            if (lane < m && p + TILE_K <= k) {
                store_terms(out, vec_load(row + p), vec_load(row + p + L2C_LANES), 1, 0);
            } else {
                const size_t n = lane < m ? k : 0;
                store_terms(out, load_some(L2C_TYPE_F32, (const uint8_t *)row, p, n),
                            load_some(L2C_TYPE_F32, (const uint8_t *)row, p + L2C_LANES, n), 1, 0);
            }
        }
        pack_block((float *)to, L2C_LANES, plain, L2C_LANES);
    }
}

static void rows_to_tiles(uint16_t *to, const float *x, size_t ldx, size_t from, size_t end, size_t k) {
    for (size_t i = from; i < end; i += L2C_LANES) {
        uint16_t *block = to + i / BLOCK * l2c_tile_block(k);
        sixteen_rows(block + i % BLOCK / L2C_LANES * TILE_U16, x + i * ldx, ldx, smaller(L2C_LANES, end - i), k);
    }
}

/* ---- Weights to bf16 ---- */

/* A column is a row of tiles, COLUMN_U16 apart. */

/* n values of a float type, zeros up to a multiple of TILE_K */
TILE void floats_to_bf16(const l2c_type type, uint16_t *out, const uint8_t *w, size_t n, size_t terms) {
    const size_t bytes = type == L2C_TYPE_F32 ? 4 : 2;
    size_t p = 0;
    for (; p + TILE_K <= n; p += TILE_K, out += TILE_K) {
        const uint8_t *from = w + p * bytes;
        if (type == L2C_TYPE_BF16) { /* as they are: the tiles themselves take subnormals for zeros */
            const __m512i order = _mm512_inserti64x4(
                _mm512_castsi256_si512(_mm256_setr_epi16(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)),
                _mm256_setr_epi16(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), 1);
            bvec_store(out, _mm512_permutexvar_epi16(order, bvec_load((const int8_t *)from)));
        } else {
            store_terms(out, load_weights(type, from), load_weights(type, from + L2C_LANES * bytes), terms, TERM_U16);
        }
    }
    if (p < n) {
        store_terms(out, load_some(type, w, p, n), load_some(type, w, p + L2C_LANES, n), terms, TERM_U16);
    }
}

/* Values of a group are few, but those of eight and of six bits: bf16(scale value + min) of all is a table for them. */
TILE bool by_table(const l2c_type type) {
    return type != L2C_TYPE_Q8_0 && type != L2C_TYPE_Q6_K;
}

/* Values that have no place among sixteen. */
TILE bool five_bits(const l2c_type type) {
    return type == L2C_TYPE_Q5_0 || type == L2C_TYPE_Q5_1 || type == L2C_TYPE_Q5_K;
}

/* Unsigned values of eight or six bits become floats as bits of base + value, without a conversion. */
TILE float base_of(const l2c_type type) {
    return by_table(type) ? 0.0f : type == L2C_TYPE_Q8_0 ? 0x1p15f : 0x1p7f;
}

/* The groups of a step in lane order: scale value + min. Where values come with a base, both products are exact. */
typedef struct factors {
    float scales[L2C_LANES], mins[L2C_LANES];
} factors;

TILE void factors_of_step(const l2c_type type, factors *f, const uint8_t *const p[2]) {
    vec mins = vec_zero();
    const vec scales = step_scales(type, p, &mins);
    const float bias = bias_of(type) - (type == L2C_TYPE_Q8_0 ? 128.0f : 0.0f) - base_of(type);
    vec_store(f->scales, scales);
    vec_store(f->mins, has_mins(type) ? mins : vec_mul(scales, vec_set1(bias)));
    IN_MEMORY(*f);
}

/* In lane order: where the factors of sixteen values are, number i of superblock `half` of a step. */
TILE size_t lane_of(const l2c_type type, const size_t half, const size_t i) {
    return is_narrow(type) ? i % 4 * 4 + i / 4 : half * 8 + i / 2 % 2 * 4 + i / 4;
}

TILE vec scaled(const factors *f, const size_t lane, vec values) {
    return vec_fma(values, vec_set1(f->scales[lane]), vec_set1(f->mins[lane]));
}

/* Entries 0 to 15 of one group, then the next sixteen, or those of another. */
TILE __m512i table_of(const l2c_type type, const factors *f, const size_t lane, const size_t other) {
    const vec first = vec_load((const float[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
    const bool iq4 = type == L2C_TYPE_IQ4_NL || type == L2C_TYPE_IQ4_XS;
    const vec values = iq4 ? vec_load((const float[]){L2C_IQ4_VALUES}) : first;
    const vec next = five_bits(type) ? vec_add(first, vec_set1(16.0f)) : values;
    return (__m512i)_mm512_cvtne2ps_pbh(scaled(f, other, next), scaled(f, lane, values));
}

/* Words in the order of a tile, of which bits from `shift` on are those of 32 bytes: even ones, then odd ones. */
TILE __m512i words_of_bytes(const uint8_t *p, const int shift) {
    const __m512i shifts =
        _mm512_inserti64x4(_mm512_set1_epi16((int16_t)shift), _mm256_set1_epi16((int16_t)(shift + 8)), 1);
    return _mm512_srlv_epi16(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p)), shifts);
}

/* The same of sixteen bytes with two values each, the low ones first. */
TILE __m512i words_of_nibbles(const uint8_t *p) {
    const __m512i shifts = _mm512_setr_epi64(0, 0, 0x0004000400040004, 0x0004000400040004, 0x0008000800080008,
                                             0x0008000800080008, 0x000c000c000c000c, 0x000c000c000c000c);
    return _mm512_srlv_epi16(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)), shifts);
}

TILE __m512i one_bit(const __m512i bits, const int place) {
    return _mm512_sllv_epi16(_mm512_and_si512(bits, _mm512_set1_epi16(1)), _mm512_set1_epi16((int16_t)place));
}

/* 32 bits, the one of an even value first */
TILE __m512i fifth_bits(uint32_t bits) {
    const uint32_t even = _pext_u32(bits, 0x55555555), odd = _pext_u32(bits, 0xaaaaaaaa);
    return _mm512_maskz_set1_epi16((__mmask32)(even | odd << 16), 16);
}

/* What a table is looked up with for 32 values, number i of a superblock: words that may have more bits above. */
TILE __m512i indexes(const l2c_type type, const uint8_t *p, const int i) {
    const size_t stride = super_bytes(type) / 8;
    const uint8_t *block = p + (size_t)i * stride; /* of types of 32 */
    const int n = i / 4, shift = i % 4 * 2;
    switch (type) {
    case L2C_TYPE_Q4_0:
    case L2C_TYPE_IQ4_NL: return words_of_nibbles(block + 2);
    case L2C_TYPE_Q4_1: return words_of_nibbles(block + 4);
    case L2C_TYPE_Q5_0:
        return _mm512_ternarylogic_epi32(words_of_nibbles(block + 6), _mm512_set1_epi16(15),
                                         fifth_bits(l2c_u32(block + 2)), 0xea); /* a & b | c */
    case L2C_TYPE_Q5_1:
        return _mm512_ternarylogic_epi32(words_of_nibbles(block + 8), _mm512_set1_epi16(15),
                                         fifth_bits(l2c_u32(block + 4)), 0xea);
    case L2C_TYPE_IQ4_XS: return words_of_nibbles(p + 8 + 16 * i);
    case L2C_TYPE_Q4_K: return words_of_bytes(p + 16 + i / 2 * 32, i % 2 * 4);
    case L2C_TYPE_Q5_K:
        return _mm512_ternarylogic_epi32(words_of_bytes(p + 48 + i / 2 * 32, i % 2 * 4), _mm512_set1_epi16(15),
                                         one_bit(words_of_bytes(p + 16, i), 4), 0xea);
    case L2C_TYPE_Q2_K: return words_of_bytes(p + 16 + 32 * n, shift);
    case L2C_TYPE_Q3_K:
        return _mm512_ternarylogic_epi32(words_of_bytes(p + 32 + 32 * n, shift), _mm512_set1_epi16(3),
                                         one_bit(words_of_bytes(p, i), 2), 0xea);
    default: /* TQ2_0 */ return words_of_bytes(p + 32 * n, shift);
    }
}

/* Sixteen values of 32 that are not looked up, the even or the odd ones, as floats above their base: dwords, whose low bytes
 * are even values, are shifted to where the base has its units. */
TILE vec above_base(const l2c_type type, const uint8_t *p, const int i, const int odd) {
    const __m512i base = (__m512i)vec_set1(base_of(type));
    if (type == L2C_TYPE_Q8_0) {
        const __m512i bytes = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + 34 * i + 2)));
        const __m512i flipped = _mm512_xor_si512(base, _mm512_set1_epi32(0x8000)); /* a sign becomes an excess of 128 */
        return (vec)_mm512_ternarylogic_epi32(odd ? bytes : _mm512_slli_epi32(bytes, 8), _mm512_set1_epi32(0xff00),
                                              flipped, 0x6a); /* a & b ^ c */
    }
    const int n = i / 4, high = i % 4 / 2; /* Q6_K */
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + 64 * n + i % 2 * 32)));
    const __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(p + 128 + 32 * n)));
    const __m512i four = _mm512_slli_epi32(low, (unsigned)(16 - 8 * odd - 4 * high));
    const __m512i two = _mm512_slli_epi32(upper, (unsigned)(20 - 8 * odd - i % 4 * 2));
    const __m512i with_four = _mm512_ternarylogic_epi32(four, _mm512_set1_epi32(0xf0000), base, 0xea);
    return (vec)_mm512_ternarylogic_epi32(two, _mm512_set1_epi32(0x300000), with_four, 0xea);
}

/* 64 values of a superblock, number c, to two tiles */
TILE void chunk_to_bf16(const l2c_type type, uint16_t *out, const uint8_t *p, const factors *f, const size_t half,
                        const int c) {
    const size_t i = 4 * (size_t)c;
    const size_t lanes[4] = {lane_of(type, half, i), lane_of(type, half, i + 1), lane_of(type, half, i + 2),
                             lane_of(type, half, i + 3)};
    if (type == L2C_TYPE_Q8_0) {
        UNROLL for (int t = 0; t < 2; t++) {
            store_bf16(out + t * TILE_K, scaled(f, lanes[2 * t], above_base(type, p, 2 * c + t, 0)),
                       scaled(f, lanes[2 * t], above_base(type, p, 2 * c + t, 1)));
        }
        return;
    }
    if (type == L2C_TYPE_Q6_K) { /* of sixteen even values eight belong to each group */
        UNROLL for (int t = 0; t < 2; t++) {
            const vec scale =
                _mm512_mask_blend_ps(0xff00, vec_set1(f->scales[lanes[2 * t]]), vec_set1(f->scales[lanes[2 * t + 1]]));
            const vec min =
                _mm512_mask_blend_ps(0xff00, vec_set1(f->mins[lanes[2 * t]]), vec_set1(f->mins[lanes[2 * t + 1]]));
            store_bf16(out + t * TILE_K, vec_fma(above_base(type, p, 2 * c + t, 0), scale, min),
                       vec_fma(above_base(type, p, 2 * c + t, 1), scale, min));
        }
        return;
    }
    __m512i low = indexes(type, p, 2 * c), high = indexes(type, p, 2 * c + 1), of_low, of_high;
    const int bits = is_narrow(type) ? type == L2C_TYPE_Q3_K ? 7 : 3 : type == L2C_TYPE_TQ2_0 ? 3 : 15;
    if (is_narrow(type)) { /* two groups of sixteen, even and odd ones of each: the second takes the upper table */
        const __m512i second = _mm512_setr_epi64(0, 0, 0x0010001000100010, 0x0010001000100010, 0, 0, 0x0010001000100010,
                                                 0x0010001000100010);
        low = _mm512_ternarylogic_epi32(low, _mm512_set1_epi16((int16_t)bits), second, 0xea);
        high = _mm512_ternarylogic_epi32(high, _mm512_set1_epi16((int16_t)bits), second, 0xea);
        of_low = table_of(type, f, lanes[0], lanes[1]);
        of_high = table_of(type, f, lanes[2], lanes[3]);
    } else if (five_bits(type)) {
        of_low = table_of(type, f, lanes[0], lanes[0]);
        of_high = table_of(type, f, lanes[2], lanes[2]);
    } else {
        low = _mm512_and_si512(low, _mm512_set1_epi16((int16_t)bits));
        high = _mm512_ternarylogic_epi32(high, _mm512_set1_epi16((int16_t)bits), _mm512_set1_epi16(16), 0xea);
        of_low = of_high = table_of(type, f, lanes[0], lanes[2]);
    }
    bvec_store(out, _mm512_permutexvar_epi16(low, of_low));
    bvec_store(out + TILE_K, _mm512_permutexvar_epi16(high, of_high));
}

/* Two superblocks; `both`: else the second is not wanted. */
TILE void supers_to_bf16(const l2c_type type, uint16_t *out, const uint8_t *const p[2], bool both) {
    const size_t in_step = is_narrow(type) ? 1 : 2;
    factors f;
    factors_of_step(type, &f, (const uint8_t *const[2]){p[0], p[in_step - 1]});
    UNROLL for (int c = 0; c < CHUNKS; c++) chunk_to_bf16(type, out + 2 * c * TILE_K, p[0], &f, 0, c);
    if (both) {
        if (in_step == 1) {
            factors_of_step(type, &f, (const uint8_t *const[2]){p[1], p[1]});
        }
        UNROLL for (int c = 0; c < CHUNKS; c++)
            chunk_to_bf16(type, out + SUPER + 2 * c * TILE_K, p[1], &f, in_step - 1, c);
    }
}

TILE bool is_half(const l2c_type type) {
    return type == L2C_TYPE_F16 || type == L2C_TYPE_BF16;
}

/* Bytes of SUPER values, of types whose kernel does not serve several. */
TILE size_t bytes_of_super(const l2c_type type) {
    return is_half(type) ? 2 * SUPER : super_bytes(type);
}

/* The first n of PIECE_K values of a row that begins with `row`, which are number p of it and those that follow; zeros up to a
 * multiple of TILE_K at least. */
TILE void values_to_bf16(const l2c_type type, uint16_t *out, const l2c_matrix *w, const uint8_t *row, size_t p,
                         size_t n) {
    if (is_half(type)) {
        floats_to_bf16(type, out, row + 2 * p, n, w_terms(type));
    } else if (type == L2C_TYPE_IQ3_S) { /* and TQ1_0: they have no vectors of integers */
        float plain[PIECE_K];
        w->type->dequantize(plain, row + p / w->type->values * w->type->bytes, n / w->type->values);
        floats_to_bf16(L2C_TYPE_F32, out, (const uint8_t *)plain, n, 1);
    } else if (n == PIECE_K) {
        const uint8_t *from = row + p / SUPER * super_bytes(type);
        supers_to_bf16(type, out, (const uint8_t *const[2]){from, from + super_bytes(type)}, true);
    } else {
        uint8_t last[2][MOST_SUPER_BYTES];
        const size_t s = p / SUPER;
        const uint8_t *const supers[2] = {super_at(type, last[0], row, s, w->k),
                                          super_at(type, last[1], row, s + 1, w->k)};
        supers_to_bf16(type, out, supers, n > SUPER);
    }
}

/* ---- Products of tiles: 0 to 3 are the sums, 4 and 5 columns of w, 6 and 7 rows of x ---- */

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

/* ---- A block of columns ---- */

/* Columns of w over a panel of k for a group of rows. Pieces of work, done between the products: first the last block of
 * rows, whose sums are added to y, a tile each; then a share of the next block of columns, which is unpacked. */
typedef struct panel_job panel_job;
struct panel_job {
    void (*unpack_piece)(panel_job *j); /* by type */
    const l2c_matrix *w;
    size_t terms;
    size_t from, depth;  /* of k */
    size_t n;            /* columns */
    size_t unpacking;    /* the first of the columns being unpacked */
    uint16_t *unpacked;  /* [terms][L2C_TILES_K / PIECE_K][32 columns][COLUMN_U16] */
    size_t pieces, done; /* of these columns */
    size_t column, at;   /* the next one: column of the block, k of the panel */
    uint16_t *to;        /* where it goes, and its column of w */
    const uint8_t *row;
    float *y; /* where the sums of the last block of rows go; m and width of it there, 0: none */
    size_t ldy, m, width;
    bool add;
    const float *sums;
};

static size_t columns_unpacked(const panel_job *j) {
    return j->unpacking < j->n ? smaller(BLOCK, j->n - j->unpacking) : 0;
}

static void begin_unpacking(panel_job *j, uint16_t *to, size_t column) {
    j->unpacking = column;
    j->unpacked = j->to = to;
    j->row = j->w->data + column * j->w->row_bytes;
    j->done = j->column = j->at = 0;
    j->pieces = columns_unpacked(j) * ((j->depth + PIECE_K - 1) / PIECE_K);
}

/* Pieces go along the columns of a block first, whose tiles are then whole while they are in the first-level cache. */
TILE void piece_of(const l2c_type type, panel_job *j) {
    const l2c_matrix *w = j->w;
    const uint8_t *row = j->row;
    const size_t p = j->from + j->at, left = w->k - p;
    if (type != L2C_TYPE_IQ3_S) {
        /* the same column's next piece, or the first one of the next block's: so many streams are more than the hardware
         * follows */
        const bool more = j->at + PIECE_K < j->depth;
        const uint8_t *soon = more ? row + (p + PIECE_K) / SUPER * bytes_of_super(type)
                                   : row + BLOCK * w->row_bytes + j->from / SUPER * bytes_of_super(type);
        UNROLL for (size_t b = 0; b < 2 * bytes_of_super(type); b += 64) PREFETCH_L2((const char *)soon + b);
    }
    if (left >= PIECE_K) {
        values_to_bf16(type, j->to, w, row, p, PIECE_K);
    } else {
        values_to_bf16(type, j->to, w, row, p, left);
    }
    j->done++;
    j->to += COLUMN_U16;
    j->row += w->row_bytes;
    if (++j->column == columns_unpacked(j)) {
        j->at += PIECE_K;
        j->to = j->unpacked + j->at / PIECE_K * BLOCK_U16;
        j->row = w->data + j->unpacking * w->row_bytes;
        j->column = 0;
    }
}

#define EACH_TYPE                                                                                                      \
    EACH_INTEGER_TYPE                                                                                                  \
    CASE(L2C_TYPE_F16);                                                                                                \
    CASE(L2C_TYPE_BF16);                                                                                               \
    CASE(L2C_TYPE_IQ3_S);
#define CASE(type)                                                                                                     \
    static void piece_of_##type(panel_job *j) {                                                                        \
        piece_of(type, j);                                                                                             \
    }                                                                                                                  \
    _Static_assert(true, "")
EACH_TYPE
#undef CASE

/* y[16][16] (+)= a tile of sums */
static void add_tile(panel_job *j, size_t tile) {
    const size_t row = tile % 2 * L2C_LANES, column = tile / 2 * L2C_LANES;
    if (row >= j->m || column >= j->width) {
        return;
    }
    const size_t height = smaller(L2C_LANES, j->m - row), width = smaller(L2C_LANES, j->width - column);
    float rows[TILE_SUMS];
    pack_block(rows, L2C_LANES, j->sums + tile * TILE_SUMS, L2C_LANES);
    add_rows(j->y + row * j->ldy + column, j->ldy, rows, height, width, j->add);
}

/* sums[j][i] = sum_k w[j][k] x[k][i] over so many steps of TILE_K, for `rows` rows. With it, the tiles of the last block go
 * to y, and columns are unpacked until `due` are; the lines at y, where the sums will go, are fetched. */
static void block_product(float *sums, const uint16_t *w, const uint16_t *x, size_t steps, panel_job *j, size_t due,
                          const float *y, size_t rows) {
    const bool wide = rows > L2C_LANES;
    const size_t all = j->terms * steps, todo = due - j->done;
    size_t tile = 0, owed = 0;
    zero_sums();
    for (size_t term = j->terms; term-- > 0;) {
        const uint16_t *xp = x;
        for (size_t s = 0; s < steps; s++, xp += STEP_U16) {
            const uint16_t *wp = w + term * TERM_U16 + s / PIECE_STEPS * BLOCK_U16 + s % PIECE_STEPS * TILE_K;
            if (s < rows) {
                __builtin_prefetch(y + s * j->ldy, 1);
                __builtin_prefetch(y + s * j->ldy + L2C_LANES, 1);
            }
            STORED();
            _tile_loadd(4, wp, COLUMN_BYTES);
            _tile_loadd(6, xp, TILE_BYTES);
            _tile_loadd(5, wp + BLOCK_U16 / 2, COLUMN_BYTES);
            if (wide) {
                _tile_loadd(7, xp + TILE_U16, TILE_BYTES);
            }
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(2, 5, 6);
            if (wide) {
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            if (tile < BLOCK_TILES) {
                add_tile(j, tile++);
            }
            for (owed += todo; owed >= all; owed -= all) {
                j->unpack_piece(j);
            }
        }
    }
    for (; tile < BLOCK_TILES; tile++) {
        add_tile(j, tile);
    }
    store_sums(sums);
    STORED();
}

/* y[m][n] (+)= k [j->from, j->from + j->depth) of m rows, at most GROUP_BLOCKS of BLOCK, times j->w */
static void panel_product(panel_job *j, float *y, const uint16_t *x, size_t m, float *scratch) {
    const size_t steps = (j->depth + TILE_K - 1) / TILE_K, blocks = (m + BLOCK - 1) / BLOCK;
    float *sums = scratch;                                      /* of two blocks of rows in turn */
    uint16_t *columns = (uint16_t *)(scratch + 2 * BLOCK_SUMS); /* two blocks of columns in turn */
    begin_unpacking(j, columns, 0);
    while (j->done < j->pieces) {
        j->unpack_piece(j);
    }
    j->m = 0;
    for (size_t c = 0, odd = 0; c < j->n; c += BLOCK) {
        const uint16_t *now = j->unpacked;
        begin_unpacking(j, columns + (c / BLOCK + 1) % 2 * 2 * TERM_U16, c + BLOCK);
        for (size_t i = 0; i < blocks; i++, odd = !odd) {
            float *of_block = sums + odd * BLOCK_SUMS, *to = y + i * BLOCK * j->ldy + c;
            const size_t height = smaller(BLOCK, m - i * BLOCK);
            const uint16_t *rows = x + i * l2c_tile_block(j->w->k) + j->from / TILE_K * STEP_U16;
            block_product(of_block, now, rows, steps, j, j->pieces * (i + 1) / blocks, to, height);
            j->sums = of_block;
            j->y = to;
            j->m = height;
            j->width = smaller(BLOCK, j->n - c);
        }
    }
    for (size_t tile = 0; tile < BLOCK_TILES; tile++) {
        add_tile(j, tile);
    }
}

static void gemm_tiles(float *y, size_t ldy, const uint16_t *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                       float *scratch) {
    panel_job j = {.w = w, .terms = w_terms(w->type->type), .n = n, .ldy = ldy};
#define CASE(type)                                                                                                     \
    case type: j.unpack_piece = piece_of_##type; break
    switch (w->type->type) {
        EACH_TYPE
    default: j.unpack_piece = piece_of_L2C_TYPE_IQ3_S; /* TQ1_0 */
    }
#undef CASE
    _tile_loadconfig(&eight_tiles);
    for (size_t i = 0; i < m; i += GROUP_BLOCKS * BLOCK) {
        for (j.from = 0; j.from < w->k; j.from += L2C_TILES_K) {
            j.depth = smaller(L2C_TILES_K, w->k - j.from);
            j.add = add || j.from;
            panel_product(&j, y + i * ldy, x + i / BLOCK * l2c_tile_block(w->k), smaller(GROUP_BLOCKS * BLOCK, m - i),
                          scratch);
        }
    }
    _tile_release(); /* the system need not save the registers of a thread that does something else */
}

#include "kernels_attention_tiles.h"

/* Of loaded tiles: those that _tile_zero made take the products' unit for nothing while the core's other thread needs it. */
static double probe_tiles(size_t iterations) {
    uint16_t row[TILE_K];
    for (size_t i = 0; i < TILE_K; i++) {
        row[i] = 0x3f80; /* 1 */
    }
    _tile_loadconfig(&eight_tiles);
    zero_sums();
    STORED();
    _tile_loadd(4, row, 0);
    _tile_loadd(5, row, 0);
    _tile_loadd(6, row, 0);
    _tile_loadd(7, row, 0);
    for (size_t n = 0; n < iterations; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)iterations * BLOCK * BLOCK * TILE_K;
}
