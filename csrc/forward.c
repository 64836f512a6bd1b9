/* forward.c: one forward of a Llama (Touvron et al., 2023) over the rows of a batch.
 *
 *   x = E[token]
 *   for each layer:  x += O attention(rope(Q n), rope(K n), V n),  n = rmsnorm(x)
 *                    x += D (silu(G n) * U n),                     n = rmsnorm(x)
 *   logits = W rmsnorm(x)
 *
 * where W x stands for W x + B (A x) if the matrix has an adapter (Hu et al., 2021).
 *
 * Every thread runs every line; each operator shares its work by rows, heads or columns, piece by piece, and ends together. */
#include "batch.h"
#include "lora.h"

#include <math.h>
#include <string.h>

static const l2c_tensor *tensor(const l2c_batch *b, l2c_tensor_role role, size_t layer) {
    return l2c_model_tensor(&b->transformer->model, role, layer);
}

static const float *vector(const l2c_batch *b, l2c_tensor_role role, size_t layer) {
    return tensor(b, role, layer)->data;
}

static size_t row_count(const l2c_batch *b) {
    return b->prompt + b->generated;
}

static float *scratch(const l2c_team *team, const l2c_batch *b) {
    return b->scratch + (size_t)team->rank * b->scratch_floats;
}

/* Whether prompt rows go by tiles. */
static bool takes_tiles(const l2c_batch *b) {
    return b->tiles && b->transformer->kernels->gemm_tiles && b->prompt > 0;
}

/* The rows of the step at hand, for a product of x [R][k]. */
static l2c_rows rows_of(const l2c_batch *b, const float *x, size_t k) {
    l2c_rows rows = {x, k, b->prompt, b->generated, b->q8, b->s16, b->s8, b->tiles};
    rows.s16.rows = b->bytes || b->transformer->kernels->gemm_tiles ? 0 : b->prompt;
    rows.s8.rows = b->bytes ? row_count(b) : b->generated;
    return rows;
}

/* The integer form of row r of x [R][k], where the weights need it. */
static void quantize_row(const l2c_batch *b, size_t r, const float *x, size_t k) {
    const l2c_config *c = &b->transformer->model.config;
    const l2c_kernels *kernels = b->transformer->kernels;
    const l2c_rows rows = rows_of(b, x, k);
    const size_t before = row_count(b) - rows.s8.rows;
    if (c->group_size) {
        kernels->quantize_q8(&rows.q8, r, x + r * k, k, (size_t)c->group_size);
    } else if (c->blocks && r >= before) {
        kernels->quantize_s8(&rows.s8, r - before, x + r * k, k);
    } else if (c->blocks && r < rows.s16.rows) {
        kernels->quantize_s16(&rows.s16, r, x + r * k, k);
    }
}

/* Rows by pieces: as many as lie together where products take them by tiles. */
static l2c_work rows_work(const l2c_team *team, const l2c_batch *b) {
    const size_t unit = takes_tiles(b) ? L2C_LANES : 1;
    return l2c_team_work(team, row_count(b), unit, L2C_LANES);
}

/* x = E[token]; the angles of each row's position */
static void embed(const l2c_team *team, l2c_batch *b) {
    const size_t dim = (size_t)b->transformer->model.config.dim;
    const size_t head_dim = (size_t)b->transformer->model.config.head_dim;
    const l2c_range rows = l2c_team_share(team, row_count(b), 1);
    for (size_t r = rows.from; r < rows.to; r++) {
        l2c_tensor_row(tensor(b, L2C_TENSOR_TOKEN_EMBD, 0), (size_t)b->rows[r].token, b->x + r * dim);
        float *cosines = b->angles + r * 2 * head_dim, *sines = cosines + head_dim;
        for (size_t i = 0; i < head_dim; i += 2) {
            /* in f64: an f32 angle is off by 1e-4 rad at position 2000 */
            const double angle = (double)b->rows[r].position * b->transformer->frequencies[i / 2];
            cosines[i] = cosines[i + 1] = (float)cos(angle);
            sines[i + 1] = (float)sin(angle);
            sines[i] = -sines[i + 1];
        }
    }
    l2c_team_wait(team);
}

/* What products need of these rows of x [R][k] besides their values. */
static void convert_rows(const l2c_batch *b, l2c_range rows, const float *x, size_t k) {
    for (size_t r = rows.from; r < rows.to; r++) {
        quantize_row(b, r, x, k);
    }
    if (takes_tiles(b) && rows.from < b->prompt) {
        const size_t end = rows.to < b->prompt ? rows.to : b->prompt;
        b->transformer->kernels->rows_to_tiles(b->tiles, x, k, rows.from, end, k);
    }
}

/* normed = rmsnorm(x), and what products take of it, `next` the first of them */
static void normalize(const l2c_team *team, l2c_batch *b, const float *weight, const l2c_tensor *next) {
    const l2c_config *c = &b->transformer->model.config;
    const size_t dim = (size_t)c->dim;
    l2c_work work = rows_work(team, b);
    for (l2c_range rows; l2c_team_take(&work, &rows);) {
        for (size_t r = rows.from; r < rows.to; r++) {
            b->transformer->kernels->rmsnorm(b->normed + r * dim, b->x + r * dim, weight, dim, c->norm_eps);
        }
        convert_rows(b, rows, b->normed, dim);
    }
    l2c_team_wait_for(team, next);
}

/* What a product of x [R][k] with `next` takes of it. */
static void convert(const l2c_team *team, l2c_batch *b, const float *x, size_t k, const l2c_tensor *next) {
    const l2c_config *c = &b->transformer->model.config;
    if (!c->blocks && !c->group_size && !takes_tiles(b)) {
        return;
    }
    l2c_work work = rows_work(team, b);
    for (l2c_range rows; l2c_team_take(&work, &rows);) {
        convert_rows(b, rows, x, k);
    }
    l2c_team_wait_for(team, next);
}

/* y (+)= x @ w^T for these columns */
static void product_columns(const l2c_team *team, const l2c_batch *b, float *y, const float *x, const l2c_tensor *w,
                            l2c_range columns, bool add) {
    const l2c_rows rows = rows_of(b, x, w->cols);
    l2c_matmul(b->transformer->kernels, y, &rows, w, columns, add, scratch(team, b));
}

/* y (+)= x @ w^T; does not wait */
static void product(const l2c_team *team, const l2c_batch *b, float *y, const float *x, const l2c_tensor *w, bool add) {
    l2c_work work = l2c_matmul_work(team, w, row_count(b));
    for (l2c_range columns; l2c_team_take(&work, &columns);) {
        product_columns(team, b, y, x, w, columns, add);
    }
}

/* low = x @ A^T for the adapters of all matrices that take this role's input, whole when it returns. */
static void reduce(const l2c_team *team, const l2c_batch *b, const float *x, l2c_tensor_role role, size_t layer) {
    const l2c_lora *lora = b->transformer->lora;
    const l2c_tensor *a = lora ? l2c_lora_input(lora, role, layer) : NULL;
    if (a) {
        product(team, b, b->low, x, a, false);
        l2c_team_wait(team);
    }
}

/* y (+)= x @ W^T + low @ B^T for these columns, of the role's matrix and of its adapter if it has one */
static void adapted_columns(const l2c_team *team, const l2c_batch *b, float *y, const float *x, l2c_tensor_role role,
                            size_t layer, l2c_range columns, bool add) {
    const l2c_lora *lora = b->transformer->lora;
    product_columns(team, b, y, x, tensor(b, role, layer), columns, add);
    if (lora && l2c_lora_input(lora, role, layer)) {
        const l2c_lora_matrix *m = l2c_lora_matrix_of(lora, role, layer);
        if (m->b.cols) {
            const l2c_rows rows = rows_of(b, b->low + m->from, l2c_lora_input(lora, role, layer)->rows);
            l2c_matmul(b->transformer->kernels, y, &rows, &m->b, columns, true, scratch(team, b));
        }
    }
}

/* The same for all columns; does not wait. */
static void adapted(const l2c_team *team, const l2c_batch *b, float *y, const float *x, l2c_tensor_role role,
                    size_t layer, bool add) {
    l2c_work work = l2c_matmul_work(team, tensor(b, role, layer), row_count(b));
    for (l2c_range columns; l2c_team_take(&work, &columns);) {
        adapted_columns(team, b, y, x, role, layer, columns, add);
    }
}

/* x [heads][head_dim]: of each head pair i, at (i, i + head_dim / 2), moves to (2 i, 2 i + 1), where rope turns it */
static void join_halves(float *x, size_t heads, size_t head_dim, float *halves) {
    for (size_t h = 0; h < heads; h++, x += head_dim) {
        memcpy(halves, x, head_dim * sizeof *x);
        for (size_t i = 0; i < head_dim / 2; i++) {
            x[2 * i] = halves[i];
            x[2 * i + 1] = halves[i + head_dim / 2];
        }
    }
}

/* q and k of row r are rotated; k and v go to their places in the session's pages */
static void rotate_and_store_row(const l2c_team *team, l2c_batch *b, size_t layer, size_t r) {
    const l2c_kernels *kernels = b->transformer->kernels;
    const l2c_config *c = &b->transformer->model.config;
    const size_t head_dim = (size_t)c->head_dim, n_heads = (size_t)c->n_heads, n_kv_heads = (size_t)c->n_kv_heads;
    const l2c_row *row = &b->rows[r];
    const l2c_kv_layout *layout = &row->session->layout;
    const float *angles = b->angles + r * 2 * head_dim;
    float *q = b->q + r * n_heads * head_dim, *k = b->k + r * n_kv_heads * head_dim;
    const float *v = b->v + r * n_kv_heads * head_dim;
    if (b->transformer->model.rope_halves) {
        join_halves(q, n_heads, head_dim, scratch(team, b));
        join_halves(k, n_kv_heads, head_dim, scratch(team, b));
    }
    kernels->rope(q, angles, n_heads, head_dim);
    kernels->rope(k, angles, n_kv_heads, head_dim);
    const size_t in_page = row->position % L2C_KV_PAGE;
    uint8_t *block = row->session->pages[row->position / L2C_KV_PAGE] + layer * layout->layer +
                     in_page / L2C_KV_BLOCK * layout->block;
    for (size_t h = 0; h < n_kv_heads; h++) {
        kernels->store_kv(block + h * layout->head, layout, in_page % L2C_KV_BLOCK, k + h * head_dim, v + h * head_dim);
    }
}

static void rotate_and_store(const l2c_team *team, l2c_batch *b, size_t layer) {
    l2c_work work = l2c_team_work(team, row_count(b), 1, L2C_LANES);
    for (l2c_range rows; l2c_team_take(&work, &rows);) {
        for (size_t r = rows.from; r < rows.to; r++) {
            rotate_and_store_row(team, b, layer, r);
        }
    }
    l2c_team_wait_for(team, tensor(b, L2C_TENSOR_ATTN_OUTPUT, layer));
}

static l2c_attention attention_of(const l2c_team *team, const l2c_batch *b, const l2c_run *run, size_t layer,
                                  size_t h) {
    const l2c_config *c = &b->transformer->model.config;
    const size_t head_dim = (size_t)c->head_dim, heads = (size_t)c->n_heads / (size_t)c->n_kv_heads;
    const size_t row_stride = (size_t)c->n_heads * head_dim, at = run->from * row_stride + h * heads * head_dim;
    const l2c_session *session = b->rows[run->from].session;
    return (l2c_attention){
        .out = b->attended + at,
        .q = b->q + at,
        .rows = run->count,
        .row_stride = row_stride,
        .heads = heads,
        .layout = &session->layout,
        .pages = session->pages,
        .offset = layer * session->layout.layer + h * session->layout.head,
        .length = b->rows[run->from].position + 1,
        .window = (size_t)c->window,
        .scale = 1.0f / sqrtf((float)head_dim),
        .scratch = scratch(team, b),
    };
}

static l2c_chunks chunks_of(const l2c_batch *b, const l2c_run *run) {
    return l2c_attention_chunks(b->rows[run->from].position + 1, (size_t)b->transformer->model.config.window);
}

static size_t part_floats(const l2c_batch *b) {
    const l2c_config *c = &b->transformer->model.config;
    return l2c_attention_part((size_t)(c->n_heads / c->n_kv_heads), b->rows[0].session->layout.value_stride);
}

/* Whether to share out the chunks of single rows: where the threads would be dealt few heads, and not the same number. */
static bool few_heads(const l2c_team *team, const l2c_batch *b) {
    const size_t n_kv_heads = (size_t)b->transformer->model.config.n_kv_heads, tasks = n_kv_heads * b->n_runs;
    const size_t room = b->parts_floats / (n_kv_heads * part_floats(b));
    size_t chunks = 0;
    if (tasks % (size_t)team->size == 0 || tasks > 4 * (size_t)team->size) {
        return false;
    }
    for (size_t i = 0; i < b->n_runs; i++) {
        const l2c_chunks of_run = chunks_of(b, &b->runs[i]);
        chunks += b->runs[i].count == 1 && !b->runs[i].tiles ? of_run.to - of_run.from : room + 1;
    }
    return chunks > b->n_runs && chunks <= room;
}

static void attend_parts(const l2c_team *team, l2c_batch *b, size_t layer) {
    const l2c_kernels *kernels = b->transformer->kernels;
    const size_t n_kv_heads = (size_t)b->transformer->model.config.n_kv_heads, rank = (size_t)team->rank,
                 size = (size_t)team->size, floats = part_floats(b);
    for (int join = 0; join < 2; join++) {
        size_t part = 0, head = 0;
        for (size_t i = 0; i < b->n_runs; i++) {
            const l2c_chunks chunks = chunks_of(b, &b->runs[i]);
            for (size_t h = 0; h < n_kv_heads; h++, head++) {
                const l2c_attention attention = attention_of(team, b, &b->runs[i], layer, h);
                if (join && head % size == rank) {
                    kernels->attend_join(&attention, b->parts + part * floats);
                }
                for (size_t chunk = chunks.from; chunk < chunks.to; chunk++, part++) {
                    if (!join && part % size == rank) {
                        kernels->attend_part(&attention, chunk, b->parts + part * floats);
                    }
                }
            }
        }
        l2c_team_wait(team);
    }
}

/* attended = softmax(q k^T / sqrt(head_dim)) v, causal: a row sees the positions up to its own */
static void attend(const l2c_team *team, l2c_batch *b, size_t layer) {
    if (few_heads(team, b)) {
        attend_parts(team, b, layer);
        return;
    }
    /* Later rows of a prompt see more positions: the last run of a head is the longest task, and goes first. */
    const l2c_kernels *kernels = b->transformer->kernels;
    l2c_work work = l2c_team_work(team, (size_t)b->transformer->model.config.n_kv_heads * b->n_runs, 1, 1);
    for (l2c_range task; l2c_team_take(&work, &task);) {
        for (size_t t = task.from; t < task.to; t++) {
            const l2c_run *run = &b->runs[b->n_runs - 1 - t % b->n_runs];
            const l2c_attention attention = attention_of(team, b, run, layer, t / b->n_runs);
            (run->tiles ? kernels->attend_tiles : kernels->attend)(&attention);
        }
    }
    l2c_team_wait(team);
}

/* gate = silu(normed @ G^T) * (normed @ U^T), each piece of columns as soon as it is there */
static void feed_forward(const l2c_team *team, l2c_batch *b, size_t layer) {
    const size_t hidden_dim = (size_t)b->transformer->model.config.hidden_dim;
    reduce(team, b, b->normed, L2C_TENSOR_FFN_GATE, layer);
    l2c_work work = l2c_matmul_work(team, tensor(b, L2C_TENSOR_FFN_GATE, layer), row_count(b));
    for (l2c_range columns; l2c_team_take(&work, &columns);) {
        adapted_columns(team, b, b->gate, b->normed, L2C_TENSOR_FFN_GATE, layer, columns, false);
        adapted_columns(team, b, b->up, b->normed, L2C_TENSOR_FFN_UP, layer, columns, false);
        for (size_t r = 0; r < row_count(b); r++) {
            const size_t at = r * hidden_dim + columns.from;
            b->transformer->kernels->swiglu(b->gate + at, b->up + at, columns.to - columns.from);
        }
    }
    l2c_team_wait(team);
}

/* Keeps only the rows whose logits are wanted: x moves up, the counts follow. */
static void keep_wanted(const l2c_team *team, l2c_batch *b) {
    if (team->rank == 0) {
        const size_t dim = (size_t)b->transformer->model.config.dim, rows = row_count(b);
        size_t kept = 0;
        for (size_t r = 0; r < rows; r++) {
            if (b->rows[r].wanted) {
                for (size_t d = 0; d < dim && kept < r; d++) {
                    b->x[kept * dim + d] = b->x[r * dim + d];
                }
                kept++;
            }
        }
        b->prompt = b->wanted_prompt;
        b->generated = b->wanted_generated;
    }
    l2c_team_wait(team);
}

/* Whether to stop before this layer: cancelled, or the slice is over. One thread looks, and all do as it saw. */
static bool interrupted(const l2c_team *team, l2c_batch *b, size_t layer, size_t first) {
    if (team->rank == 0) {
        for (size_t i = 0; i < b->n_spans; i++) {
            b->cancelled |= atomic_load_explicit(&b->spans[i].session->cancelled, memory_order_relaxed);
        }
        b->layer = layer;
        b->paused = !b->cancelled && layer > first && b->slice > 0 && l2c_seconds() - b->started > b->slice;
    }
    l2c_team_wait(team);
    return b->cancelled || b->paused;
}

void l2c_forward(const l2c_team *team, void *batch) {
    l2c_batch *b = batch;
    const l2c_config *c = &b->transformer->model.config;
    const size_t q_dim = (size_t)c->n_heads * (size_t)c->head_dim, n_layers = (size_t)c->n_layers;
    const size_t first = b->layer;
    l2c_team_wait(team); /* all have seen where to begin */
    if (first == 0) {
        embed(team, b);
    }
    for (size_t layer = first; layer < n_layers; layer++) {
        if (interrupted(team, b, layer, first)) {
            return;
        }
        normalize(team, b, vector(b, L2C_TENSOR_ATTN_NORM, layer), tensor(b, L2C_TENSOR_ATTN_Q, layer));
        reduce(team, b, b->normed, L2C_TENSOR_ATTN_Q, layer);
        adapted(team, b, b->q, b->normed, L2C_TENSOR_ATTN_Q, layer, false);
        adapted(team, b, b->k, b->normed, L2C_TENSOR_ATTN_K, layer, false);
        adapted(team, b, b->v, b->normed, L2C_TENSOR_ATTN_V, layer, false);
        l2c_team_wait(team);
        rotate_and_store(team, b, layer);
        attend(team, b, layer);
        convert(team, b, b->attended, q_dim, tensor(b, L2C_TENSOR_ATTN_OUTPUT, layer));
        reduce(team, b, b->attended, L2C_TENSOR_ATTN_OUTPUT, layer);
        adapted(team, b, b->x, b->attended, L2C_TENSOR_ATTN_OUTPUT, layer, true);
        l2c_team_wait(team);

        normalize(team, b, vector(b, L2C_TENSOR_FFN_NORM, layer), tensor(b, L2C_TENSOR_FFN_GATE, layer));
        feed_forward(team, b, layer);
        convert(team, b, b->gate, (size_t)c->hidden_dim, tensor(b, L2C_TENSOR_FFN_DOWN, layer));
        reduce(team, b, b->gate, L2C_TENSOR_FFN_DOWN, layer);
        adapted(team, b, b->x, b->gate, L2C_TENSOR_FFN_DOWN, layer, true);
        l2c_team_wait(team);
    }
    keep_wanted(team, b);
    normalize(team, b, vector(b, L2C_TENSOR_OUTPUT_NORM, 0), tensor(b, L2C_TENSOR_OUTPUT, 0));
    product(team, b, b->logits, b->normed, tensor(b, L2C_TENSOR_OUTPUT, 0), false);
}
