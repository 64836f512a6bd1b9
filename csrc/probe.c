/* probe.c: the machine's limits at one instruction-set level: what a read and a multiply-add can cost at best. */
#include "error.h"
#include "ops.h"

enum { FMA_ITERATIONS = 200000, TILE_ITERATIONS = 20000, SINK = 64 }; /* SINK: at least the accumulators of any level */

typedef struct probe {
    const l2c_kernels *kernels;
    float *memory;
    size_t floats;
    double start, seconds; /* of the run at hand, by the first thread */
    double macs;           /* of one thread */
    double unread;         /* keeps the sums alive */
} probe;

static void begin(const l2c_team *team, probe *p) {
    l2c_team_wait(team);
    if (team->rank == 0) {
        p->start = l2c_seconds();
    }
}

static void end(const l2c_team *team, probe *p) {
    l2c_team_wait(team);
    if (team->rank == 0) {
        p->seconds = l2c_seconds() - p->start;
    }
}

static void touch(const l2c_team *team, void *argument) {
    probe *p = argument;
    const l2c_range part = l2c_team_share(team, p->floats, 1024);
    for (size_t i = part.from; i < part.to; i++) {
        p->memory[i] = 1.0f;
    }
}

static void read_all(const l2c_team *team, void *argument) {
    probe *p = argument;
    const l2c_range part = l2c_team_share(team, p->floats, 1024);
    begin(team, p);
    const double sum = p->kernels->probe_read(p->memory + part.from, part.to - part.from);
    end(team, p);
    if (team->rank == 0) {
        p->unread += sum;
    }
}

static void multiply_add(const l2c_team *team, void *argument) {
    probe *p = argument;
    float sink[SINK];
    for (int i = 0; i < SINK; i++) {
        sink[i] = 1e-3f * (float)(i + 1);
    }
    begin(team, p);
    const double macs = p->kernels->probe_tiles ? p->kernels->probe_tiles(TILE_ITERATIONS)
                                                : p->kernels->probe_fma(sink, FMA_ITERATIONS);
    end(team, p);
    if (team->rank == 0) {
        p->macs = macs * team->size;
        p->unread += (double)sink[0];
    }
}

static int check(int threads, int reps, l2c_error *error) {
    if (threads < 1 || reps < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "%d threads, %d repetitions: expected at least 1", threads, reps);
    }
    return L2C_OK;
}

int l2c_probe_bandwidth(double *gbs, size_t bytes, int threads, int reps, const char *isa, l2c_error *error) {
    probe p = {.floats = bytes / sizeof(float)};
    int status = check(threads, reps, error);
    if (status == L2C_OK) {
        status = l2c_kernels_select(&p.kernels, isa, error);
    }
    if (status != L2C_OK) {
        return status;
    }
    p.memory = l2c_pages_alloc(bytes);
    if (!p.memory) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes to read", bytes);
    }
    l2c_pages_huge(p.memory, bytes);
    l2c_team_run(threads, touch, &p);
    *gbs = 0;
    for (int i = 0; i < reps; i++) {
        l2c_team_run(threads, read_all, &p);
        const double rate = (double)bytes / p.seconds / 1e9;
        *gbs = rate > *gbs ? rate : *gbs;
    }
    l2c_pages_free(p.memory, bytes);
    return L2C_OK;
}

int l2c_probe_flops(double *tflops, int threads, int reps, const char *isa, l2c_error *error) {
    probe p = {0};
    int status = check(threads, reps, error);
    if (status == L2C_OK) {
        status = l2c_kernels_select(&p.kernels, isa, error);
    }
    if (status != L2C_OK) {
        return status;
    }
    *tflops = 0;
    for (int i = 0; i < reps; i++) {
        l2c_team_run(threads, multiply_add, &p);
        const double rate = 2 * p.macs / p.seconds / 1e12;
        *tflops = rate > *tflops ? rate : *tflops;
    }
    return L2C_OK;
}
