/* ops.h: a team of threads that walk through one forward together, and the operators they share out.
 *
 * Every thread of the team runs the same function; operators that say "ends together" return when all threads are done,
 * the others leave that to a later l2c_team_wait. Sharing changes who computes an element, never how.
 *
 * Cores are not equally fast: some are small, some have other programs on them. Work is therefore cut into pieces, and a thread
 * that has done its own share goes on with what is left of the others'. */
#ifndef L2C_OPS_H
#define L2C_OPS_H

#include "kernels.h"
#include "model.h"

typedef struct l2c_barrier l2c_barrier;

typedef struct l2c_team {
    int rank, size;
    l2c_barrier *barrier;
    size_t *begun; /* this thread's works since the last wait */
} l2c_team;

/* Runs body on up to `threads` threads, the caller among them; returns when all are done. */
void l2c_team_run(int threads, void (*body)(const l2c_team *team, void *argument), void *argument);
void l2c_team_wait(const l2c_team *team);
/* A thread that waits fetches what it will read of w next: memory would rest while another works alone. */
void l2c_team_wait_for(const l2c_team *team, const l2c_tensor *w);

typedef struct l2c_range {
    size_t from, to;
} l2c_range;

/* This thread's part of n items, cut at multiples of `unit`. */
l2c_range l2c_team_share(const l2c_team *team, size_t n, size_t unit);

/* n items that are shared out by pieces: all threads of a team begin the same works in the same order, and take pieces until
 * none is left. Later threads' pieces may still be in the making then. */
typedef struct l2c_work {
    const l2c_team *team;
    size_t n, unit, piece; /* shares are cut at multiples of unit, and into pieces of `piece` items */
    size_t most;           /* pieces that a share has at most */
    size_t number;         /* of this work since the last wait */
    int passed;            /* shares in which nothing is left to take, from this thread's own on */
} l2c_work;

l2c_work l2c_team_work(const l2c_team *team, size_t n, size_t unit, size_t piece);
bool l2c_team_take(l2c_work *work, l2c_range *items);

/* Rows of activations for a product: prompt rows first, then generated rows. */
typedef struct l2c_rows {
    const float *x; /* [prompt + generated][stride] */
    size_t stride, prompt, generated;
    l2c_q8_rows q8;        /* the same rows in int8, for Q8_GROUP */
    l2c_s16_rows s16;      /* for GGUF's integer types: the first rows, prompt rows all of them, or none */
    l2c_s8_rows s8;        /* the others, but prompt rows that go by tiles */
    const uint16_t *tiles; /* prompt rows in the blocks of gemm_tiles, at a level that has it; NULL: none is needed */
} l2c_rows;

/* The columns of a product with so many rows, or of several such products that share their columns. */
l2c_work l2c_matmul_work(const l2c_team *team, const l2c_tensor *w, size_t rows);

/* y[row][n] (+)= x[row] @ w^T for these columns of y. scratch: this thread's: L2C_PANEL_FLOATS, w->cols,
 * l2c_quant_panel(w->cols) and, where there are x->tiles, L2C_TILES_FLOATS must fit. */
void l2c_matmul(const l2c_kernels *kernels, float *y, const l2c_rows *x, const l2c_tensor *w, l2c_range columns,
                bool add, float *scratch);

#endif
