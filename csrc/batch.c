/* batch.c: checks a step, lays its rows out, and runs the forward over them. */
#include "batch.h"

#include "error.h"

#include <stdlib.h>

enum {
    ALIGNMENT = 64,
    MAX_THREADS = 1024,
    MOST_CHUNKS = 1024,  /* of attention that are shared out */
    HUGE_FROM = 8 << 20, /* bytes of work space: rows of y are far apart, each in a page of its own */
};

/* A thread earns its barriers (some 0.3 us each, eight a layer) only with that many multiply-adds a step. */
static const double MACS_PER_THREAD = 1.5e6;
/* The same for sampling, whose team only begins and ends together. */
enum { LOGITS_PER_THREAD = 1 << 15 };
/* Generated rows that pay as prompts: with float weights, with blocks. */
enum { MANY_ROWS = 16, MANY_ROWS_OF_BLOCKS = 48 };

/* Hands out aligned parts of one allocation; with memory NULL it only measures. */
typedef struct arena {
    char *memory;
    size_t used;
} arena;

static void *part(arena *a, size_t count, size_t width) {
    void *p = a->memory ? a->memory + a->used : NULL;
    const size_t left = SIZE_MAX / 2 - a->used; /* sums past half of the address space stay there */
    a->used += count > left / width ? left : l2c_round_up(count * width, ALIGNMENT);
    return p;
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void lay_out(l2c_batch *b, arena *a, const l2c_config *config, size_t rows, size_t threads) {
    const size_t dim = (size_t)config->dim, hidden_dim = (size_t)config->hidden_dim,
                 head_dim = (size_t)config->head_dim;
    const size_t q_dim = (size_t)config->n_heads * head_dim, kv_dim = (size_t)config->n_kv_heads * head_dim;
    const size_t group_heads = (size_t)config->n_heads / (size_t)config->n_kv_heads;
    b->rows = part(a, rows, sizeof *b->rows);
    b->runs = part(a, rows, sizeof *b->runs);
    b->x = part(a, rows * dim, sizeof(float));
    b->normed = part(a, rows * dim, sizeof(float));
    b->q = part(a, rows * q_dim, sizeof(float));
    b->k = part(a, rows * kv_dim, sizeof(float));
    b->v = part(a, rows * kv_dim, sizeof(float));
    b->attended = part(a, rows * q_dim, sizeof(float));
    b->gate = part(a, rows * hidden_dim, sizeof(float));
    b->up = part(a, rows * hidden_dim, sizeof(float));
    b->low = part(a, rows * (size_t)config->lora_rank, sizeof(float));
    b->angles = part(a, rows * 2 * head_dim, sizeof(float));
    const size_t widest = larger(larger(dim, q_dim), hidden_dim);
    const bool tiles = config->below_f32 && l2c_kernels_get(NULL)->gemm_tiles; /* the best level has them if any has */
    if (config->group_size) {
        const size_t group = (size_t)config->group_size;
        b->q8.stride = l2c_round_up(widest, L2C_Q8_CHUNK);
        b->q8.scale_stride = (widest + group - 1) / group + 1; /* one more: half chunks read in pairs */
        b->q8.values = part(a, rows * b->q8.stride, 1);
        b->q8.bias = part(a, rows * b->q8.stride / 4, sizeof(int32_t));
        b->q8.scales = part(a, rows * b->q8.scale_stride, sizeof(float));
    }
    if (config->blocks) {
        const size_t of_row = l2c_round_up((widest + L2C_SUPER - 1) / L2C_SUPER, 2);
        const size_t blocks = of_row * l2c_round_up(rows, L2C_LANES); /* tiles have sixteen rows */
        b->s8.values = part(a, blocks * L2C_SUPER, 1);
        b->s8.of_16 = part(a, blocks * L2C_STEP_LANES, sizeof(float));
        b->s8.of_32 = part(a, blocks / 2 * L2C_STEP_LANES, sizeof(float));
        b->s8.turned = part(a, smaller(rows, L2C_FEW) * of_row / 2 * L2C_TURNED, 1);
        b->s16.values = part(a, blocks * L2C_SUPER, sizeof(int16_t));
        b->s16.scales = part(a, blocks, sizeof(float));
        b->s16.sums = part(a, blocks * L2C_S16_SUMS, sizeof(float));
    }
    const size_t panel = larger(L2C_PANEL_FLOATS, config->blocks ? l2c_quant_panel(widest) : 0);
    b->scratch_floats = l2c_round_up(
        larger(larger(panel, widest), l2c_attention_scratch(group_heads, l2c_round_up(head_dim, L2C_LANES))),
        L2C_LANES);
    if (tiles) {
        b->tiles =
            part(a, l2c_round_up(rows, L2C_TILE_ROWS) / L2C_TILE_ROWS * l2c_tile_block(widest), sizeof *b->tiles);
        b->scratch_floats =
            larger(b->scratch_floats, larger(L2C_TILES_FLOATS, l2c_attention_tiles_scratch(group_heads, head_dim)));
    }
    b->scratch = part(a, threads * b->scratch_floats, sizeof(float));
    const l2c_chunks chunks = l2c_attention_chunks((size_t)config->context, (size_t)config->window);
    b->parts_floats = smaller(chunks.to - chunks.from, MOST_CHUNKS) * (size_t)config->n_kv_heads *
                      l2c_attention_part(group_heads, l2c_round_up(head_dim, L2C_LANES));
    b->parts = part(a, b->parts_floats, sizeof(float));
}

size_t l2c_batch_bytes(const l2c_config *config, int32_t rows, int threads) {
    l2c_batch unused;
    arena measure = {0};
    lay_out(&unused, &measure, config, (size_t)rows, (size_t)threads);
    return measure.used;
}

int l2c_batch_create(l2c_batch **out, const l2c_transformer *transformer, int32_t rows, int threads, l2c_error *error) {
    *out = NULL;
    if (rows < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a batch of %ld rows, expected at least 1", (long)rows);
    }
    if (threads < 1 || threads > MAX_THREADS) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "%d threads, expected 1 to %d", threads, MAX_THREADS);
    }
    const size_t bytes = l2c_batch_bytes(&transformer->model.config, rows, threads);
    l2c_batch *b = *out = calloc(1, sizeof **out);
    if (b) {
        b->transformer = transformer;
        b->capacity = rows;
        b->threads = threads;
        b->memory = l2c_pages_alloc(bytes);
        b->memory_bytes = bytes;
    }
    if (!b || !b->memory) {
        l2c_batch_free(out);
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of work space", bytes);
    }
    if (bytes >= HUGE_FROM) {
        l2c_pages_huge(b->memory, bytes);
    }
    lay_out(b, &(arena){.memory = b->memory}, &transformer->model.config, (size_t)rows, (size_t)threads);
    return L2C_OK;
}

static size_t logits_bytes(const l2c_batch *b, size_t rows) {
    return rows * (size_t)b->transformer->model.config.vocab_size * sizeof(float);
}

static void free_logits(l2c_batch *b) {
    l2c_pages_free(b->own_logits, logits_bytes(b, b->own_rows));
    b->own_logits = NULL;
    b->own_rows = 0;
}

/* Room for the logits of so many rows at least. */
static int grow_logits(l2c_batch *b, size_t rows, l2c_error *error) {
    if (rows > b->own_rows) {
        const size_t most = (size_t)b->capacity, doubled = rows > most / 2 ? most : 2 * rows;
        free_logits(b);
        b->own_logits = l2c_pages_alloc(logits_bytes(b, doubled));
        if (!b->own_logits) {
            return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of logits", logits_bytes(b, doubled));
        }
        b->own_rows = doubled;
    }
    return L2C_OK;
}

void l2c_batch_free(l2c_batch **batch) {
    if (*batch) {
        l2c_pages_free((*batch)->memory, (*batch)->memory_bytes);
        free_logits(*batch);
        free(*batch);
    }
    *batch = NULL;
}

int32_t l2c_batch_rows(const l2c_batch *batch) {
    return batch->capacity;
}

static int check_span(const l2c_batch *b, const l2c_span *span, size_t index, l2c_error *error) {
    const l2c_session *s = span->session;
    const int32_t vocab_size = b->transformer->model.config.vocab_size;
    if (s->transformer != b->transformer) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "span %zu: the session belongs to another transformer", index);
    }
    if (span->count < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "span %zu: %ld tokens, expected at least 1", index,
                        (long)span->count);
    }
    if (span->count > s->context - s->position) {
        return l2c_fail(error, L2C_ERROR_CONTEXT,
                        "%ld tokens at position %ld do not fit into a context of %ld positions", (long)span->count,
                        (long)s->position, (long)s->context);
    }
    for (int32_t i = 0; i < span->count; i++) {
        if (span->tokens[i] < 0 || span->tokens[i] >= vocab_size) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "token %ld is %ld, expected 0 to %ld", (long)i,
                            (long)span->tokens[i], (long)vocab_size - 1);
        }
    }
    return L2C_OK;
}

static int check_spans(const l2c_batch *b, const l2c_span *spans, size_t n_spans, l2c_error *error) {
    int64_t rows = 0;
    if (n_spans == 0) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a step without tokens");
    }
    for (size_t i = 0; i < n_spans; i++) {
        const int status = check_span(b, &spans[i], i, error);
        if (status != L2C_OK) {
            return status;
        }
        if (i && spans[i].role == L2C_ROLE_PROMPT && spans[i - 1].role == L2C_ROLE_GENERATED) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "span %zu: a prompt span after a generated one", i);
        }
        rows += spans[i].count;
    }
    if (rows > b->capacity) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a step of %lld rows in a batch of %ld", (long long)rows,
                        (long)b->capacity);
    }
    return L2C_OK;
}

static l2c_want want_of(const l2c_batch *b, size_t span) {
    if (!b->samplers) {
        return b->spans[span].want;
    }
    return b->samplers[span] ? L2C_WANT_LAST : L2C_WANT_NONE;
}

/* Whether prompts meet integer types in bytes, as generated rows always do. */
static bool takes_bytes(const l2c_batch *b) {
    const l2c_transformer *t = b->transformer;
    return t->model.config.blocks && !t->kernels->gemm_tiles && (b->throughput || !t->kernels->takes_words);
}

/* Whether the generated rows go as prompts. */
static bool takes_many(const l2c_batch *b, const l2c_span *spans, size_t n_spans) {
    size_t rows = 0;
    for (size_t i = 0; i < n_spans; i++) {
        rows += spans[i].role == L2C_ROLE_GENERATED ? (size_t)spans[i].count : 0;
    }
    const size_t many = b->transformer->model.config.blocks ? MANY_ROWS_OF_BLOCKS : MANY_ROWS;
    return b->throughput && rows >= many && !takes_bytes(b);
}

static void set_rows(l2c_batch *b, const l2c_span *spans, size_t n_spans) {
    l2c_row *row = b->rows;
    const l2c_config *c = &b->transformer->model.config;
    const size_t heads = (size_t)c->n_heads / (size_t)c->n_kv_heads;
    const bool many = takes_many(b, spans, n_spans);
    b->bytes = takes_bytes(b);
    b->n_runs = 0;
    b->prompt = b->generated = b->wanted_prompt = b->wanted_generated = 0;
    for (size_t i = 0; i < n_spans; i++) {
        const l2c_span *s = &spans[i];
        const bool prompt = many || s->role == L2C_ROLE_PROMPT;
        const l2c_want want = want_of(b, i);
        const size_t first = (size_t)(row - b->rows), count = (size_t)s->count;
        const bool tiles =
            prompt && b->tiles && b->transformer->kernels->attend_tiles && s->session->layout.type != L2C_KV_F32;
        const size_t most = l2c_attention_rows(heads, tiles);
        for (size_t from = 0; from < count; from += most) {
            b->runs[b->n_runs++] = (l2c_run){first + from, smaller(most, count - from), tiles};
        }
        for (int32_t j = 0; j < s->count; j++, row++) {
            row->session = s->session;
            row->position = (size_t)(s->session->position + j);
            row->token = s->tokens[j];
            row->wanted = want == L2C_WANT_ALL || (want == L2C_WANT_LAST && j == s->count - 1);
            *(prompt ? &b->prompt : &b->generated) += 1;
            *(prompt ? &b->wanted_prompt : &b->wanted_generated) += row->wanted;
        }
    }
}

static int begin(l2c_batch *b, const l2c_span *spans, size_t n_spans, float *logits, l2c_error *error) {
    const int status = check_spans(b, spans, n_spans, error);
    if (status != L2C_OK) {
        return status;
    }
    for (size_t i = 0; i < n_spans; i++) {
        const int reserved = l2c_session_reserve(spans[i].session, spans[i].count, error);
        if (reserved != L2C_OK) {
            return reserved;
        }
    }
    set_rows(b, spans, n_spans);
    b->logits = logits;
    if (b->samplers) {
        const int grown = grow_logits(b, b->wanted_prompt + b->wanted_generated, error);
        if (grown != L2C_OK) {
            return grown;
        }
        b->logits = b->own_logits;
    }
    b->layer = 0;
    b->cancelled = false;
    return L2C_OK;
}

/* The rows of logits that are wanted are in the order of the spans that have samplers; dealt out in turn. */
static void sample(const l2c_team *team, void *batch) {
    const l2c_batch *b = batch;
    const size_t vocab_size = (size_t)b->transformer->model.config.vocab_size;
    size_t row = 0;
    for (size_t i = 0; i < b->n_spans; i++) {
        if (b->samplers[i]) {
            if (row % (size_t)team->size == (size_t)team->rank) {
                b->tokens[i] = l2c_sampler_choose(b->samplers[i], b->logits + row * vocab_size);
            }
            row++;
        }
    }
}

/* From the layer where the step stands to its end, or to the end of the slice. */
static int advance(l2c_batch *b, l2c_error *error) {
    const double macs = l2c_transformer_token_macs(b->transformer) * (double)(b->prompt + b->generated);
    const int useful = macs < MACS_PER_THREAD * b->threads ? (int)(macs / MACS_PER_THREAD) + 1 : b->threads;
    b->paused = false;
    b->started = b->slice > 0 ? l2c_seconds() : 0;
    l2c_team_run(useful < b->threads ? useful : b->threads, l2c_forward, b);
    if (b->paused) {
        return L2C_PAUSED;
    }
    if (b->cancelled) {
        return l2c_fail(error, L2C_ERROR_CANCELLED, "the step was cancelled");
    }
    for (size_t i = 0; i < b->n_spans; i++) {
        b->spans[i].session->position += b->spans[i].count;
    }
    if (b->samplers) {
        const size_t logits =
            (b->wanted_prompt + b->wanted_generated) * (size_t)b->transformer->model.config.vocab_size;
        const size_t team = logits / LOGITS_PER_THREAD + 1;
        l2c_team_run(team < (size_t)b->threads ? (int)team : b->threads, sample, b);
    }
    return L2C_OK;
}

/* The step is over, unless it only paused. A failed one has used up the cancellation of its sessions, and gives back the
 * pages that were for its rows. */
static int finish(l2c_batch *b, int status) {
    if (status != L2C_PAUSED) {
        for (size_t i = 0; i < b->n_spans && status != L2C_OK; i++) {
            atomic_store(&b->spans[i].session->cancelled, false);
            l2c_session_trim(b->spans[i].session);
        }
        b->spans = NULL;
        b->n_spans = 0;
        atomic_store(&b->busy, false);
    }
    return status;
}

static int step(l2c_batch *b, int32_t *tokens, const l2c_span *spans, l2c_sampler *const *samplers, size_t n_spans,
                float *logits, l2c_error *error) {
    if (atomic_exchange(&b->busy, true)) {
        return l2c_fail(error, L2C_ERROR_BUSY, "the batch is inside another step");
    }
    b->spans = spans;
    b->n_spans = n_spans;
    b->samplers = samplers;
    b->tokens = tokens;
    const int status = begin(b, spans, n_spans, logits, error);
    return finish(b, status == L2C_OK ? advance(b, error) : status);
}

int l2c_batch_step(l2c_batch *batch, const l2c_span *spans, size_t n_spans, float *logits, l2c_error *error) {
    return step(batch, NULL, spans, NULL, n_spans, logits, error);
}

int l2c_batch_step_sample(l2c_batch *batch, int32_t *tokens, const l2c_span *spans, l2c_sampler *const *samplers,
                          size_t n_spans, l2c_error *error) {
    return step(batch, tokens, spans, samplers, n_spans, NULL, error);
}

void l2c_batch_set_slice(l2c_batch *batch, double seconds) {
    batch->slice = seconds;
}

void l2c_batch_set_throughput(l2c_batch *batch, bool throughput) {
    batch->throughput = throughput;
}

int l2c_batch_resume(l2c_batch *batch, l2c_error *error) {
    if (!batch->spans) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "no step is paused");
    }
    return finish(batch, advance(batch, error));
}

void l2c_batch_abandon(l2c_batch *batch) {
    if (batch->spans) {
        finish(batch, L2C_ERROR_CANCELLED);
    }
}
