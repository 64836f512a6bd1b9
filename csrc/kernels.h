/* kernels.h: the arithmetic of one instruction-set level as a table of functions.
 *
 * Kernels work on ranges of rows and columns; they know neither threads nor models. All levels share one text,
 * kernels_template.h, over sixteen f32 lanes, and so give the same bits: every sum has one order, every multiply-add is
 * fused, and no level may contract or reassociate. Only tiles (gemm_tiles, attend_tiles) give bits of their own, and a level
 * may take prompt rows by a product that others do not (takes_words). Names: m rows of x, n rows of W (columns of y), k
 * their length. */
#ifndef L2C_KERNELS_H
#define L2C_KERNELS_H

#include "quant.h"

enum {
    L2C_LANES = 16,     /* f32 lanes of a vector at every level */
    L2C_KV_BLOCK = 16,  /* positions whose keys lie side by side */
    L2C_KV_PAGE = 64,   /* positions in a page: the unit of allocation */
    L2C_KV_CHUNK = 256, /* positions reduced at once; fixed, so that a sum never depends on who shares the work */
    L2C_PANEL_K = 256,  /* k of a packed panel: prompt rows are summed in blocks of so many products */
    L2C_PANEL_N = 32,   /* most columns a panel has at any level */
    L2C_PANEL_FLOATS = 2 * L2C_PANEL_K * L2C_PANEL_N, /* the panel, and before it its weights as f32 */
    L2C_Q8_CHUNK = 64,  /* int8 values in one vector; quantised rows are padded to it with zeros */
    L2C_SUPER = 256,    /* values that a product with GGUF's quantised types takes at a time */
    L2C_S16_MAX = 2047, /* of an activation's magnitude: times weights of 128 * 32, over L2C_SUPER, it fits 31 bits */
    L2C_S16_SUMS = 24,
    L2C_STEP_LANES = 48, /* floats that such a product needs of its activations beside the values, for sixteen groups */
    L2C_TURNED = 6 * L2C_SUPER, /* two superblocks, in all ways of kernels_turned.h */
    L2C_FEW = 23,               /* rows that are not taken by panels are less at every level */
    L2C_PANEL_SUPERS = 8,       /* superblocks that a block of a panel has */
    L2C_PANEL_BLOCK = L2C_PANEL_SUPERS * (L2C_SUPER / 4 + 2 * L2C_LANES) * L2C_PANEL_N +
        L2C_LANES * L2C_LANES,       /* floats: values, scales, mins, a line after each lane */
    L2C_TILE_ROWS = 32,              /* rows that lie together for a product by tiles */
    L2C_TILES_K = 2048,              /* k that it sums in one go */
    L2C_TILES_PIECE = 2 * L2C_SUPER, /* k of a column that lie together, and a gap after them */
    L2C_TILES_GAP = 32,
    L2C_TILES_FLOATS = 2 * (L2C_TILES_K / L2C_TILES_PIECE * (L2C_TILES_PIECE + L2C_TILES_GAP) * L2C_TILE_ROWS +
                            L2C_TILE_ROWS * L2C_TILE_ROWS), /* scratch of it */
};

static inline size_t l2c_round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* m rows of activations, int8 with one scale for each group of `group` values counted from the row's start. */
typedef struct l2c_q8_rows {
    int8_t *values; /* [m][stride] */
    int32_t *bias;  /* [m][stride / 4]: -128 * the sum of four values, what VNNI's unsigned weights add too much */
    float *scales;  /* [m][scale_stride] */
    size_t stride;  /* k rounded up to L2C_Q8_CHUNK */
    size_t scale_stride;
} l2c_q8_rows;

/* Activations for GGUF's integer types, [k / L2C_SUPER, rounded up][rows]: rows side by side, whatever k, share no cache
 * set, and lie where constants tell.
 *
 * Of generated rows: int8 with a scale for each 32 values; an even number of superblocks, the last may be zeros. Of
 * sixteen groups of values, each in the lane order of kernels_quant.h: their scales; their sums, scaled; the same as int32,
 * times -128. */
typedef struct l2c_s8_rows {
    int8_t *values; /* [...][rows][L2C_SUPER] */
    float *of_16;   /* [...][rows][L2C_STEP_LANES]: of groups of 16 values, those of a superblock */
    float *of_32;   /* [... / 2][rows][L2C_STEP_LANES]: of 32, those of two superblocks */
    int8_t *turned; /* [... / 2][rows][L2C_TURNED]: of less than L2C_FEW rows the values of two superblocks once more */
    size_t rows;    /* many lie in an order of the level's own, in the room of a multiple of L2C_LANES */
} l2c_s8_rows;

/* Of prompt rows: int16 with a scale for each L2C_SUPER values. */
typedef struct l2c_s16_rows {
    int16_t *values; /* [...][rows][L2C_SUPER] */
    float *scales;   /* [...][rows] */
    float *sums;     /* [...][rows][L2C_S16_SUMS]: of 16 values each, then of 32 values each; not scaled */
    size_t rows;
} l2c_s16_rows;

/* Columns of a matrix in rows of blocks. */
typedef struct l2c_matrix {
    const uint8_t *data; /* [columns][row_bytes] */
    size_t row_bytes, k;
    const l2c_type_info *type;
} l2c_matrix;

/* Columns [from, ...) of an int8 matrix whose groups run over the flattened tensor. */
typedef struct l2c_q8_matrix {
    const int8_t *values; /* [rows][k] */
    const float *scales;  /* [rows * k / group] */
    size_t k, group;
} l2c_q8_matrix;

typedef enum l2c_kv_type { L2C_KV_F32, L2C_KV_F16, L2C_KV_Q8 } l2c_kv_type;

/* Where keys and values lie: pages of L2C_KV_PAGE positions [layer][KV head][block of L2C_KV_BLOCK]. A block holds keys
 * [head_dim][L2C_KV_BLOCK], then values [L2C_KV_BLOCK][value_stride], and for Q8, whose elements are int8, the f32 scales
 * of its keys [L2C_KV_BLOCK] and of its values [L2C_KV_BLOCK]. */
typedef struct l2c_kv_layout {
    l2c_kv_type type;
    size_t head_dim, value_stride;   /* elements; value_stride: head_dim rounded up to L2C_LANES */
    size_t values, scales;           /* bytes before them in a block */
    size_t block, head, layer, page; /* bytes */
} l2c_kv_layout;

/* Rows of one sequence, each one position after the other, against the keys and values of one KV head. */
typedef struct l2c_attention {
    float *out;     /* [rows][row_stride], of each row [heads][head_dim] */
    const float *q; /* [rows][row_stride], of each row [heads][head_dim]: the query heads that share this KV head */
    size_t rows, row_stride, heads; /* rows: at most l2c_attention_rows */
    const l2c_kv_layout *layout;
    uint8_t *const *pages;
    size_t offset;  /* bytes in a page before this layer and head */
    size_t length;  /* positions that the first row sees, its own the last, at least 1; the next row sees one more */
    size_t window;  /* the most positions that a row sees, its own the last; 0: all */
    float scale;    /* 1 / sqrt(head_dim) */
    float *scratch; /* [l2c_attention_scratch floats, or l2c_attention_tiles_scratch, 64-byte aligned] */
} l2c_attention;

enum {
    L2C_ATT_QUERIES = 64,       /* of one call: their scores of a chunk stay in the cache */
    L2C_ATT_TILE_QUERIES = 256, /* of one by tiles: what it makes of a chunk's keys and values pays by then */
};

/* Rows that one call takes at most. */
static inline size_t l2c_attention_rows(size_t heads, bool tiles) {
    const size_t queries = tiles ? L2C_ATT_TILE_QUERIES : L2C_ATT_QUERIES;
    return heads < queries ? queries / heads : 1;
}

static inline size_t l2c_attention_scratch(size_t heads, size_t value_stride) {
    return l2c_attention_rows(heads, false) * heads * (L2C_KV_CHUNK + 3 * value_stride + 4);
}

/* Queries and their means; keys and values of a chunk; of a block of queries scores, weights and means. */
static inline size_t l2c_attention_tiles_scratch(size_t heads, size_t head_dim) {
    const size_t queries = l2c_round_up(l2c_attention_rows(heads, true) * heads, 32), dim = l2c_round_up(head_dim, 32);
    const size_t terms = dim / 32 * 33; /* of a query, a key or a value, and the gaps between them */
    return queries * (terms + dim + 2) + 2 * L2C_KV_CHUNK * terms +
           32 * (L2C_KV_CHUNK + L2C_LANES + L2C_KV_CHUNK / 32 * 33 + dim + 2);
}

/* The first position that a row of `length` positions sees. */
static inline size_t l2c_window_start(size_t length, size_t window) {
    return window && length > window ? length - window : 0;
}

/* The chunks that such a row sees. */
typedef struct l2c_chunks {
    size_t from, to;
} l2c_chunks;

static inline l2c_chunks l2c_attention_chunks(size_t length, size_t window) {
    return (l2c_chunks){l2c_window_start(length, window) / L2C_KV_CHUNK, (length + L2C_KV_CHUNK - 1) / L2C_KV_CHUNK};
}

/* Floats of what a row's chunk gives: means [heads][value_stride], highest scores and sums of weights [heads]. */
static inline size_t l2c_attention_part(size_t heads, size_t value_stride) {
    return heads * (value_stride + 2);
}

/* Floats of a panel of L2C_PANEL_N columns: their values as bytes, scales and mins. */
static inline size_t l2c_quant_panel(size_t k) {
    return (k + L2C_PANEL_SUPERS * L2C_SUPER - 1) / (L2C_PANEL_SUPERS * L2C_SUPER) * L2C_PANEL_BLOCK;
}

/* bf16 of L2C_TILE_ROWS rows as a product by tiles takes them: [k / 32, rounded up][2][16 pairs of k][16 rows][2]. */
static inline size_t l2c_tile_block(size_t k) {
    return (k + 31) / 32 * 32 * L2C_TILE_ROWS;
}

typedef struct l2c_kernels {
    const char *name;

    /* y[m][n] = (add ? y[m][n] : 0) + sum_k x[m][k] w[n][k], w of F32, F16 or BF16. Generated rows: 32 partial sums, by
     * k mod 32. */
    void (*dot_f32)(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                    bool add);
    /* The same product for prompt rows, w of any type but Q8_GROUP: one chain of multiply-adds for each L2C_PANEL_K, the
     * chains added in order. panel: L2C_PANEL_FLOATS of scratch, 64-byte aligned. */
    void (*gemm_f32)(float *y, size_t ldy, const float *x, size_t ldx, const l2c_matrix *w, size_t m, size_t n,
                     bool add, float *panel);
    /* NULL, or the level's own product for prompt rows, w of any type but F32 and Q8_GROUP, in place of the others: x in
     * blocks of L2C_TILE_ROWS rows, l2c_tile_block(k) apart. scratch: L2C_TILES_FLOATS, 64-byte aligned. */
    void (*gemm_tiles)(float *y, size_t ldy, const uint16_t *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                       float *scratch);
    /* Rows [from, end) of x as it takes them; from is a multiple of 16. */
    void (*rows_to_tiles)(uint16_t *to, const float *x, size_t ldx, size_t from, size_t end, size_t k);
    /* The same product over int8, rows of any role: columns [from, from + n) of w into y[m][0 .. n). Sums of four
     * products are exact integers; each is scaled and added to one of 32 partial sums, by k / 4 mod 32. */
    void (*dot_q8)(float *y, size_t ldy, const l2c_q8_rows *x, const l2c_q8_matrix *w, size_t from, size_t m, size_t n,
                   bool add);
    /* Row `row` of q = round(x / scale), scale = max|x| / 127 in each group. */
    void (*quantize_q8)(const l2c_q8_rows *q, size_t row, const float *x, size_t k, size_t group);
    /* The product with GGUF's integer types (kernels_quant.h) for generated rows, and for prompt rows where none of the
     * products above and below is the level's; the activations for it. panel: l2c_quant_panel(k) floats of scratch, 64-byte
     * aligned. */
    void (*dot_quant)(float *y, size_t ldy, const l2c_s8_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                      float *panel);
    void (*quantize_s8)(const l2c_s8_rows *q, size_t row, const float *x, size_t k);
    /* NULL, or the same product for prompt rows (kernels_prompt.h), from activations of 12 bits. panel: L2C_PANEL_FLOATS
     * of scratch, 64-byte aligned. takes_words: the level takes prompt rows so; scalar has it for others to be compared. */
    bool takes_words;
    void (*gemm_quant)(float *y, size_t ldy, const l2c_s16_rows *x, const l2c_matrix *w, size_t m, size_t n, bool add,
                       float *panel);
    void (*quantize_s16)(const l2c_s16_rows *q, size_t row, const float *x, size_t k);

    void (*rmsnorm)(float *y, const float *x, const float *weight, size_t n, float eps); /* weight x / rms(x) */
    /* Rotates pairs (2i, 2i + 1) of each head by angle i. angles: [head_dim] cos of each, twice; [head_dim] -sin, sin. */
    void (*rope)(float *x, const float *angles, size_t heads, size_t head_dim);
    void (*swiglu)(float *gate, const float *up, size_t n); /* gate = gate sigmoid(gate) up */
    void (*softmax)(float *x, size_t n, float factor);      /* x = softmax(factor x) */
    size_t (*argmax)(const float *x, size_t n);             /* the first of equals */
    /* k and v [head_dim] become position t of a block. */
    void (*store_kv)(uint8_t *block, const l2c_kv_layout *layout, size_t t, const float *k, const float *v);
    /* out = softmax(scale q k^T) v */
    void (*attend)(const l2c_attention *attention);
    /* The same bits for one row in parts: of each chunk l2c_attention_part floats, then all of them joined, in order. */
    void (*attend_part)(const l2c_attention *attention, size_t chunk, float *part);
    void (*attend_join)(const l2c_attention *attention, float *parts);
    /* NULL without gemm_tiles; attend for prompt rows, over keys and values below f32, with bits of its own. */
    void (*attend_tiles)(const l2c_attention *attention);

    /* Limits of the level, for benchmarks: a sum over all bytes (so that nothing is left out); n x 16 chains of
     * multiply-adds, returning the multiply-adds done. */
    double (*probe_read)(const float *x, size_t n);
    double (*probe_fma)(float *sink, size_t iterations); /* sink: [64] different values */
    double (*probe_tiles)(size_t iterations);            /* NULL without gemm_tiles; the multiply-adds done */
} l2c_kernels;

extern const l2c_kernels l2c_kernels_scalar;
#ifdef L2C_HAVE_AVX2
extern const l2c_kernels l2c_kernels_avx2;
#endif
#ifdef L2C_HAVE_AVXVNNI
extern const l2c_kernels l2c_kernels_avxvnni;
#endif
#ifdef L2C_HAVE_AVX512
extern const l2c_kernels l2c_kernels_avx512;
#endif
#ifdef L2C_HAVE_AVX512VNNI
extern const l2c_kernels l2c_kernels_avx512vnni;
#endif
#ifdef L2C_HAVE_AMX
extern const l2c_kernels l2c_kernels_amx;
#endif
#ifdef L2C_HAVE_NEON
extern const l2c_kernels l2c_kernels_neon;
#endif
#ifdef L2C_HAVE_DOTPROD
extern const l2c_kernels l2c_kernels_dotprod;
#endif

/* cpu.c: the runnable level of that name, the best one for NULL; NULL when there is none. */
const l2c_kernels *l2c_kernels_get(const char *name);
/* The same with an error that lists the levels. */
struct l2c_error;
int l2c_kernels_select(const l2c_kernels **out, const char *name, struct l2c_error *error);

#endif
