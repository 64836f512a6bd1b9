/* ops.c: the team of threads (the only OpenMP) and the product of a batch with a matrix. */
#include "ops.h"

#include <stdatomic.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__) && defined(__GNUC__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#if defined(__GNUC__)
#define FETCH(p) __builtin_prefetch((p), 0, 2)
#else
#define FETCH(p) ((void)(p))
#endif

/* A wait spins as long as a phase's usual imbalance, then sleeps: only a processor that idles makes the system fetch the
 * awaited thread from one that other programs keep busy. Yielding instead is slower by a third beside a busy program. */
enum { SPINS = 1000, CACHE_LINE = 64, PROCESSORS = 1024, MOST_FETCHED = 128 * 1024 };

struct l2c_barrier {
    atomic_int arrived, sleepers;
    char apart[CACHE_LINE];
    atomic_uint generation;
    atomic_bool taken[PROCESSORS]; /* by a thread of the team */
};

/* Meanwhile bytes [next, end) go to this processor's second cache. */
static void wait_and_fetch(const l2c_team *team, const char *next, const char *end) {
    l2c_barrier *b = team->barrier;
    if (team->size == 1) {
        return;
    }
    const unsigned generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        /* Sequentially consistent, as is a sleeper's announcement: either it sees the new generation or is seen here. */
        atomic_store(&b->generation, generation + 1);
        if (atomic_load(&b->sleepers) > 0) {
            l2c_wake(&b->generation);
        }
        return;
    }
    for (int spins = 0; atomic_load_explicit(&b->generation, memory_order_acquire) == generation;) {
        if (next < end) {
            FETCH(next);
            next += CACHE_LINE;
        } else if (spins < SPINS) {
            spins++;
            PAUSE();
        } else {
            atomic_fetch_add(&b->sleepers, 1);
            l2c_sleep_while(&b->generation, generation);
            atomic_fetch_sub(&b->sleepers, 1);
        }
    }
}

void l2c_team_wait(const l2c_team *team) {
    wait_and_fetch(team, NULL, NULL);
}

static size_t row_bytes_of(const l2c_tensor *w) {
    return w->cols / w->type->values * w->type->bytes;
}

void l2c_team_wait_for(const l2c_team *team, const l2c_tensor *w) {
    const l2c_range columns = l2c_team_share(team, w->rows, L2C_LANES);
    const size_t bytes = (columns.to - columns.from) * row_bytes_of(w);
    const char *first = (const char *)w->data + columns.from * row_bytes_of(w);
    wait_and_fetch(team, first, first + (bytes < MOST_FETCHED ? bytes : MOST_FETCHED));
}

#ifdef _OPENMP
/* A runtime's fresh thread often begins on the processor of the one that made it, and as both spin, they take turns by
 * time slices for tens of milliseconds. A thread that wakes up, however, is put on an idle processor. */
static void spread(l2c_barrier *b) {
    const int processor = l2c_processor();
    if (processor >= 0 && processor < PROCESSORS && atomic_exchange(&b->taken[processor], true)) {
        l2c_nap();
    }
}
#endif

void l2c_team_run(int threads, void (*body)(const l2c_team *team, void *argument), void *argument) {
    l2c_barrier barrier = {0};
#ifdef _OPENMP
    /* A forked child has lost the runtime's threads, and some runtimes wait for them for ever. */
    if (threads > 1 && !l2c_forked()) {
#pragma omp parallel num_threads(threads)
        {
            const l2c_team team = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
            spread(&barrier);
            body(&team, argument);
        }
        return;
    }
#else
    (void)threads;
#endif
    body(&(l2c_team){0, 1, &barrier}, argument);
}

l2c_range l2c_team_share(const l2c_team *team, size_t n, size_t unit) {
    const size_t units = (n + unit - 1) / unit, rank = (size_t)team->rank, size = (size_t)team->size;
    const size_t from = units * rank / size * unit, to = units * (rank + 1) / size * unit;
    return (l2c_range){from < n ? from : n, to < n ? to : n};
}

/* Types without a kernel for generated rows: column by column as f32. */
static void dot_unpacked(const l2c_kernels *kernels, float *y, size_t ldy, const float *x, size_t ldx,
                         const l2c_matrix *w, size_t m, size_t n, bool add, float *row) {
    const l2c_matrix one = {(const uint8_t *)row, w->k * sizeof *row, w->k, l2c_type_of(L2C_TYPE_F32)};
    for (size_t j = 0; j < n; j++) {
        w->type->dequantize(row, w->data + j * w->row_bytes, w->k / w->type->values);
        kernels->dot_f32(y + j, ldy, x, ldx, &one, m, 1, add);
    }
}

static bool is_float(const l2c_type_info *type) {
    return type->type == L2C_TYPE_F32 || type->type == L2C_TYPE_F16 || type->type == L2C_TYPE_BF16;
}

void l2c_matmul(const l2c_team *team, const l2c_kernels *kernels, float *y, const l2c_rows *x, const l2c_tensor *w,
                bool add, float *scratch) {
    const l2c_range columns = l2c_team_share(team, w->rows, L2C_LANES);
    const size_t n = columns.to - columns.from, k = w->cols, ldy = w->rows;
    float *out = y + columns.from;
    if (n == 0) {
        return;
    }
    if (w->type->type == L2C_TYPE_Q8_GROUP) {
        const l2c_q8_matrix q8 = {w->data, w->scales, k, w->group_size};
        kernels->dot_q8(out, ldy, &x->q8, &q8, columns.from, x->prompt + x->generated, n, add);
        return;
    }
    const size_t row_bytes = row_bytes_of(w);
    const l2c_matrix matrix = {(const uint8_t *)w->data + columns.from * row_bytes, row_bytes, k, w->type};
    const float *generated = x->x + x->prompt * x->stride;
    float *to = out + x->prompt * ldy;
    const bool tiles = kernels->gemm_tiles && w->type->type != L2C_TYPE_F32;
    if (x->prompt && tiles) {
        kernels->gemm_tiles(out, ldy, x->tiles, &matrix, x->prompt, n, add, scratch);
    } else if (x->prompt && !w->type->integer) {
        kernels->gemm_f32(out, ldy, x->x, x->stride, &matrix, x->prompt, n, add, scratch);
    } else if (x->s16.rows) {
        kernels->gemm_quant(out, ldy, &x->s16, &matrix, x->s16.rows, n, add, scratch);
    }
    if (w->type->integer) {
        const size_t before = x->prompt + x->generated - x->s8.rows;
        if (x->s8.rows) {
            kernels->dot_quant(out + before * ldy, ldy, &x->s8, &matrix, x->s8.rows, n, add, scratch);
        }
    } else if (x->generated && is_float(w->type)) {
        kernels->dot_f32(to, ldy, generated, x->stride, &matrix, x->generated, n, add);
    } else if (x->generated) {
        dot_unpacked(kernels, to, ldy, generated, x->stride, &matrix, x->generated, n, add, scratch);
    }
}
