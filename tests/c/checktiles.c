/* checktiles.c: products by tiles (gemm_tiles) at every level that has them, against sums in double, and attention by them
 * against attention in f32: near enough for awkward sizes and all types, in bits that depend on a row and a column alone.
 * With `build.py --emulate amx` on any
 * machine with AVX-512 VNNI; then also that the emulation refuses what a processor would.
 *
 *   checktiles [SEED]    exit 0 if all is well; the seed is printed */
#include "kernels.h"
#include "llama2c.h"
#include "platform.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef L2C_EMULATE_AMX
#include "emulate_amx.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { MAX_K = L2C_TILES_K + 2 * 256, GAP = 3, GUARD = 16, SUPER = 256 };

static const float CANARY = 12345.5f;

static uint64_t seed;
static size_t failures, products, attentions;

static float uniform(void) {
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (float)((seed * UINT64_C(0x2545F4914F6CDD1D)) >> 40) / 8388608.0f - 1.0f;
}

static const l2c_type types[] = {
    L2C_TYPE_F16,    L2C_TYPE_BF16,   L2C_TYPE_Q4_0,  L2C_TYPE_Q4_1,  L2C_TYPE_Q5_0,  L2C_TYPE_Q5_1,
    L2C_TYPE_Q8_0,   L2C_TYPE_Q2_K,   L2C_TYPE_Q3_K,  L2C_TYPE_Q4_K,  L2C_TYPE_Q5_K,  L2C_TYPE_Q6_K,
    L2C_TYPE_IQ4_NL, L2C_TYPE_IQ4_XS, L2C_TYPE_TQ2_0, L2C_TYPE_IQ3_S, L2C_TYPE_TQ1_0,
};
enum { TYPES = sizeof types / sizeof *types };

/* One product y[m][n] = before + x w^T. Rows of x and y have GAP floats between them. */
typedef struct problem {
    const l2c_type_info *type;
    size_t m, n, k;
    float *x, *before;
    uint8_t *w;
    size_t row_bytes;
} problem;

static void *grab(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) {
        exit(2);
    }
    return p;
}

static problem make(l2c_type type, size_t m, size_t n, size_t k) {
    problem p = {l2c_type_of(type), m, n, k, NULL, NULL, NULL, 0};
    p.row_bytes = k / p.type->values * p.type->bytes;
    p.x = grab(m * (k + GAP) * sizeof *p.x);
    p.before = grab((m * (n + GAP) + GUARD) * sizeof *p.before);
    p.w = grab(n * p.row_bytes);
    for (size_t i = 0; i < m * (k + GAP); i++) {
        p.x[i] = uniform();
    }
    for (size_t i = 0; i < m * (n + GAP) + GUARD; i++) {
        p.before[i] = i % (n + GAP) < n && i < m * (n + GAP) ? uniform() : CANARY;
    }
    for (size_t i = 0; i < n * p.row_bytes; i++) {
        /* any bits are blocks, but f16 and bf16 shall be finite: no exponent of ones */
        p.w[i] = (uint8_t)((uint8_t)(int8_t)(uniform() * 128.0f) & 0xbb);
    }
    return p;
}

static void discard(problem *p) {
    free(p->x);
    free(p->before);
    free(p->w);
}

/* Rows [i, i + m), columns [j, j + n) of the product, in y as they lie in the whole. */
static void multiply(const l2c_kernels *kernels, float *y, const problem *p, size_t i, size_t m, size_t j, size_t n,
                     bool add) {
    const l2c_matrix w = {p->w + j * p->row_bytes, p->row_bytes, p->k, p->type};
    const size_t blocks = (m + L2C_TILE_ROWS - 1) / L2C_TILE_ROWS, of_x = blocks * l2c_tile_block(p->k) / 2;
    const size_t floats = L2C_TILES_FLOATS, ldy = p->n + GAP;
    float *memory = grab((floats + of_x + 3 * GUARD) * sizeof *memory);
    float *panel = (float *)(((uintptr_t)memory + 63) / 64 * 64), *x = panel + floats + GUARD;
    for (size_t at = 0; at < floats + GUARD + of_x; at++) {
        panel[at] = NAN; /* nothing may depend on what was there */
    }
    panel[floats] = x[of_x] = CANARY;
    /* in two parts, as threads share them */
    const size_t first = m > 2 * L2C_LANES ? 2 * L2C_LANES + L2C_LANES * (m % 2) : m;
    const float *rows = p->x + i * (p->k + GAP);
    kernels->rows_to_tiles((uint16_t *)x, rows, p->k + GAP, 0, first < m ? first : m, p->k);
    if (first < m) {
        kernels->rows_to_tiles((uint16_t *)x, rows, p->k + GAP, first, m, p->k);
    }
    kernels->gemm_tiles(y + i * ldy + j, ldy, (const uint16_t *)x, &w, m, n, add, panel);
    failures += memcmp(&panel[floats], &CANARY, sizeof CANARY) != 0 || memcmp(&x[of_x], &CANARY, sizeof CANARY) != 0;
    free(memory);
    products++;
#ifdef L2C_EMULATE_AMX
    failures += emulated_configured();
#endif
}

static void complain(const problem *p, const char *what, size_t i, size_t j) {
    printf("%s %zu x %zu x %zu: %s at [%zu][%zu]\n", p->type->name, p->m, p->n, p->k, what, i, j);
    failures++;
}

/* An operand is off by 2^-8 at most. Subnormals are zeros. */
static bool near_enough(const problem *p, const float *y, double *squares, double *errors) {
    static float w[MAX_K];
    for (size_t j = 0; j < p->n; j++) {
        p->type->dequantize(w, p->w + j * p->row_bytes, p->k / p->type->values);
        for (size_t i = 0; i < p->m; i++) {
            double sum = 0, sizes = 0, largest = 0;
            for (size_t l = 0; l < p->k; l++) {
                const double term = (double)w[l] * (double)p->x[i * (p->k + GAP) + l];
                sum += term;
                sizes += fabs(term);
                largest = fmax(largest, fabs((double)w[l]));
            }
            const double got = (double)y[i * (p->n + GAP) + j];
            const double bound = sizes * 0x1p-7 + (double)p->k * (largest * 0x1p-20 + 0x1p-125);
            if (!(fabs(got - sum) <= bound)) {
                printf("%.9g, expected %.9g +- %.3g\n", got, sum, bound);
                complain(p, "too far off", i, j);
                return false;
            }
            *squares += sum * sum;
            *errors += (got - sum) * (got - sum);
        }
    }
    return true;
}

static bool equal(const problem *p, const float *a, const float *b, const char *what) {
    for (size_t at = 0; at < p->m * (p->n + GAP) + GUARD; at++) {
        if (memcmp(&a[at], &b[at], sizeof *a) != 0) {
            complain(p, what, at / (p->n + GAP), at % (p->n + GAP));
            return false;
        }
    }
    return true;
}

static void check(const l2c_kernels *kernels, l2c_type type, size_t m, size_t n, size_t k, double *squares,
                  double *errors) {
    problem p = make(type, m, n, k);
    const size_t size = (m * (n + GAP) + GUARD) * sizeof(float);
    float *whole = grab(size), *parts = grab(size);
    memcpy(whole, p.before, size);
    multiply(kernels, whole, &p, 0, m, 0, n, false);
    near_enough(&p, whole, squares, errors);

    /* rows by ones, then the rest; columns as threads share them */
    memcpy(parts, p.before, size);
    const size_t cut = n > 16 ? n / 32 * 16 : n;
    for (size_t i = 0; i < m; i++) {
        const size_t rows = i < 2 || i + 2 >= m ? 1 : m - 3;
        multiply(kernels, parts, &p, i, rows, 0, cut, false);
        if (cut < n) {
            multiply(kernels, parts, &p, i, rows, cut, n - cut, false);
        }
        i += rows - 1;
    }
    equal(&p, whole, parts, "depends on its companions");

    if (k <= L2C_TILES_K) { /* else it is added part by part */
        memcpy(parts, p.before, size);
        multiply(kernels, parts, &p, 0, m, 0, n, true);
        for (size_t at = 0; at < m * (n + GAP); at++) {
            whole[at] = at % (n + GAP) < n ? p.before[at] + whole[at] : whole[at];
        }
        equal(&p, whole, parts, "is not what was there and the product");
    }
    free(whole);
    free(parts);
    discard(&p);
}

static void check_level(const l2c_kernels *kernels) {
    static const size_t ms[] = {1, 2, 15, 16, 17, 32, 33, 50}, ns[] = {1, 15, 16, 17, 32, 33, 70};
    static const size_t ks[] = {1, 2, 31, 32, 33, 64, 255, 256, 257, 288, 512, 700, 768};
    for (size_t t = 0; t < TYPES; t++) {
        const l2c_type_info *type = l2c_type_of((uint32_t)types[t]);
        double squares = 0, errors = 0;
        for (size_t m = 0; m < sizeof ms / sizeof *ms; m++) {
            for (size_t n = 0; n < sizeof ns / sizeof *ns; n++) {
                for (size_t k = 0; k < sizeof ks / sizeof *ks; k++) {
                    if (ks[k] % type->values == 0) {
                        check(kernels, types[t], ms[m], ns[n], ks[k], &squares, &errors);
                    }
                }
            }
        }
        /* more than go over the columns together; more than is summed in one go */
        check(kernels, types[t], 8 * L2C_TILE_ROWS + 20, 40, SUPER, &squares, &errors);
        check(kernels, types[t], 40, 70, L2C_TILES_K + 2 * SUPER, &squares, &errors);
        const double nmse = errors / squares;
        if (nmse > 1e-5) {
            failures++;
        }
        printf("%s %s: NMSE %.2g\n", kernels->name, type->name, nmse);
    }
}

/* ---- Attention ---- */

/* Rows at positions [length - 1, ...) of a sequence; keys and values in pages that hold NaN where nothing was stored. */
typedef struct sequence {
    l2c_kv_layout layout;
    size_t heads, rows, length, window;
    float *q;
    uint8_t **pages;
} sequence;

static size_t row_stride_of(const sequence *s) {
    return s->heads * s->layout.head_dim + GAP;
}

static size_t positions_of(const sequence *s) {
    return s->length + s->rows - 1;
}

static sequence make_sequence(const l2c_kernels *kernels, l2c_kv_type type, size_t head_dim, size_t heads, size_t rows,
                              size_t length, size_t window) {
    const size_t stride = l2c_round_up(head_dim, L2C_LANES), bytes = type == L2C_KV_F16 ? 2 : 1;
    sequence s = {
        {.type = type, .head_dim = head_dim, .value_stride = stride}, heads, rows, length, window, NULL, NULL};
    s.layout.values = L2C_KV_BLOCK * head_dim * bytes;
    s.layout.scales = s.layout.values + L2C_KV_BLOCK * stride * bytes;
    s.layout.block = s.layout.scales + (type == L2C_KV_Q8 ? 2 * L2C_KV_BLOCK * sizeof(float) : 0);
    s.layout.page = L2C_KV_PAGE / L2C_KV_BLOCK * s.layout.block;
    s.q = grab(rows * row_stride_of(&s) * sizeof *s.q);
    for (size_t i = 0; i < rows * row_stride_of(&s); i++) {
        s.q[i] = 4 * uniform();
    }
    const size_t pages = (positions_of(&s) + L2C_KV_PAGE - 1) / L2C_KV_PAGE;
    s.pages = grab(pages * sizeof *s.pages);
    for (size_t i = 0; i < pages; i++) {
        memset(s.pages[i] = grab(s.layout.page), 0xff, s.layout.page);
    }
    float *kv = grab(2 * head_dim * sizeof *kv);
    for (size_t t = 0; t < positions_of(&s); t++) {
        for (size_t d = 0; d < 2 * head_dim; d++) {
            kv[d] = (t % 5 ? 1.0f : 1e-3f) * uniform();
        }
        kernels->store_kv(s.pages[t / L2C_KV_PAGE] + t % L2C_KV_PAGE / L2C_KV_BLOCK * s.layout.block, &s.layout,
                          t % L2C_KV_BLOCK, kv, kv + head_dim);
    }
    free(kv);
    return s;
}

static void discard_sequence(sequence *s) {
    for (size_t i = 0; i * L2C_KV_PAGE < positions_of(s); i++) {
        free(s->pages[i]);
    }
    free(s->pages);
    free(s->q);
}

/* Rows [from, from + rows) into their places in y. */
static void attend(const l2c_kernels *kernels, float *y, const sequence *s, size_t from, size_t rows, bool tiles) {
    const size_t stride = row_stride_of(s), dim = s->layout.head_dim;
    const size_t floats =
        tiles ? l2c_attention_tiles_scratch(s->heads, dim) : l2c_attention_scratch(s->heads, s->layout.value_stride);
    float *memory = grab((floats + 2 * GUARD) * sizeof *memory);
    float *scratch = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    memset(scratch, 0xff, floats * sizeof *scratch); /* NaN */
    scratch[floats] = CANARY;
    const l2c_attention a = {
        .out = y + from * stride,
        .q = s->q + from * stride,
        .rows = rows,
        .row_stride = stride,
        .heads = s->heads,
        .layout = &s->layout,
        .pages = s->pages,
        .length = s->length + from,
        .window = s->window,
        .scale = 1.0f / sqrtf((float)dim),
        .scratch = scratch,
    };
    (tiles ? kernels->attend_tiles : kernels->attend)(&a);
    failures += memcmp(&scratch[floats], &CANARY, sizeof CANARY) != 0;
    free(memory);
    attentions += tiles;
#ifdef L2C_EMULATE_AMX
    failures += emulated_configured();
#endif
}

static void check_sequence(const l2c_kernels *kernels, const sequence *s, double *of_squares, double *of_errors) {
    const size_t stride = row_stride_of(s), size = s->rows * stride;
    float *whole = grab(size * sizeof *whole), *parts = grab(size * sizeof *parts), *exact = grab(size * sizeof *exact);
    for (size_t i = 0; i < size; i++) {
        whole[i] = parts[i] = exact[i] = CANARY;
    }
    attend(kernels, whole, s, 0, s->rows, true);
    for (size_t from = 0, rows; from < s->rows; from += rows) {
        rows = from < 2 || from + 2 >= s->rows ? 1 : (s->rows - 2) / 2;
        rows = rows < 1 ? 1 : rows;
        attend(kernels, parts, s, from, rows, true);
    }
    for (size_t from = 0; from < s->rows; from++) {
        attend(kernels, exact, s, from, 1, false);
    }
    double squares = 0, errors = 0;
    for (size_t i = 0; i < size; i++) {
        const double error = (double)whole[i] - (double)exact[i];
        squares += i % stride + GAP < stride ? (double)exact[i] * (double)exact[i] : 0;
        errors += error * error;
    }
    const bool equal = memcmp(whole, parts, size * sizeof *whole) == 0;
    if (!equal || !(errors <= 1e-7 * squares)) {
        printf("attention, type %d, head_dim %zu, %zu heads, %zu rows from %zu, window %zu: NMSE %.2g%s\n",
               (int)s->layout.type, s->layout.head_dim, s->heads, s->rows, s->length, s->window, errors / squares,
               equal ? "" : ", depends on its companions");
        failures++;
    }
    *of_squares += squares;
    *of_errors += errors;
    free(whole);
    free(parts);
    free(exact);
}

static size_t any_of(const size_t *list, size_t n) {
    return list[(size_t)((uniform() + 1.0f) / 2 * (float)n) % n];
}

static void check_attention(const l2c_kernels *kernels) {
    static const size_t dims[] = {2, 16, 20, 32, 48, 64, 66, 80, 128}, heads[] = {1, 2, 3, 8, 12};
    static const size_t rows[] = {1, 2, 4, 5, 16, 21, 33, 100, 256}, windows[] = {0, 0, 1, 2, 40, 256, 300};
    static const size_t lengths[] = {1, 2, 16, 31, 32, 33, 63, 64, 200, 255, 256, 257, 300, 512, 700};
    double squares = 0, errors = 0;
    for (size_t turn = 0; turn < 600; turn++) {
        const size_t h = any_of(heads, sizeof heads / sizeof *heads), most = l2c_attention_rows(h, true);
        const size_t m = any_of(rows, sizeof rows / sizeof *rows);
        sequence s = make_sequence(kernels, turn % 3 ? L2C_KV_F16 : L2C_KV_Q8, any_of(dims, sizeof dims / sizeof *dims),
                                   h, m < most ? m : most, any_of(lengths, sizeof lengths / sizeof *lengths),
                                   any_of(windows, sizeof windows / sizeof *windows));
        check_sequence(kernels, &s, &squares, &errors);
        discard_sequence(&s);
    }
    const double nmse = errors / squares;
    failures += nmse > 1e-9;
    printf("%s attention: NMSE %.2g\n", kernels->name, nmse);
}

#ifdef L2C_EMULATE_AMX
typedef struct configuration {
    uint8_t palette, rest[15];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} configuration;

static const configuration good = {1, {0}, {64, 64, 64, 32}, {16, 16, 16, 16}};

static void unconfigured(void) {
    emulated_zero(0);
}
static void released(void) {
    emulated_loadconfig(&good);
    emulated_zero(0);
    emulated_release();
    emulated_zero(0);
}
static void not_in_the_configuration(void) {
    emulated_loadconfig(&good);
    emulated_zero(4);
}
static void shapes_that_do_not_fit(void) {
    emulated_loadconfig(&good);
    emulated_dpbf16ps(0, 1, 3);
}
static void a_tile_twice(void) {
    emulated_loadconfig(&good);
    emulated_dpbf16ps(0, 1, 1);
}
static void another_palette(void) {
    configuration c = good;
    c.palette = 2;
    emulated_loadconfig(&c);
}
static void too_many_rows(void) {
    configuration c = good;
    c.rows[2] = 17;
    emulated_loadconfig(&c);
}

static void check_refusals(void) {
    static const struct {
        const char *name;
        void (*run)(void);
    } wrongs[] = {
        {"unconfigured tiles", unconfigured},
        {"released tiles", released},
        {"a tile that is not in the configuration", not_in_the_configuration},
        {"shapes that do not fit", shapes_that_do_not_fit},
        {"a tile twice", a_tile_twice},
        {"another palette", another_palette},
        {"too many rows", too_many_rows},
    };
    fflush(stdout);
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        const pid_t child = fork();
        if (child == 0) {
            fclose(stderr);
            wrongs[i].run();
            _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT) {
            printf("the emulation takes %s\n", wrongs[i].name);
            failures++;
        }
    }
    emulated_loadconfig(&good); /* and what is right is taken */
    emulated_dpbf16ps(0, 1, 2);
    emulated_release();
}
#endif

int main(int argc, char **argv) {
    const uint64_t start = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)(l2c_seconds() * 1e9) | 1;
    seed = start ? start : 1;
    for (size_t level = 0; l2c_isa_name(level); level++) {
        const l2c_kernels *kernels = l2c_kernels_get(l2c_isa_name(level));
        if (kernels->gemm_tiles) {
            check_level(kernels);
            check_attention(kernels);
        }
    }
#ifdef L2C_EMULATE_AMX
    check_refusals();
#endif
    printf("%zu products and %zu attentions by tiles, %zu failures (seed %llu)\n", products, attentions, failures,
           (unsigned long long)start);
    return failures ? 1 : 0;
}
