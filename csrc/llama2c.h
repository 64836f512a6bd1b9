/* llama2c.h: the public face of the C core.
 *
 *   file bytes --reader--> Transformer (immutable) <-- Session (one KV timeline) --step--> logits --Sampler--> token id
 *   text <--Tokenizer--> token ids
 *
 * Objects are opaque. create/open hand a new object back through `**out` and leave NULL there on failure; free takes
 * the address of the handle, accepts NULL and half-built objects, and clears it. A fallible call returns L2C_OK (0) or
 * a negative l2c_status and fills the caller's l2c_error. Nothing here prints, exits, or aborts. */
#ifndef LLAMA2C_H
#define LLAMA2C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define L2C_VERSION "0.1.0"

typedef enum l2c_status {
    L2C_PAUSED = 1, /* no error: a step's time slice is over, see l2c_batch_set_slice */
    L2C_OK = 0,
    L2C_ERROR_MEMORY = -1,      /* out of memory */
    L2C_ERROR_IO = -2,          /* the system refused; l2c_error.system holds errno */
    L2C_ERROR_FORMAT = -3,      /* the file's content is not what its format demands */
    L2C_ERROR_UNSUPPORTED = -4, /* well-formed, but not something this build computes */
    L2C_ERROR_ARGUMENT = -5,    /* a caller's value is out of range */
    L2C_ERROR_CONTEXT = -6,     /* the tokens do not fit into the session's context */
    L2C_ERROR_BUSY = -7,        /* the batch is inside another step */
    L2C_ERROR_CANCELLED = -8,   /* l2c_session_cancel was called */
    L2C_ERROR_EXHAUSTED = -9,   /* all pages of the pool are in use */
} l2c_status;

typedef struct l2c_error {
    l2c_status status;
    int system;        /* errno of L2C_ERROR_IO, else 0 */
    char message[400]; /* one line, no newline; never contains the file's path: the caller knows it */
} l2c_error;

/* ---- CPU: instruction-set levels, lowest first. For finite numbers all give the same bits, but for the prompt rows of
 * level "amx", which are products of bf16 (but with llama2.c's int8 groups). ---- */

/* Names of all levels compiled in and runnable here, lowest first; NULL past the end. */
const char *l2c_isa_name(size_t index);
/* Highest runnable level. */
const char *l2c_isa_best(void);

/* ---- Transformer: configuration and weights of one model; read-only after open, shared by any number of threads ---- */

typedef struct l2c_transformer l2c_transformer;

typedef struct l2c_config {
    int32_t dim;        /* width of the residual stream */
    int32_t hidden_dim; /* width of the feed-forward layer */
    int32_t n_layers;
    int32_t n_heads;    /* query heads */
    int32_t n_kv_heads; /* key/value heads; divides n_heads */
    int32_t head_dim;   /* of queries, keys and values; dim / n_heads unless the file says otherwise */
    int32_t vocab_size;
    int32_t context;     /* positions the model was trained for */
    int32_t group_size;  /* of llama2.c version 2: int8 values that share an f32 scale; else 0 */
    bool tied;           /* the classifier is the embedding table */
    bool blocks;         /* some matrices are of GGUF's integer types */
    bool below_f32;      /* some matrices are of these or of 16 bits */
    int32_t window;      /* positions that a token sees, its own the last; 0: all */
    int32_t lora_rank;   /* the most values that adapters make of an input: sum of the ranks for it; 0: no adapters */
    const char *kv_type; /* of the keys and values that sessions hold: "f32", "f16" or "q8" */
    float norm_eps;
    double rope_theta;
    const char *weight_type; /* of most of the weights: "F32", "Q8" (llama2.c version 2), "Q4_K", ... */
    const char *format;      /* "llama2.c v0", "llama2.c v1", "llama2.c v2", "GGUF v2", "GGUF v3", or a table's own */
} l2c_config;

/* A low-rank adapter of one matrix of a layer: its product becomes x @ W^T + (x @ A^T) @ B^T, in f32 whatever W's type. */
typedef struct l2c_adapter {
    const char *tensor; /* "attn_q", ..., "ffn_down" */
    int32_t layer;
    int32_t rows, cols, rank;
    const float *a; /* [rank][cols of W] */
    const float *b; /* [rows of W][rank], scaled */
} l2c_adapter;

typedef struct l2c_open_options {
    const char *isa;   /* level by name; NULL: the best */
    bool no_mmap;      /* read the file into memory instead of mapping it */
    double rope_theta; /* 0: the file's own (10000 where it has none) */
    /* "f32"; "f16"; "q8": int8 with a scale for each position and head. NULL: f32 for llama2.c's files and where most of
     * the weights are F32, else f16. */
    const char *kv_type;
    const l2c_adapter *adapters; /* [n_adapters], copied; several of one matrix add up */
    size_t n_adapters;
} l2c_open_options;

/* What a file is, without mapping its weights. */
int l2c_config_read(l2c_config *out, const char *path, l2c_error *error);
/* `path` is UTF-8. */
int l2c_transformer_open(l2c_transformer **out, const char *path, const l2c_open_options *options, l2c_error *error);

typedef struct l2c_table_entry {
    const char *name;    /* what the file calls the tensor, for messages */
    const char *role;    /* "token_embd", "attn_q", ...: see l2c_transformer_row */
    const char *type;    /* GGUF's name of it: "F32", "F16", "BF16", ... */
    int32_t layer;       /* 0 for a tensor that no layer owns */
    size_t file;         /* index of the file that holds it */
    uint64_t offset;     /* in that file, a multiple of the size of its floats */
    uint64_t rows, cols; /* a norm is one row */
} l2c_table_entry;

/* A model in files of a format that the core does not read: the caller has read their headers and tells what lies where. */
typedef struct l2c_table {
    const char *const *paths; /* [n_files] UTF-8 */
    size_t n_files;
    const l2c_table_entry *entries; /* [n_entries] each tensor of the model once, in any order; no "output" if tied */
    size_t n_entries;
    l2c_config config;       /* but for what follows from the entries: types, group_size and kv_type */
    double rope_factor;      /* positions are divided by it, 1: as they are */
    const float *rope_freqs; /* [head_dim / 2] divisors of RoPE's frequencies, NULL: none */
    /* Of a head's rows in attn_q and attn_k RoPE turns i with i + head_dim / 2, not 2 i with 2 i + 1 as in GGUF. */
    bool rope_halves;
} l2c_table;

/* Nothing of the table is believed: each entry is held against the size of its file and the shape that the configuration
 * demands, and none may be missing or there twice. Weights are mapped as they lie; norms that are not F32 are converted.
 * The table is not needed afterwards. */
int l2c_transformer_open_table(l2c_transformer **out, const l2c_table *table, const l2c_open_options *options,
                               l2c_error *error);
void l2c_transformer_free(l2c_transformer **transformer);
const l2c_config *l2c_transformer_config(const l2c_transformer *transformer);
const char *l2c_transformer_isa(const l2c_transformer *transformer);
/* [head_dim / 2] of RoPE, scaling included: radians that each pair of a head turns from one position to the next. */
const double *l2c_transformer_frequencies(const l2c_transformer *transformer);
/* Bytes of the weights, adapters included; bytes that one generated token reads of them (all, less the unread rows of the
 * embedding). */
size_t l2c_transformer_weight_bytes(const l2c_transformer *transformer);
size_t l2c_transformer_token_bytes(const l2c_transformer *transformer);
/* Multiply-adds of the weight matrices for one token, classifier and adapters included. */
double l2c_transformer_token_macs(const l2c_transformer *transformer);

/* One row of a weight matrix (or a whole norm, row 0) as f32. Tensor names are GGUF's: "token_embd", "output",
 * "output_norm", and for each layer "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
 * "ffn_up", "ffn_down". Rows of "attn_q" and "attn_k" stand in GGUF's order, too: the two that RoPE turns side by side,
 * whatever the order of the file. out NULL: only the shape is told. */
int l2c_transformer_row(const l2c_transformer *transformer, const char *tensor, int32_t layer, int64_t row, float *out,
                        int64_t *rows, int64_t *cols, l2c_error *error);

/* Bytes of keys and values of a session that is full (context positions, in whole pages), and bytes that l2c_batch_create
 * will reserve, for such a model; SIZE_MAX when they exceed it. */
size_t l2c_session_bytes(const l2c_config *config, int32_t context);
size_t l2c_batch_bytes(const l2c_config *config, int32_t rows, int threads);

/* ---- Pool: memory of keys and values, in pages ---- */

typedef struct l2c_pool l2c_pool;

typedef struct l2c_pool_stats {
    size_t positions;  /* of a page */
    size_t page_bytes; /* keys and values of all layers for so many positions */
    size_t limit;      /* pages, 0: any number */
    size_t used;       /* pages that a session holds */
    size_t shared;     /* of these, pages that several sessions hold */
} l2c_pool_stats;

/* Pages for the sessions of one transformer, which must outlive it; `limit` at most (0: any number). They are taken from
 * the system when first needed; what a session gives back is kept for the next one. Any threads may use sessions of one
 * pool. Freed, it lives on until its last session is. */
int l2c_pool_create(l2c_pool **out, const l2c_transformer *transformer, size_t limit, l2c_error *error);
void l2c_pool_free(l2c_pool **pool);
void l2c_pool_stat(l2c_pool_stats *out, const l2c_pool *pool);

/* ---- Session: one timeline of keys and values ---- */

typedef struct l2c_session l2c_session;

/* Room for `context` positions; a step takes the pages that it needs before it computes. The transformer must outlive the
 * session. _create: with a pool of its own, without a limit. */
int l2c_session_create(l2c_session **out, const l2c_transformer *transformer, int32_t context, l2c_error *error);
int l2c_session_create_in(l2c_session **out, l2c_pool *pool, int32_t context, l2c_error *error);
/* A session that has taken the first `position` tokens of another, which the caller has claimed. All their pages are
 * shared, none is copied; of the two, whoever writes first to a page that both hold takes a copy of it, which can only
 * be the last one. */
int l2c_session_fork(l2c_session **out, const l2c_session *session, int32_t position, l2c_error *error);
void l2c_session_free(l2c_session **session);
int32_t l2c_session_position(const l2c_session *session); /* tokens taken so far */
int32_t l2c_session_context(const l2c_session *session);
/* Claims the session for one thread and one operation of any number of steps; false when another has it. Steps and
 * rewinds are for the thread that has it. */
bool l2c_session_enter(l2c_session *session);
void l2c_session_leave(l2c_session *session);
/* Forget all tokens from `position` on; pages without any other go back to the pool. */
int l2c_session_rewind(l2c_session *session, int32_t position, l2c_error *error);
/* Make the step that is running, or else the next one, end with L2C_ERROR_CANCELLED within a layer. Any thread may call.
 * A call that comes after the running step's last layer began counts for the next one. */
void l2c_session_cancel(l2c_session *session);

/* ---- Batch: the work space of a step ---- */

typedef struct l2c_batch l2c_batch;

/* Prompt rows and generated rows may be computed by two numeric paths; a row's result depends on its role, never on
 * thread count, on its companions in the batch, or on how a prompt is cut into steps. */
typedef enum l2c_role { L2C_ROLE_PROMPT, L2C_ROLE_GENERATED } l2c_role;
typedef enum l2c_want { L2C_WANT_NONE, L2C_WANT_LAST, L2C_WANT_ALL } l2c_want;

typedef struct l2c_span {
    l2c_session *session;  /* distinct in one step, and claimed by the caller */
    const int32_t *tokens; /* [count] ids appended to the session */
    int32_t count;
    l2c_role role;
    l2c_want want; /* rows whose logits are computed */
} l2c_span;

/* Work space for steps of up to `rows` rows on up to `threads` threads. The transformer must outlive it. */
int l2c_batch_create(l2c_batch **out, const l2c_transformer *transformer, int32_t rows, int threads, l2c_error *error);
void l2c_batch_free(l2c_batch **batch);
int32_t l2c_batch_rows(const l2c_batch *batch);
/* One forward over all rows of all spans; the prompt spans come before the generated ones. logits: [wanted rows, in
 * span order][vocab_size], written in full or, on failure, not to be read; after a failure every session is at the
 * position it had before. One step at a time. */
int l2c_batch_step(l2c_batch *batch, const l2c_span *spans, size_t n_spans, float *logits, l2c_error *error);
/* With a slice, a step that takes longer returns L2C_PAUSED at the end of a layer, so that a caller can look at signals;
 * l2c_batch_resume goes on (and may pause again), l2c_batch_abandon gives the step up. Until then spans, logits and the
 * sessions belong to the step. 0: never pause, the default. */
void l2c_batch_set_slice(l2c_batch *batch, double seconds);
int l2c_batch_resume(l2c_batch *batch, l2c_error *error);
/* Whatever products are fastest, whose rows may depend on their companions: prompts meet integer types in bytes, and
 * many generated rows go as prompts where that is faster. Not during a step. */
void l2c_batch_set_throughput(l2c_batch *batch, bool throughput);
void l2c_batch_abandon(l2c_batch *batch);
/* l2c_batch_step, and a token from the last row of each span that has a sampler: tokens[i] is what l2c_sampler_sample
 * would give, untouched where samplers[i] is NULL. `want` follows from the samplers; they are distinct and claimed by the
 * caller. The arrays are [n_spans] and belong to the step until it is over. On failure no random number is drawn. */
typedef struct l2c_sampler l2c_sampler;
int l2c_batch_step_sample(l2c_batch *batch, int32_t *tokens, const l2c_span *spans, l2c_sampler *const *samplers,
                          size_t n_spans, l2c_error *error);

/* ---- Sampler: logits to token id ---- */

/* temperature 0, or so small that its inverse is infinite: the most probable token, no random number drawn. top_p outside (0, 1): off. seed is not 0. isa NULL:
 * the best. */
int l2c_sampler_create(l2c_sampler **out, int32_t vocab_size, float temperature, float top_p, uint64_t seed,
                       const char *isa, l2c_error *error);
void l2c_sampler_free(l2c_sampler **sampler);
/* Claims the sampler for one thread; false when another has it. Everything below is for the thread that has it. */
bool l2c_sampler_enter(l2c_sampler *sampler);
void l2c_sampler_leave(l2c_sampler *sampler);
/* [vocab_size], the sampler's own: where a step puts the logits to sample from. */
float *l2c_sampler_logits(l2c_sampler *sampler);
/* The id that the logits and the next random number give; overwrites the logits. -1, and no random number is drawn, if
 * one of them is NaN or +infinity, or all are -infinity. */
int32_t l2c_sampler_sample(l2c_sampler *sampler);
/* The same for logits [vocab_size] that lie elsewhere. */
int32_t l2c_sampler_choose(l2c_sampler *sampler, float *logits);
/* Draw and drop `count` random numbers, as `count` samples at temperature > 0 would. */
void l2c_sampler_skip(l2c_sampler *sampler, int32_t count);
uint64_t l2c_sampler_state(const l2c_sampler *sampler);
void l2c_sampler_set_state(l2c_sampler *sampler, uint64_t state);

/* Natural logarithm of the probability that logits [vocab_size] give a token; overwrites them. */
double l2c_log_probability(const l2c_transformer *transformer, float *logits, int32_t token);

/* ---- Tokenizer: UTF-8 bytes to token ids and back ---- */

typedef struct l2c_tokenizer l2c_tokenizer;

typedef enum l2c_token_type { /* numbers of SentencePiece */
                              L2C_TOKEN_NORMAL = 1,
                              L2C_TOKEN_UNKNOWN = 2,
                              L2C_TOKEN_CONTROL = 3,
                              L2C_TOKEN_USER_DEFINED = 4,
                              L2C_TOKEN_UNUSED = 5,
                              L2C_TOKEN_BYTE = 6,
} l2c_token_type;

typedef struct l2c_token_table {
    int32_t count;
    const char *const *pieces; /* [count] bytes of each piece, spaces as spaces (not U+2581) */
    const int32_t *lengths;    /* [count] in bytes */
    const float *scores;       /* [count] the higher merges first */
    const uint8_t *types;      /* [count] l2c_token_type */
    int32_t unk, bos, eos;     /* ids, -1 where there is none */
    bool add_space_prefix;     /* put a space before a non-empty text */
} l2c_token_table;

/* Copies the table. */
int l2c_tokenizer_create(l2c_tokenizer **out, const l2c_token_table *table, l2c_error *error);

typedef struct l2c_bpe_table { /* byte-level BPE */
    int32_t count;
    const char *const *pieces; /* [count] in GPT-2's alphabet of bytes if normal, as in GGUF, else as they are */
    const int32_t *lengths;    /* [count] in bytes */
    const uint8_t *types;      /* [count] l2c_token_type, none a byte */
    int32_t n_merges;
    const char *const *merges;    /* [n_merges] two pieces with a space between, the first merge goes first. NULL, as
                                     in tiktoken's files: pieces are bytes, what joins to the lowest id goes first */
    const int32_t *merge_lengths; /* [n_merges] in bytes */
    const char *pre;              /* pre-tokenizer: "gpt-2", "llama-bpe" ("llama3" is the same), "qwen2", "smollm" */
    int32_t bos, eos;             /* ids, -1 where there is none */
    bool ignore_merges;           /* a pre-token that is a piece becomes it without merges */
} l2c_bpe_table;

/* Copies the table. */
int l2c_tokenizer_create_bpe(l2c_tokenizer **out, const l2c_bpe_table *table, l2c_error *error);
/* llama2.c's tokenizer.bin, from its bytes; types are inferred (0 unk, 1 bos, 2 eos, "<0xXX>" bytes). */
int l2c_tokenizer_read_bin(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error);
/* The vocabulary in a GGUF file's metadata, from its bytes. */
int l2c_tokenizer_read_gguf(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error);
void l2c_tokenizer_free(l2c_tokenizer **tokenizer);
int32_t l2c_tokenizer_count(const l2c_tokenizer *tokenizer);
int32_t l2c_tokenizer_unk(const l2c_tokenizer *tokenizer);
int32_t l2c_tokenizer_bos(const l2c_tokenizer *tokenizer);
int32_t l2c_tokenizer_eos(const l2c_tokenizer *tokenizer);
bool l2c_tokenizer_add_space_prefix(const l2c_tokenizer *tokenizer);
/* Whether BOS begins and EOS ends a text, unless the caller says otherwise. */
bool l2c_tokenizer_add_bos(const l2c_tokenizer *tokenizer);
bool l2c_tokenizer_add_eos(const l2c_tokenizer *tokenizer);
/* Ids of `size` bytes of UTF-8; BOS and EOS are the caller's. `special`: the spelling of a control token in the text
 * becomes that token, and what follows it begins anew; else it is text like any other. A user-defined token always
 * becomes itself. *ids is malloc'd for the caller, who calls l2c_ids_free. */
int l2c_tokenizer_encode(const l2c_tokenizer *tokenizer, int32_t **ids, size_t *count, const char *text, size_t size,
                         bool special, l2c_error *error);
void l2c_ids_free(int32_t **ids);
/* The bytes of one token: a piece as it stands, the byte of a byte token, nothing for a control token or an id out of
 * range. The pointer lives as long as the tokenizer. */
const char *l2c_tokenizer_bytes(const l2c_tokenizer *tokenizer, int32_t id, size_t *size);
/* The piece as the vocabulary spells it (byte-level BPE: the bytes that are meant), its score and type. NULL for an id
 * out of range. */
const char *l2c_tokenizer_piece(const l2c_tokenizer *tokenizer, int32_t id, size_t *size, float *score,
                                l2c_token_type *type);
/* Id of an exact piece of any type; -1 if none. */
int32_t l2c_tokenizer_find(const l2c_tokenizer *tokenizer, const char *piece, size_t size);

/* ---- Probe: the machine's limits, for benchmarks ---- */

/* Highest of `reps` reads of `bytes` fresh memory, in GB/s. */
int l2c_probe_bandwidth(double *gbs, size_t bytes, int threads, int reps, const char *isa, l2c_error *error);
/* Peak of multiply-add at a level, in TFLOP/s (one multiply-add is two operations): of f32, at level "amx" of its bf16
 * tiles. */
int l2c_probe_flops(double *tflops, int threads, int reps, const char *isa, l2c_error *error);

#endif
