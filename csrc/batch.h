/* batch.h: the work space of a step as plain data, for batch.c and forward.c. R = rows, in the order of the step's
 * spans: prompt rows first, then generated rows. */
#ifndef L2C_BATCH_H
#define L2C_BATCH_H

#include "ops.h"
#include "session.h"

typedef struct l2c_row {
    const l2c_session *session;
    size_t position;
    int32_t token;
    bool wanted; /* its logits are */
} l2c_row;

/* Rows of one session, one after the other, that attention takes together. */
typedef struct l2c_run {
    size_t from, count;
    bool tiles; /* by attend_tiles */
} l2c_run;

struct l2c_batch {
    const l2c_transformer *transformer;
    int32_t capacity; /* rows */
    int threads;
    void *memory; /* owned; everything below lies in it */
    size_t memory_bytes;

    l2c_row *rows;    /* [R] */
    l2c_run *runs;    /* [R at most] */
    float *x;         /* [R][dim] residual stream */
    float *normed;    /* [R][dim] */
    float *q, *k, *v; /* [R][n_heads head_dim], [R][n_kv_heads head_dim] twice */
    float *attended;  /* [R][n_heads head_dim] */
    float *gate, *up; /* [R][hidden_dim] */
    float *low;       /* [R][lora_rank at most] x @ A^T of the adapters for the input at hand */
    float *angles;    /* [R][2 head_dim] of RoPE at this row's position, as kernels take them */
    /* [R] of the widest input of a product, for models of integers: llama2.c's, GGUF's for both roles */
    l2c_q8_rows q8;
    l2c_s8_rows s8;
    l2c_s16_rows s16;
    uint16_t *tiles; /* of the same, for models of types below f32 at a level that takes prompts by tiles */
    float *scratch;  /* [threads][scratch_floats] */
    float *parts;    /* [parts_floats] of attention whose chunks are shared out: a row of the longest context fits */
    size_t scratch_floats, parts_floats;

    /* of the step at hand */
    size_t prompt, generated; /* rows; generated ones that are taken as prompts are among these */
    bool bytes;               /* prompt rows meet integer types in bytes */
    size_t n_runs;
    size_t wanted_prompt, wanted_generated; /* rows whose logits are wanted */
    float *logits;                          /* [wanted][vocab_size], the caller's */
    const l2c_span *spans;
    size_t n_spans;
    l2c_sampler *const *samplers; /* [n_spans], the caller's; NULL: logits are all that is wanted */
    int32_t *tokens;              /* [n_spans], the caller's */
    float *own_logits;            /* [own_rows][vocab_size], owned, of a step that samples; kept for the next one */
    size_t own_rows;
    bool throughput;
    double slice, started; /* seconds that a run may last, 0: any; when this one began */
    size_t layer;          /* the next one */
    bool cancelled, paused;
    atomic_bool busy; /* from a step's beginning to its end, pauses included */
};

/* forward.c: the body of a step for every thread of the team; `batch` is an l2c_batch. */
void l2c_forward(const l2c_team *team, void *batch);

#endif
