# Declarations of llama2c.h; the compiler, not this file, knows the layouts.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "llama2c.h" nogil:
    ctypedef enum l2c_status:
        L2C_PAUSED
        L2C_OK
        L2C_ERROR_MEMORY
        L2C_ERROR_IO
        L2C_ERROR_FORMAT
        L2C_ERROR_UNSUPPORTED
        L2C_ERROR_ARGUMENT
        L2C_ERROR_CONTEXT
        L2C_ERROR_BUSY
        L2C_ERROR_CANCELLED
        L2C_ERROR_EXHAUSTED

    ctypedef struct l2c_error:
        l2c_status status
        int system
        char message[400]

    const char *l2c_isa_name(size_t index)

    ctypedef struct l2c_config:
        int32_t dim
        int32_t hidden_dim
        int32_t n_layers
        int32_t n_heads
        int32_t n_kv_heads
        int32_t head_dim
        int32_t vocab_size
        int32_t context
        int32_t group_size
        bint tied
        bint blocks
        int32_t window
        int32_t lora_rank
        const char *kv_type
        float norm_eps
        double rope_theta
        const char *weight_type
        const char *format

    ctypedef struct l2c_adapter:
        const char *tensor
        int32_t layer
        int32_t rows
        int32_t cols
        int32_t rank
        const float *a
        const float *b

    ctypedef struct l2c_open_options:
        const char *isa
        bint no_mmap
        double rope_theta
        const char *kv_type
        const l2c_adapter *adapters
        size_t n_adapters

    ctypedef struct l2c_transformer:
        pass

    ctypedef struct l2c_table_entry:
        const char *name
        const char *role
        const char *type
        int32_t layer
        size_t file
        uint64_t offset
        uint64_t rows
        uint64_t cols

    ctypedef struct l2c_table:
        const char *const *paths
        size_t n_files
        const l2c_table_entry *entries
        size_t n_entries
        l2c_config config
        double rope_factor
        const float *rope_freqs
        bint rope_halves

    int l2c_config_read(l2c_config *out, const char *path, l2c_error *error)
    int l2c_transformer_open(l2c_transformer **out, const char *path, const l2c_open_options *options,
                             l2c_error *error)
    int l2c_transformer_open_table(l2c_transformer **out, const l2c_table *table, const l2c_open_options *options,
                                   l2c_error *error)
    void l2c_transformer_free(l2c_transformer **transformer)
    const l2c_config *l2c_transformer_config(const l2c_transformer *transformer)
    const char *l2c_transformer_isa(const l2c_transformer *transformer)
    const double *l2c_transformer_frequencies(const l2c_transformer *transformer)
    size_t l2c_transformer_weight_bytes(const l2c_transformer *transformer)
    size_t l2c_transformer_token_bytes(const l2c_transformer *transformer)
    double l2c_transformer_token_macs(const l2c_transformer *transformer)
    int l2c_transformer_row(const l2c_transformer *transformer, const char *tensor, int32_t layer,
                            int64_t row, float *out, int64_t *rows, int64_t *cols, l2c_error *error)
    size_t l2c_session_bytes(const l2c_config *config, int32_t context)
    size_t l2c_batch_bytes(const l2c_config *config, int32_t rows, int threads)

    ctypedef struct l2c_pool:
        pass

    ctypedef struct l2c_pool_stats:
        size_t positions
        size_t page_bytes
        size_t limit
        size_t used
        size_t shared

    int l2c_pool_create(l2c_pool **out, const l2c_transformer *transformer, size_t limit, l2c_error *error)
    void l2c_pool_free(l2c_pool **pool)
    void l2c_pool_stat(l2c_pool_stats *out, const l2c_pool *pool)

    ctypedef struct l2c_session:
        pass

    int l2c_session_create(l2c_session **out, const l2c_transformer *transformer, int32_t context,
                           l2c_error *error)
    int l2c_session_create_in(l2c_session **out, l2c_pool *pool, int32_t context, l2c_error *error)
    int l2c_session_fork(l2c_session **out, const l2c_session *session, int32_t position, l2c_error *error)
    void l2c_session_free(l2c_session **session)
    int32_t l2c_session_position(const l2c_session *session)
    int32_t l2c_session_context(const l2c_session *session)
    bint l2c_session_enter(l2c_session *session)
    void l2c_session_leave(l2c_session *session)
    int l2c_session_rewind(l2c_session *session, int32_t position, l2c_error *error)
    void l2c_session_cancel(l2c_session *session)

    ctypedef struct l2c_batch:
        pass

    ctypedef enum l2c_role:
        L2C_ROLE_PROMPT
        L2C_ROLE_GENERATED

    ctypedef enum l2c_want:
        L2C_WANT_NONE
        L2C_WANT_LAST
        L2C_WANT_ALL

    ctypedef struct l2c_span:
        l2c_session *session
        const int32_t *tokens
        int32_t count
        l2c_role role
        l2c_want want

    int l2c_batch_create(l2c_batch **out, const l2c_transformer *transformer, int32_t rows, int threads,
                         l2c_error *error)
    void l2c_batch_free(l2c_batch **batch)
    int32_t l2c_batch_rows(const l2c_batch *batch)
    int l2c_batch_step(l2c_batch *batch, const l2c_span *spans, size_t n_spans, float *logits,
                       l2c_error *error)
    void l2c_batch_set_slice(l2c_batch *batch, double seconds)
    void l2c_batch_set_throughput(l2c_batch *batch, bint throughput)
    int l2c_batch_resume(l2c_batch *batch, l2c_error *error)
    void l2c_batch_abandon(l2c_batch *batch)

    ctypedef struct l2c_sampler:
        pass

    int l2c_batch_step_sample(l2c_batch *batch, int32_t *tokens, const l2c_span *spans, l2c_sampler **samplers,
                              size_t n_spans, l2c_error *error)

    double l2c_log_probability(const l2c_transformer *transformer, float *logits, int32_t token)

    int l2c_sampler_create(l2c_sampler **out, int32_t vocab_size, float temperature, float top_p,
                           uint64_t seed, const char *isa, l2c_error *error)
    void l2c_sampler_free(l2c_sampler **sampler)
    bint l2c_sampler_enter(l2c_sampler *sampler)
    void l2c_sampler_leave(l2c_sampler *sampler)
    float *l2c_sampler_logits(l2c_sampler *sampler)
    int32_t l2c_sampler_sample(l2c_sampler *sampler)
    void l2c_sampler_skip(l2c_sampler *sampler, int32_t count)
    uint64_t l2c_sampler_state(const l2c_sampler *sampler)
    void l2c_sampler_set_state(l2c_sampler *sampler, uint64_t state)

    ctypedef struct l2c_tokenizer:
        pass

    ctypedef enum l2c_token_type:
        L2C_TOKEN_NORMAL
        L2C_TOKEN_BYTE

    ctypedef struct l2c_token_table:
        int32_t count
        const char *const *pieces
        const int32_t *lengths
        const float *scores
        const uint8_t *types
        int32_t unk
        int32_t bos
        int32_t eos
        bint add_space_prefix

    ctypedef struct l2c_bpe_table:
        int32_t count
        const char *const *pieces
        const int32_t *lengths
        const uint8_t *types
        int32_t n_merges
        const char *const *merges
        const int32_t *merge_lengths
        const char *pre
        int32_t bos
        int32_t eos
        bint ignore_merges

    int l2c_tokenizer_create(l2c_tokenizer **out, const l2c_token_table *table, l2c_error *error)
    int l2c_tokenizer_create_bpe(l2c_tokenizer **out, const l2c_bpe_table *table, l2c_error *error)
    int l2c_tokenizer_read_bin(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error)
    void l2c_tokenizer_free(l2c_tokenizer **tokenizer)
    int32_t l2c_tokenizer_count(const l2c_tokenizer *tokenizer)
    int32_t l2c_tokenizer_unk(const l2c_tokenizer *tokenizer)
    int32_t l2c_tokenizer_bos(const l2c_tokenizer *tokenizer)
    int32_t l2c_tokenizer_eos(const l2c_tokenizer *tokenizer)
    int l2c_tokenizer_read_gguf(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error)
    bint l2c_tokenizer_add_bos(const l2c_tokenizer *tokenizer)
    bint l2c_tokenizer_add_eos(const l2c_tokenizer *tokenizer)
    bint l2c_tokenizer_add_space_prefix(const l2c_tokenizer *tokenizer)
    int l2c_tokenizer_encode(const l2c_tokenizer *tokenizer, int32_t **ids, size_t *count, const char *text,
                             size_t size, bint special, l2c_error *error)
    void l2c_ids_free(int32_t **ids)
    const char *l2c_tokenizer_bytes(const l2c_tokenizer *tokenizer, int32_t id, size_t *size)
    const char *l2c_tokenizer_piece(const l2c_tokenizer *tokenizer, int32_t id, size_t *size, float *score,
                                    l2c_token_type *type)
    int32_t l2c_tokenizer_find(const l2c_tokenizer *tokenizer, const char *piece, size_t size)

    int l2c_probe_bandwidth(double *gbs, size_t bytes, int threads, int reps, const char *isa,
                            l2c_error *error)
    int l2c_probe_flops(double *tflops, int threads, int reps, const char *isa, l2c_error *error)

# The reader of GGUF's header, for what the metadata holds beside the model.

cdef extern from "platform.h" nogil:
    ctypedef struct l2c_file:
        const uint8_t *bytes
        size_t size

    int l2c_file_open(l2c_file *out, const char *path, bint mapped, size_t limit, l2c_error *error)
    void l2c_file_close(l2c_file *file)

cdef extern from "gguf.h" nogil:
    ctypedef enum l2c_gguf_type:
        L2C_GGUF_UINT8
        L2C_GGUF_INT8
        L2C_GGUF_UINT16
        L2C_GGUF_INT16
        L2C_GGUF_UINT32
        L2C_GGUF_INT32
        L2C_GGUF_FLOAT32
        L2C_GGUF_BOOL
        L2C_GGUF_STRING
        L2C_GGUF_ARRAY
        L2C_GGUF_UINT64
        L2C_GGUF_INT64
        L2C_GGUF_FLOAT64

    ctypedef struct l2c_text:
        const char *bytes
        size_t size

    ctypedef struct l2c_gguf_value:
        l2c_text key
        l2c_gguf_type type
        l2c_gguf_type element
        size_t count
        const uint8_t *data
        size_t bytes

    ctypedef struct l2c_gguf_tensor:
        l2c_text name
        uint32_t n_dims
        uint32_t type
        uint64_t dims[4]
        uint64_t offset
        uint64_t bytes

    ctypedef struct l2c_gguf:
        uint32_t version
        size_t alignment
        size_t n_values
        size_t n_tensors
        l2c_gguf_value *values
        l2c_gguf_tensor *tensors

    bint l2c_is_gguf(const uint8_t *bytes, size_t size)
    int l2c_gguf_read(l2c_gguf *out, const uint8_t *bytes, size_t size, l2c_error *error)
    void l2c_gguf_free(l2c_gguf *gguf)
    const char *l2c_gguf_type_name(l2c_gguf_type type)
    l2c_text l2c_gguf_next_string(const uint8_t **data)

cdef extern from "quant.h" nogil:
    ctypedef enum l2c_type:
        L2C_TYPE_F32

    ctypedef struct l2c_type_info:
        l2c_type type
        const char *name
        size_t values
        size_t bytes

    const l2c_type_info *l2c_type_of(uint32_t number)
    const l2c_type_info *l2c_type_named(const char *name)
    const char *l2c_type_name(uint32_t number, char *unknown)

cdef extern from "quantize.h" nogil:
    bint l2c_can_quantize(l2c_type type)
    int l2c_quantize(uint8_t *blocks, l2c_type type, const float *x, size_t n_values, l2c_error *error)
    double l2c_quantize_error(double *norm, const uint8_t *blocks, l2c_type type, const float *x, size_t n_values)
