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
enum { WORKS = 4, MOST_SHARES = 1024 }; /* between two waits; of a work */

struct l2c_barrier {
    atomic_int arrived, sleepers;
    char apart[CACHE_LINE];
    atomic_uint generation;
    char also_apart[CACHE_LINE];
    /* Pieces, by rank; more than there are when several threads found none left. */
    atomic_uint taken[WORKS][MOST_SHARES];
    atomic_bool busy[PROCESSORS]; /* with a thread of the team */
};

/* Before the team begins, and when all of it waits. */
static void forget_works(l2c_barrier *b, size_t works, int size) {
    for (size_t work = 0; work < works; work++) {
        for (int rank = 0; rank < size; rank++) {
            atomic_store_explicit(&b->taken[work][rank], 0, memory_order_relaxed);
        }
    }
}

/* Meanwhile bytes [next, end) go to this processor's second cache. */
static void wait_and_fetch(const l2c_team *team, const char *next, const char *end) {
    l2c_barrier *b = team->barrier;
    if (team->size == 1) {
        return;
    }
    const size_t works = *team->begun;
    *team->begun = 0;
    const unsigned generation = atomic_load_explicit(&b->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&b->arrived, 1, memory_order_acq_rel) == team->size - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        forget_works(b, works, team->size);
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
    if (processor >= 0 && processor < PROCESSORS && atomic_exchange(&b->busy[processor], true)) {
        l2c_nap();
    }
}
#endif

void l2c_team_run(int threads, void (*body)(const l2c_team *team, void *argument), void *argument) {
    l2c_barrier barrier;
    atomic_init(&barrier.arrived, 0);
    atomic_init(&barrier.sleepers, 0);
    atomic_init(&barrier.generation, 0);
    threads = threads < MOST_SHARES ? threads : MOST_SHARES;
    forget_works(&barrier, WORKS, threads);
#ifdef _OPENMP
    /* A forked child has lost the runtime's threads, and some runtimes wait for them for ever. */
    if (threads > 1 && !l2c_forked()) {
        for (int i = 0; i < PROCESSORS; i++) {
            atomic_init(&barrier.busy[i], false);
        }
#pragma omp parallel num_threads(threads)
        {
            size_t begun = 0;
            const l2c_team team = {omp_get_thread_num(), omp_get_num_threads(), &barrier, &begun};
            spread(&barrier);
            body(&team, argument);
        }
        return;
    }
#endif
    size_t begun = 0;
    body(&(l2c_team){0, 1, &barrier, &begun}, argument);
}

static l2c_range share_of(const l2c_team *team, int of_rank, size_t n, size_t unit) {
    const size_t units = (n + unit - 1) / unit, rank = (size_t)of_rank, size = (size_t)team->size;
    const size_t from = units * rank / size * unit, to = units * (rank + 1) / size * unit;
    return (l2c_range){from < n ? from : n, to < n ? to : n};
}

l2c_range l2c_team_share(const l2c_team *team, size_t n, size_t unit) {
    return share_of(team, team->rank, n, unit);
}

l2c_work l2c_team_work(const l2c_team *team, size_t n, size_t unit, size_t piece) {
    if (team->size == 1) {
        return (l2c_work){team, n, unit, n, 1, 0, 0};
    }
    if (*team->begun == WORKS) {
        l2c_team_wait(team);
    }
    const size_t size = (size_t)team->size, units = (n + unit - 1) / unit;
    const size_t largest = (units + size - 1) / size * unit;
    return (l2c_work){team, n, unit, piece, (largest + piece - 1) / piece, (*team->begun)++, 0};
}

/* The next piece of this share. Most are found exhausted, at the end of a work, by their counter alone. */
static bool take_of(const l2c_work *work, int rank, l2c_range *items) {
    atomic_uint *taken = &work->team->barrier->taken[work->number][rank];
    const size_t before = atomic_load_explicit(taken, memory_order_relaxed);
    if (before >= work->most) {
        return false;
    }
    const l2c_range share = share_of(work->team, rank, work->n, work->unit);
    const size_t length = share.to - share.from, pieces = length / work->piece + (length % work->piece != 0);
    if (before >= pieces) {
        return false;
    }
    const size_t piece = atomic_fetch_add_explicit(taken, 1, memory_order_relaxed);
    if (piece >= pieces) {
        return false;
    }
    items->from = share.from + piece * work->piece;
    items->to = share.to - items->from > work->piece ? items->from + work->piece : share.to;
    return true;
}

bool l2c_team_take(l2c_work *work, l2c_range *items) {
    const l2c_team *team = work->team;
    if (team->size == 1) {
        *items = (l2c_range){0, work->n};
        return work->passed++ == 0 && work->n > 0;
    }
    for (; work->passed < team->size; work->passed++) {
        if (take_of(work, (team->rank + work->passed) % team->size, items)) {
            return true;
        }
    }
    return false;
}

/* Columns of a piece of a product: panels and blocks of tiles are whole in them. A few rows take weights for a while. */
enum { PIECE_COLUMNS = 64, PIECE_BYTES = 128 * 1024, MANY_ROWS = 16 };

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

l2c_work l2c_matmul_work(const l2c_team *team, const l2c_tensor *w, size_t rows) {
    const size_t row_bytes = row_bytes_of(w), least = rows < MANY_ROWS && row_bytes ? PIECE_BYTES / row_bytes : 0;
    return l2c_team_work(team, w->rows, L2C_LANES,
                         least > PIECE_COLUMNS ? l2c_round_up(least, L2C_LANES) : PIECE_COLUMNS);
}

void l2c_matmul(const l2c_kernels *kernels, float *y, const l2c_rows *x, const l2c_tensor *w, l2c_range columns,
                bool add, float *scratch) {
    const size_t n = columns.to - columns.from, k = w->cols, ldy = w->rows;
    float *out = y + columns.from;
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
