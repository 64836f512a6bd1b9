/* checkkernels.c: every kernel at every instruction-set level against the scalar one: same bits for awkward sizes,
 * unaligned rows and guarded ends; with "time", how long each takes. One table drives both.
 *
 *   checkkernels [SEED]         exit 0 if all agree; the seed is printed
 *   checkkernels time [SEED]    nanoseconds by kernel and level */
#include "error.h"
#include "kernels.h"
#include "llama2c.h"
#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* MAX_M: more rows than go without panels at any level, and all tiles of a panel: 8 + 8 + 4 + 2 + 1. DEEP_K: more than one
 * block of a panel of quantised columns. */
enum {
    MAX_M = 23,
    MAX_ROWS = 32, /* as tiles have them */
    MAX_N = 70,
    MAX_K = 700,
    DEEP_K = 2336,
    DEEP_N = 33,
    GUARD = 16,
    ATT_LENGTH = 600,
    ATT_HEADS = 9,
    ATT_DIM = 72
};
enum { BIG = 1 << 17, SUPERS = (DEEP_K / L2C_SUPER + 2) / 2 * 2 };

static const float CANARY = 12345.5f;

static uint64_t seed;

static float uniform(void) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (float)((seed * UINT64_C(0x2545F4914F6CDD1D)) >> 40) / 8388608.0f - 1.0f;
}

/* One case of one kernel: sizes in, floats out. */
typedef struct size_case {
    size_t m, n, k, group, offset;
    bool add;
} size_case;

static float in_x[BIG], in_w[BIG], in_pages[BIG * 2], panel[L2C_PANEL_FLOATS + 16];
static uint8_t in_blocks[BIG * 4];
static float quant_panel[2 * L2C_PANEL_BLOCK + 16];
static float scratch[L2C_ATT_QUERIES * (L2C_KV_CHUNK + 3 * 80 + 4) + 16];
static float attention_parts[(ATT_LENGTH / L2C_KV_CHUNK + 1) * ATT_HEADS * (80 + 2)];
static int8_t in_q[BIG], q_values[MAX_ROWS * SUPERS * L2C_SUPER], turned[MAX_M * SUPERS / 2 * L2C_TURNED];
static int32_t q_bias[MAX_M * 192];
static int16_t s16_values[MAX_M * 3 * L2C_SUPER];
static float s16_scales[MAX_M * 3], s16_sums[MAX_M * 3 * L2C_S16_SUMS];
static float q_scales[MAX_M * 256], of_16[MAX_ROWS * SUPERS * L2C_STEP_LANES],
    of_32[MAX_ROWS * SUPERS / 2 * L2C_STEP_LANES];

static float *aligned(float *p) {
    return (float *)(((uintptr_t)p + 63) / 64 * 64);
}

static l2c_matrix f32_matrix(const size_case *c) {
    return (l2c_matrix){(const uint8_t *)(in_w + c->offset), c->k * sizeof *in_w, c->k, l2c_type_of(L2C_TYPE_F32)};
}

static void run_dot_f32(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = f32_matrix(c);
    k->dot_f32(y, c->n, in_x + c->offset, c->k + 3, &w, c->m, c->n, c->add);
}

static void run_gemm_f32(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = f32_matrix(c);
    k->gemm_f32(y, c->n, in_x + c->offset, c->k + 3, &w, c->m, c->n, c->add, aligned(panel));
}

/* A matrix of random blocks of one type; rows that are no whole blocks are cut. */
static l2c_matrix block_matrix(const l2c_type_info *type, const size_case *c) {
    const size_t blocks = c->k / type->values;
    return (l2c_matrix){in_blocks + c->offset, blocks * type->bytes, blocks * type->values, type};
}

static const l2c_type integer_types[] = {L2C_TYPE_Q4_0,   L2C_TYPE_Q4_1,   L2C_TYPE_Q5_0, L2C_TYPE_Q5_1, L2C_TYPE_Q8_0,
                                         L2C_TYPE_Q2_K,   L2C_TYPE_Q3_K,   L2C_TYPE_Q4_K, L2C_TYPE_Q5_K, L2C_TYPE_Q6_K,
                                         L2C_TYPE_IQ4_NL, L2C_TYPE_IQ4_XS, L2C_TYPE_TQ2_0};
static const l2c_type other_types[] = {L2C_TYPE_F16, L2C_TYPE_BF16, L2C_TYPE_IQ3_S, L2C_TYPE_TQ1_0};

enum {
    INTEGER_TYPES = sizeof integer_types / sizeof *integer_types,
    OTHER_TYPES = sizeof other_types / sizeof *other_types,
};

static size_t turn; /* which type is next */

static l2c_q8_rows q8_rows(const size_case *c) {
    const size_t stride = (c->k + 63) / 64 * 64;
    return (l2c_q8_rows){q_values, q_bias, q_scales, stride, stride / c->group + 2};
}

static l2c_s8_rows byte_rows(const size_case *c) {
    return (l2c_s8_rows){q_values, of_16, of_32, turned, c->m};
}

/* Of few rows: what many are is a matter of levels, and the products' check's. */
static void run_quantize_s8(const l2c_kernels *k, float *y, const size_case *c) {
    enum { FEW = 2 };
    l2c_s8_rows q = byte_rows(c);
    q.rows = FEW;
    for (size_t i = 0; i < c->m && c->k >= 32; i++) {
        k->quantize_s8(&q, i % FEW, in_x + c->offset + i * c->k, c->k / 32 * 32);
        for (size_t j = 0; j < c->n; j++) {
            const size_t lane = i % FEW * L2C_STEP_LANES + j % L2C_STEP_LANES;
            y[i * c->n + j] = (float)q_values[i % FEW * L2C_SUPER + j] + of_16[lane] + of_32[lane];
        }
    }
}

static void dot_quant(const l2c_kernels *k, float *y, const size_case *c, const float *x, const l2c_matrix *w) {
    const l2c_s8_rows q = byte_rows(c);
    for (size_t i = 0; i < c->m; i++) {
        k->quantize_s8(&q, i, x + i * c->k, w->k);
    }
    k->dot_quant(y, c->n, &q, w, c->m, c->n, c->add, aligned(quant_panel));
}

static void run_dot_quant(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = block_matrix(l2c_type_of(integer_types[turn % INTEGER_TYPES]), c);
    dot_quant(k, y, c, in_x + c->offset, &w);
}

/* The greatest values there are, by the greatest activations of long runs of one sign: what a sum must have room for. */
static l2c_matrix greatest_matrix(const size_case *c) {
    static uint8_t blocks[MAX_N * (MAX_K / 32) * 34];
    static const struct {
        l2c_type type;
        size_t scale, min; /* where they lie, f16; equal: there is no min */
    } types[] = {{L2C_TYPE_Q4_0, 0, 0},   {L2C_TYPE_Q4_1, 0, 2},     {L2C_TYPE_Q5_0, 0, 0},     {L2C_TYPE_Q5_1, 0, 2},
                 {L2C_TYPE_Q8_0, 0, 0},   {L2C_TYPE_Q2_K, 80, 82},   {L2C_TYPE_Q3_K, 108, 108}, {L2C_TYPE_Q4_K, 0, 2},
                 {L2C_TYPE_Q5_K, 0, 2},   {L2C_TYPE_Q6_K, 208, 208}, {L2C_TYPE_IQ4_NL, 0, 0},   {L2C_TYPE_IQ4_XS, 0, 0},
                 {L2C_TYPE_TQ2_0, 64, 64}};
    const size_t t = turn % (sizeof types / sizeof *types);
    const l2c_type_info *type = l2c_type_of(types[t].type);
    const l2c_matrix w = {blocks, c->k / type->values * type->bytes, c->k / type->values * type->values, type};
    memset(blocks, types[t].type == L2C_TYPE_Q8_0 ? 0x80 : 0xff, sizeof blocks);
    for (size_t at = 0; at + type->bytes <= c->n * w.row_bytes; at += type->bytes) {
        memcpy(blocks + at + types[t].min, (const uint8_t[]){0, 0x2c}, 2);
        memcpy(blocks + at + types[t].scale, (const uint8_t[]){0, 0x3c}, 2);
    }
    return w;
}

static const float *greatest_x(void) {
    static float x[BIG];
    for (size_t i = 0; x[0] == 0.0f && i < BIG; i++) {
        x[BIG - 1 - i] = (BIG - 1 - i) / 350 % 2 ? -1.0f : 1.0f;
    }
    return x;
}

static void run_dot_greatest(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = greatest_matrix(c);
    dot_quant(k, y, c, greatest_x(), &w);
}

static l2c_s16_rows word_rows(const size_case *c) {
    return (l2c_s16_rows){s16_values, s16_scales, s16_sums, c->m};
}

static void run_quantize_s16(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_s16_rows q = word_rows(c);
    for (size_t i = 0; i < c->m; i++) {
        k->quantize_s16(&q, i, in_x + c->offset + i * c->k, c->k / 32 * 32);
    }
    for (size_t i = 0; i < c->m && c->k >= 32; i++) {
        for (size_t j = 0; j < c->n; j++) {
            y[i * c->n + j] =
                (float)s16_values[i * L2C_SUPER + j] + s16_sums[i * L2C_S16_SUMS + j % L2C_S16_SUMS] + s16_scales[i];
        }
    }
}

static void gemm_quant(const l2c_kernels *k, float *y, const size_case *c, const float *x, const l2c_matrix *w) {
    const l2c_s16_rows q = word_rows(c);
    for (size_t i = 0; i < c->m; i++) {
        l2c_kernels_scalar.quantize_s16(&q, i, x + i * c->k, w->k);
    }
    k->gemm_quant(y, c->n, &q, w, c->m, c->n, c->add, aligned(panel));
}

static void run_gemm_quant(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = block_matrix(l2c_type_of(integer_types[turn % INTEGER_TYPES]), c);
    gemm_quant(k, y, c, in_x + c->offset, &w);
}

static void run_gemm_greatest(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = greatest_matrix(c);
    gemm_quant(k, y, c, greatest_x(), &w);
}

static void run_gemm_blocks(const l2c_kernels *k, float *y, const size_case *c) {
    const size_t number = turn % (INTEGER_TYPES + OTHER_TYPES);
    const l2c_type type = number < INTEGER_TYPES ? integer_types[number] : other_types[number - INTEGER_TYPES];
    const l2c_matrix w = block_matrix(l2c_type_of(type), c);
    k->gemm_f32(y, c->n, in_x + c->offset, c->k + 3, &w, c->m, c->n, c->add, aligned(panel));
}

static void run_dot_halves(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_matrix w = block_matrix(l2c_type_of(other_types[turn % 2]), c);
    k->dot_f32(y, c->n, in_x + c->offset, c->k + 3, &w, c->m, c->n, c->add);
}

static void run_quantize_q8(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_q8_rows q = q8_rows(c);
    for (size_t i = 0; i < c->m; i++) {
        k->quantize_q8(&q, i, in_x + c->offset + i * c->k, c->k, c->group);
    }
    for (size_t i = 0; i < c->m; i++) {
        for (size_t j = 0; j < c->n && j < c->k; j++) {
            y[i * c->n + j] = (float)q_values[i * q.stride + j] + (float)q_bias[(i * q.stride + j) / 4] +
                              q_scales[i * q.scale_stride + j / c->group];
        }
    }
}

static void run_dot_q8(const l2c_kernels *k, float *y, const size_case *c) {
    const l2c_q8_rows q = q8_rows(c);
    const l2c_q8_matrix w = {in_q, in_w, c->k, c->group};
    for (size_t i = 0; i < c->m; i++) {
        l2c_kernels_scalar.quantize_q8(&q, i, in_x + c->offset + i * c->k, c->k, c->group);
    }
    const size_t from = c->n > 5 ? 3 : 0;
    k->dot_q8(y, c->n, &q, &w, from, c->m, c->n - from, c->add);
}

static void run_rmsnorm(const l2c_kernels *k, float *y, const size_case *c) {
    k->rmsnorm(y, in_x + c->offset, in_w + c->offset, c->n, 1e-5f);
}

static void run_rope(const l2c_kernels *k, float *y, const size_case *c) {
    const size_t head_dim = c->n / 2 * 2;
    memcpy(y, in_x + c->offset, c->m * head_dim * sizeof *y);
    k->rope(y, in_w + c->offset, c->m, head_dim); /* any factors will do */
}

static void run_swiglu(const l2c_kernels *k, float *y, const size_case *c) {
    for (size_t i = 0; i < c->n; i++) {
        y[i] = 30 * in_x[i + c->offset] * in_x[i + c->offset] * in_x[i];
    }
    k->swiglu(y, in_w + c->offset, c->n);
}

static void run_softmax(const l2c_kernels *k, float *y, const size_case *c) {
    for (size_t i = 0; i < c->n; i++) {
        y[i] = 40 * in_x[i + c->offset];
    }
    k->softmax(y, c->n, c->add ? 1.25f : 1.0f);
}

static void run_argmax(const l2c_kernels *k, float *y, const size_case *c) {
    y[0] = c->n ? (float)k->argmax(in_x + c->offset, c->n) : 0;
}

static void run_attend(const l2c_kernels *k, float *y, const size_case *c) {
    static const l2c_kv_type types[] = {L2C_KV_F32, L2C_KV_F16, L2C_KV_Q8};
    static const size_t bytes[] = {4, 2, 1}, windows[] = {0, 0, 1, 40, 300};
    if (turn % 7) { /* its sizes cost more than all others together */
        return;
    }
    const size_t head_dim = c->k < ATT_DIM ? c->k / 2 * 2 + 2 : ATT_DIM, stride = (head_dim + 15) / 16 * 16;
    const size_t heads = c->m < ATT_HEADS ? c->m : ATT_HEADS, most = l2c_attention_rows(heads, false);
    const size_t rows = turn % 4 < most ? turn % 4 + 1 : most, length = c->n * 9 % ATT_LENGTH + 1;
    l2c_kv_layout layout = {.type = types[turn % 3], .head_dim = head_dim, .value_stride = stride};
    layout.values = 16 * head_dim * bytes[turn % 3];
    layout.scales = layout.values + 16 * stride * bytes[turn % 3];
    layout.block = layout.scales + 128;
    layout.page = L2C_KV_PAGE / L2C_KV_BLOCK * layout.block;
    uint8_t *pages[(ATT_LENGTH + 4) / L2C_KV_PAGE + 1];
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        pages[i] = (uint8_t *)in_pages + c->offset + i * layout.page;
    }
    for (size_t t = 0; t < length + rows - 1; t++) {
        uint8_t *block = pages[t / L2C_KV_PAGE] + t % L2C_KV_PAGE / L2C_KV_BLOCK * layout.block;
        k->store_kv(block, &layout, t % L2C_KV_BLOCK, in_w + t * 7, in_x + t * 11);
    }
    const l2c_attention a = {
        .out = y,
        .q = in_x + c->offset,
        .rows = rows,
        .row_stride = heads * head_dim + 3,
        .heads = heads,
        .layout = &layout,
        .pages = pages,
        .length = length,
        .window = windows[turn % 5],
        .scale = 0.3f,
        .scratch = aligned(scratch),
    };
    if (rows > 1 || turn % 2) {
        k->attend(&a);
        return;
    }
    const l2c_chunks chunks = l2c_attention_chunks(length, a.window);
    const size_t floats = l2c_attention_part(heads, stride);
    for (size_t chunk = chunks.to; chunk-- > chunks.from;) { /* in any order */
        k->attend_part(&a, chunk, attention_parts + (chunk - chunks.from) * floats);
    }
    k->attend_join(&a, attention_parts);
}

typedef void run_kernel(const l2c_kernels *kernels, float *y, const size_case *size);

static const struct {
    const char *name;
    run_kernel *run;
    bool words; /* of levels that have gemm_quant */
} checks[] = {
    {"dot_f32", run_dot_f32, false},
    {"gemm_f32", run_gemm_f32, false},
    {"quantize_q8", run_quantize_q8, false},
    {"dot_q8", run_dot_q8, false},
    {"rmsnorm", run_rmsnorm, false},
    {"rope", run_rope, false},
    {"swiglu", run_swiglu, false},
    {"softmax", run_softmax, false},
    {"argmax", run_argmax, false},
    {"attend", run_attend, false},
    {"dot_quant", run_dot_quant, false},
    {"dot_greatest", run_dot_greatest, false},
    {"quantize_s8", run_quantize_s8, false},
    {"gemm_blocks", run_gemm_blocks, false},
    {"dot_halves", run_dot_halves, false},
    {"gemm_quant", run_gemm_quant, true},
    {"gemm_greatest", run_gemm_greatest, true},
    {"quantize_s16", run_quantize_s16, true},
};

enum { CHECKS = sizeof checks / sizeof *checks };

static void fill(void) {
    for (size_t i = 0; i < BIG; i++) {
        in_x[i] = uniform();
        in_w[i] = uniform();
        in_q[i] = (int8_t)(uniform() * 128.0f);
    }
    for (size_t i = 0; i < 2 * BIG; i++) {
        in_pages[i] = uniform();
    }
    in_q[1] = -128;
    /* any bits are blocks, but f16 and bf16 scales shall be finite: no exponent of ones */
    for (size_t i = 0; i < sizeof in_blocks; i++) {
        in_blocks[i] = (uint8_t)((uint8_t)(int8_t)(uniform() * 128.0f) & 0xbb);
    }
}

enum { OUT = MAX_M * MAX_K + GUARD };

static void run_guarded(run_kernel *run, const l2c_kernels *kernels, float out[OUT], const size_case *c) {
    static float untouched[OUT];
    for (size_t i = 0; untouched[OUT - 1] != CANARY && i < OUT; i++) {
        untouched[i] = i < OUT - GUARD ? 0.5f : CANARY;
    }
    memcpy(out, untouched, sizeof untouched);
    run(kernels, out, c);
}

/* A level, and what was found. */
typedef struct checked {
    const l2c_kernels *kernels;
    size_t failures;
    bool told; /* of these m and n one line is enough */
} checked;

/* Whether kernel i gives the same bits as the scalar one at each level; prints the first that differ. */
static void check_case(size_t i, checked *levels, const size_case *c, uint64_t start) {
    static float expected[OUT], got[OUT];
    run_guarded(checks[i].run, &l2c_kernels_scalar, expected, c);
    for (checked *level = levels; level->kernels; level++) {
        if (level->told || (checks[i].words && !level->kernels->gemm_quant)) {
            continue;
        }
        run_guarded(checks[i].run, level->kernels, got, c);
        if (memcmp(expected, got, sizeof got) == 0) {
            continue;
        }
        size_t at = 0;
        while (memcmp(&expected[at], &got[at], sizeof *got) == 0) {
            at++;
        }
        printf(
            "%s at %s: m %zu n %zu k %zu group %zu offset %zu add %d turn %zu seed %llu: [%zu] is %.9g, scalar %.9g\n",
            checks[i].name, level->kernels->name, c->m, c->n, c->k, c->group, c->offset, c->add, turn,
            (unsigned long long)start, at, (double)got[at], (double)expected[at]);
        level->failures++;
        level->told = true;
    }
}

static void all_to_be_told(checked *levels) {
    for (checked *level = levels; level->kernels; level++) {
        level->told = false;
    }
}

static void check(checked *levels, uint64_t start) {
    static const size_t ms[] = {1, 2, 3, 4, 5, 6, 8, 16, 22, MAX_M},
                        ns[] = {0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 48, MAX_N};
    static const size_t ks[] = {4, 8, 12, 16, 20, 32, 48, 60, 64, 96, 128, 160, 172, 256, 260, 512, MAX_K};
    static const size_t groups[] = {64, 32, 128, 4, 16, 20}, deep_ms[] = {1, 2, 5, 8, MAX_M};
    size_t number = 0;
    for (size_t i = 0; i < CHECKS; i++) {
        for (size_t m = 0; m < sizeof ms / sizeof *ms; m++) {
            for (size_t n = 0; n < sizeof ns / sizeof *ns; n++) {
                all_to_be_told(levels);
                for (size_t k = 0; k < sizeof ks / sizeof *ks; k++, number++) {
                    turn = number;
                    check_case(i, levels, &(size_case){ms[m], ns[n], ks[k], groups[number % 6], number % 3, number % 2},
                               start);
                }
            }
        }
        for (turn = 0; checks[i].run == run_dot_quant && turn < INTEGER_TYPES; turn++) {
            all_to_be_told(levels);
            for (size_t m = 0; m < sizeof deep_ms / sizeof *deep_ms; m++) {
                check_case(i, levels, &(size_case){deep_ms[m], DEEP_N, DEEP_K, 64, 1, m % 2}, start);
            }
        }
    }
}

static void time_all(void) {
    static float out[OUT];
    turn = 7; /* Q4_K */
    const size_case sizes[] = {{1, 64, 512, 64, 0, false}, {8, 64, 512, 64, 0, false}, {12, 64, 512, 32, 0, false}};
    printf("%-12s %-22s", "ns", "m n k group");
    for (size_t level = 0; l2c_isa_name(level); level++) {
        printf(" %12s", l2c_isa_name(level));
    }
    printf("\n");
    for (size_t i = 0; i < CHECKS; i++) {
        for (size_t s = 0; s < 3; s++) {
            const size_case *c = &sizes[s];
            printf("%-12s %3zu %4zu %5zu %4zu   ", checks[i].name, c->m, c->n, c->k, c->group);
            for (size_t level = 0; l2c_isa_name(level); level++) {
                const l2c_kernels *kernels = l2c_kernels_get(l2c_isa_name(level));
                double best = 1e9;
                if (checks[i].words && !kernels->gemm_quant) {
                    printf(" %12s", "-");
                    continue;
                }
                for (int round = 0; round < 5; round++) {
                    const double start = l2c_seconds();
                    for (int n = 0; n < 50; n++) {
                        checks[i].run(kernels, out, c);
                    }
                    const double each = (l2c_seconds() - start) / 50;
                    best = each < best ? each : best;
                }
                printf(" %12.0f", best * 1e9);
            }
            printf("\n");
        }
    }
}

int main(int argc, char **argv) {
    const bool timing = argc > 1 && strcmp(argv[1], "time") == 0;
    const char *given = argc > 1 + timing ? argv[1 + timing] : NULL;
    const uint64_t start = given ? strtoull(given, NULL, 10) : (uint64_t)(l2c_seconds() * 1e9) | 1;
    size_t failures = 0;
    seed = start ? start : 1;
    fill();
    if (timing) {
        time_all();
        return 0;
    }
    checked levels[16] = {{0}};
    for (size_t i = 0; i + 1 < sizeof levels / sizeof *levels && l2c_isa_name(i); i++) {
        levels[i].kernels = l2c_kernels_get(l2c_isa_name(i));
    }
    check(levels, start);
    for (const checked *level = levels; level->kernels; level++) {
        printf("%s: %s (seed %llu)\n", level->kernels->name, level->failures ? "DIFFERS" : "same bits",
               (unsigned long long)start);
        failures += level->failures;
    }
    return failures ? 1 : 0;
}
