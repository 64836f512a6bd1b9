/* model.c: opens a file as a transformer and answers questions about it. */
#include "model.h"

#include "error.h"
#include "gguf.h"
#include "lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    l2c_tensor_role role;
} tensor_names[] = {
    {"token_embd", L2C_TENSOR_TOKEN_EMBD}, {"output_norm", L2C_TENSOR_OUTPUT_NORM}, {"output", L2C_TENSOR_OUTPUT},
    {"attn_norm", L2C_TENSOR_ATTN_NORM},   {"attn_q", L2C_TENSOR_ATTN_Q},           {"attn_k", L2C_TENSOR_ATTN_K},
    {"attn_v", L2C_TENSOR_ATTN_V},         {"attn_output", L2C_TENSOR_ATTN_OUTPUT}, {"ffn_norm", L2C_TENSOR_FFN_NORM},
    {"ffn_gate", L2C_TENSOR_FFN_GATE},     {"ffn_up", L2C_TENSOR_FFN_UP},           {"ffn_down", L2C_TENSOR_FFN_DOWN},
};

l2c_tensor_role l2c_tensor_role_of(const char *name, size_t size) {
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        if (strlen(tensor_names[i].name) == size && memcmp(tensor_names[i].name, name, size) == 0) {
            return tensor_names[i].role;
        }
    }
    return L2C_TENSOR_ROLES;
}

const char *l2c_tensor_role_name(l2c_tensor_role role) {
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        if (tensor_names[i].role == role) {
            return tensor_names[i].name;
        }
    }
    return "?";
}

void l2c_tensor_shape(const l2c_config *config, l2c_tensor_role role, size_t *rows, size_t *cols) {
    const size_t dim = (size_t)config->dim, hidden_dim = (size_t)config->hidden_dim;
    const size_t q_dim = (size_t)config->n_heads * (size_t)config->head_dim;
    const size_t kv_dim = (size_t)config->n_kv_heads * (size_t)config->head_dim;
    size_t r = 1, c = dim;
    switch (role) {
    case L2C_TENSOR_TOKEN_EMBD:
    case L2C_TENSOR_OUTPUT: r = (size_t)config->vocab_size; break;
    case L2C_TENSOR_ATTN_Q: r = q_dim; break;
    case L2C_TENSOR_ATTN_K:
    case L2C_TENSOR_ATTN_V: r = kv_dim; break;
    case L2C_TENSOR_ATTN_OUTPUT: r = dim, c = q_dim; break;
    case L2C_TENSOR_FFN_GATE:
    case L2C_TENSOR_FFN_UP: r = hidden_dim; break;
    case L2C_TENSOR_FFN_DOWN: r = dim, c = hidden_dim; break;
    case L2C_TENSOR_OUTPUT_NORM:
    case L2C_TENSOR_ATTN_NORM:
    case L2C_TENSOR_FFN_NORM:
    case L2C_TENSOR_ROLES: break;
    }
    *rows = r;
    *cols = c;
}

size_t l2c_tensor_bytes(const l2c_tensor *tensor) {
    const size_t values = tensor->rows * tensor->cols;
    const size_t scales = tensor->scales ? values / tensor->group_size * sizeof *tensor->scales : 0;
    return values / tensor->type->values * tensor->type->bytes + scales;
}

void l2c_tensor_row(const l2c_tensor *tensor, size_t row, float *out) {
    const l2c_type_info *type = tensor->type;
    const size_t first = row * tensor->cols;
    if (type->dequantize) {
        type->dequantize(out, (const uint8_t *)tensor->data + first / type->values * type->bytes,
                         tensor->cols / type->values);
        return;
    }
    const int8_t *values = tensor->data;
    for (size_t i = first; i < first + tensor->cols; i++) {
        out[i - first] = (float)values[i] * tensor->scales[i / tensor->group_size];
    }
}

int l2c_model_allocate(l2c_model *model, l2c_error *error) {
    const size_t count = l2c_model_tensors(model);
    model->tensors = calloc(count, sizeof *model->tensors);
    return model->tensors ? L2C_OK : l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a table of %zu tensors", count);
}

int l2c_model_complete(l2c_model *model, l2c_error *error) {
    if (model->config.tied) {
        model->tensors[L2C_TENSOR_OUTPUT] = model->tensors[L2C_TENSOR_TOKEN_EMBD];
    }
    for (size_t layer = 0; layer < (size_t)model->config.n_layers; layer++) {
        for (int role = 0; role < L2C_TENSOR_ROLES; role++) {
            if (l2c_model_tensor(model, (l2c_tensor_role)role, layer)->data) {
                continue;
            }
            const char *name = l2c_tensor_role_name((l2c_tensor_role)role);
            return role < L2C_TENSOR_GLOBALS
                       ? l2c_fail(error, L2C_ERROR_FORMAT, "tensor %s.weight is missing", name)
                       : l2c_fail(error, L2C_ERROR_FORMAT, "tensor blk.%zu.%s.weight is missing", layer, name);
        }
    }
    return L2C_OK;
}

/* ---- Files ---- */

enum { PART_SUFFIX = sizeof "-00001-of-00003.gguf" - 1 };

static void part_suffix(char out[64], size_t part, size_t n_parts) {
    snprintf(out, 64, "-%05zu-of-%05zu.gguf", part + 1, n_parts);
}

/* The path of part `part` of `n_parts` beside `path`, the first's, which ends in "-00001-of-00003.gguf" or the like; NULL
 * with an error when it does not. For the caller to free. */
static char *part_path(const char *path, size_t part, size_t n_parts, l2c_error *error) {
    char suffix[64];
    const size_t size = strlen(path);
    part_suffix(suffix, 0, n_parts);
    if (size < PART_SUFFIX || strcmp(path + size - PART_SUFFIX, suffix) != 0) {
        l2c_fail(error, L2C_ERROR_FORMAT, "it is part 1 of %zu: expected a name that ends in %s", n_parts, suffix);
        return NULL;
    }
    char *other = malloc(size + 1);
    if (!other) {
        l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a path");
        return NULL;
    }
    part_suffix(suffix, part, n_parts);
    memcpy(other, path, size - PART_SUFFIX);
    memcpy(other + size - PART_SUFFIX, suffix, PART_SUFFIX + 1);
    return other;
}

/* The files of one model, and what GGUF files among them hold. */
typedef struct source {
    l2c_file *files;
    l2c_gguf *parts;
    size_t count;
} source;

static void close_source(source *s) {
    for (size_t i = 0; i < s->count; i++) {
        l2c_gguf_free(&s->parts[i]);
        l2c_file_close(&s->files[i]);
    }
    free(s->parts);
    free(s->files);
    *s = (source){0};
}

static int fail_part(l2c_error *error, size_t part, size_t n_parts) {
    char inner[sizeof error->message];
    memcpy(inner, error->message, sizeof inner);
    inner[sizeof inner - 40] = 0;
    const int system = error->system;
    l2c_fail(error, error->status, "part %zu of %zu: %s", part + 1, n_parts, inner);
    error->system = system;
    return error->status;
}

/* The other parts of a split file, whose first part is open. */
static int open_parts(source *s, const char *path, bool mapped, size_t n_parts, l2c_error *error) {
    l2c_file *files = calloc(n_parts, sizeof *files);
    l2c_gguf *parts = calloc(n_parts, sizeof *parts);
    if (!files || !parts) {
        free(files);
        free(parts);
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu parts", n_parts);
    }
    files[0] = s->files[0];
    parts[0] = s->parts[0];
    free(s->files);
    free(s->parts);
    *s = (source){files, parts, n_parts};
    for (size_t i = 1; i < n_parts; i++) {
        char *other = part_path(path, i, n_parts, error);
        if (!other) {
            return error->status;
        }
        int status = l2c_file_open(&files[i], other, mapped, 0, error);
        if (status == L2C_OK) {
            status = l2c_gguf_read(&parts[i], files[i].bytes, files[i].size, error);
        }
        size_t count, part;
        if (status == L2C_OK) {
            status = l2c_gguf_parts(&count, &part, &parts[i], error);
        }
        if (status == L2C_OK && (count != n_parts || part != i)) {
            status = l2c_fail(error, L2C_ERROR_FORMAT, "it says that it is part %zu of %zu", part + 1, count);
        }
        free(other);
        if (status != L2C_OK) {
            return fail_part(error, i, n_parts);
        }
    }
    return L2C_OK;
}

static int open_gguf(source *s, const char *path, bool mapped, l2c_error *error) {
    size_t n_parts, own;
    int status = l2c_gguf_read(&s->parts[0], s->files[0].bytes, s->files[0].size, error);
    if (status == L2C_OK) {
        status = l2c_gguf_parts(&n_parts, &own, &s->parts[0], error);
    }
    if (status == L2C_OK && own > 0) {
        char first[64];
        part_suffix(first, 0, n_parts);
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "it is part %zu of %zu: open the first, which ends in %s",
                        own + 1, n_parts, first);
    }
    return status == L2C_OK && n_parts > 1 ? open_parts(s, path, mapped, n_parts, error) : status;
}

static int open_source(source *s, const char *path, bool mapped, l2c_error *error) {
    s->files = calloc(1, sizeof *s->files);
    s->parts = calloc(1, sizeof *s->parts);
    if (!s->files || !s->parts) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a file");
    }
    s->count = 1;
    int status = l2c_file_open(&s->files[0], path, mapped, 0, error);
    if (status == L2C_OK && l2c_is_gguf(s->files[0].bytes, s->files[0].size)) {
        status = open_gguf(s, path, mapped, error);
    }
    return status;
}

static bool is_gguf(const source *s) {
    return s->parts[0].version > 0;
}

static const char *const kv_types[] = {[L2C_KV_F32] = "f32", [L2C_KV_F16] = "f16", [L2C_KV_Q8] = "q8"};

static int set_kv_type(l2c_config *config, bool by_weights, const char *name, l2c_error *error) {
    const l2c_kv_type fitting = by_weights && strcmp(config->weight_type, "F32") != 0 ? L2C_KV_F16 : L2C_KV_F32;
    for (size_t i = 0; i < sizeof kv_types / sizeof *kv_types; i++) {
        if (name ? strcmp(name, kv_types[i]) == 0 : i == fitting) {
            config->kv_type = kv_types[i];
            return L2C_OK;
        }
    }
    return l2c_fail(error, L2C_ERROR_ARGUMENT, "keys and values of type \"%.40s\", expected f32, f16 or q8", name);
}

l2c_kv_type l2c_kv_type_of(const char *name) {
    size_t i = 0;
    while (i + 1 < sizeof kv_types / sizeof *kv_types && strcmp(name, kv_types[i]) != 0) {
        i++;
    }
    return (l2c_kv_type)i;
}

int l2c_config_read(l2c_config *out, const char *path, l2c_error *error) {
    source s = {0};
    int status = open_source(&s, path, true, error);
    if (status == L2C_OK) {
        status = is_gguf(&s) ? l2c_gguf_config(out, s.parts, s.count, error)
                             : l2c_bin_config(out, s.files[0].bytes, s.files[0].size, s.files[0].size, error);
    }
    if (status == L2C_OK) {
        status = set_kv_type(out, is_gguf(&s), NULL, error);
    }
    close_source(&s);
    return status;
}

static int set_rope(l2c_transformer *t, double theta, l2c_error *error) {
    l2c_config *config = &t->model.config;
    const size_t pairs = (size_t)config->head_dim / 2;
    if (theta != 0) {
        if (!(theta > 0) || !isfinite(theta)) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "rope_theta is %g, expected a positive number", theta);
        }
        config->rope_theta = theta;
    }
    t->frequencies = malloc(pairs * sizeof *t->frequencies);
    if (!t->frequencies) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu RoPE frequencies", pairs);
    }
    for (size_t i = 0; i < pairs; i++) {
        const double divisor = t->model.rope_factor * (t->model.rope_freqs ? (double)t->model.rope_freqs[i] : 1.0);
        t->frequencies[i] = pow(config->rope_theta, -2.0 * (double)i / config->head_dim) / divisor;
    }
    return L2C_OK;
}

static int set_adapters(l2c_transformer *t, const l2c_open_options *options, l2c_error *error) {
    if (options->n_adapters == 0) {
        return L2C_OK;
    }
    const int status = l2c_lora_create(&t->lora, &t->model, options->adapters, options->n_adapters, error);
    if (status == L2C_OK) {
        t->model.config.lora_rank = (int32_t)l2c_lora_rank(t->lora);
    }
    return status;
}

static int open_path(l2c_transformer *t, const char *path, const l2c_open_options *options, l2c_error *error) {
    source s = {0};
    int status = open_source(&s, path, !options->no_mmap, error);
    if (status == L2C_OK) {
        status = is_gguf(&s) ? l2c_gguf_model(&t->model, s.parts, s.count, error)
                             : l2c_bin_read(&t->model, s.files[0].bytes, s.files[0].size, error);
    }
    if (status == L2C_OK) {
        status = set_kv_type(&t->model.config, is_gguf(&s), options->kv_type, error);
    }
    if (status != L2C_OK) {
        close_source(&s);
        return status;
    }
    /* the tensors point into the files; the tables have served */
    t->files = s.files;
    t->n_files = s.count;
    for (size_t i = 0; i < s.count; i++) {
        l2c_gguf_free(&s.parts[i]);
    }
    free(s.parts);
    return L2C_OK;
}

static int open_table(l2c_transformer *t, const l2c_table *table, const l2c_open_options *options, l2c_error *error) {
    t->files = calloc(table->n_files ? table->n_files : 1, sizeof *t->files);
    if (!t->files) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu files", table->n_files);
    }
    while (t->n_files < table->n_files) {
        const size_t i = t->n_files;
        if (l2c_file_open(&t->files[i], table->paths[i], !options->no_mmap, 0, error) != L2C_OK) {
            return table->n_files > 1 ? fail_part(error, i, table->n_files) : error->status;
        }
        t->n_files++;
    }
    const int status = l2c_table_model(&t->model, table, t->files, error);
    return status == L2C_OK ? set_kv_type(&t->model.config, true, options->kv_type, error) : status;
}

/* From a path or a table; the other is NULL. */
static int open_model(l2c_transformer **out, const char *path, const l2c_table *table, const l2c_open_options *options,
                      l2c_error *error) {
    static const l2c_open_options defaults = {0};
    l2c_watch_fork(); /* from here on: threads of a team exist only after a model is open */
    l2c_transformer *t = *out = calloc(1, sizeof **out);
    if (!t) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a transformer");
    }
    options = options ? options : &defaults;
    int status = l2c_kernels_select(&t->kernels, options->isa, error);
    if (status == L2C_OK) {
        status = table ? open_table(t, table, options, error) : open_path(t, path, options, error);
    }
    if (status == L2C_OK) {
        status = set_rope(t, options->rope_theta, error);
    }
    if (status == L2C_OK) {
        status = set_adapters(t, options, error);
    }
    if (status != L2C_OK) {
        l2c_transformer_free(out);
    }
    return status;
}

int l2c_transformer_open(l2c_transformer **out, const char *path, const l2c_open_options *options, l2c_error *error) {
    return open_model(out, path, NULL, options, error);
}

int l2c_transformer_open_table(l2c_transformer **out, const l2c_table *table, const l2c_open_options *options,
                               l2c_error *error) {
    return open_model(out, NULL, table, options, error);
}

void l2c_transformer_free(l2c_transformer **transformer) {
    l2c_transformer *t = *transformer;
    if (t) {
        free(t->frequencies);
        l2c_lora_free(&t->lora);
        free(t->model.tensors);
        free(t->model.owned);
        for (size_t i = 0; i < t->n_files; i++) {
            l2c_file_close(&t->files[i]);
        }
        free(t->files);
        free(t);
    }
    *transformer = NULL;
}

const l2c_config *l2c_transformer_config(const l2c_transformer *transformer) {
    return &transformer->model.config;
}

const char *l2c_transformer_isa(const l2c_transformer *transformer) {
    return transformer->kernels->name;
}

const double *l2c_transformer_frequencies(const l2c_transformer *transformer) {
    return transformer->frequencies;
}

/* Of the adapters, whose every value serves one multiply-add of a token. */
static size_t adapter_values(const l2c_transformer *transformer) {
    return transformer->lora ? l2c_lora_values(transformer->lora) : 0;
}

size_t l2c_transformer_weight_bytes(const l2c_transformer *transformer) {
    size_t bytes = adapter_values(transformer) * sizeof(float);
    for (size_t i = transformer->model.config.tied ? 1 : 0; i < l2c_model_tensors(&transformer->model); i++) {
        bytes += l2c_tensor_bytes(&transformer->model.tensors[i]);
    }
    return bytes;
}

size_t l2c_transformer_token_bytes(const l2c_transformer *transformer) {
    size_t bytes = adapter_values(transformer) * sizeof(float);
    for (size_t i = L2C_TENSOR_TOKEN_EMBD + 1; i < l2c_model_tensors(&transformer->model); i++) {
        bytes += l2c_tensor_bytes(&transformer->model.tensors[i]);
    }
    return bytes;
}

double l2c_transformer_token_macs(const l2c_transformer *transformer) {
    double macs = (double)adapter_values(transformer);
    for (size_t i = L2C_TENSOR_TOKEN_EMBD + 1; i < l2c_model_tensors(&transformer->model); i++) {
        const l2c_tensor *t = &transformer->model.tensors[i];
        macs += t->rows > 1 ? (double)t->rows * (double)t->cols : 0;
    }
    return macs;
}

double l2c_log_probability(const l2c_transformer *transformer, float *logits, int32_t token) {
    const size_t n = (size_t)transformer->model.config.vocab_size, best = transformer->kernels->argmax(logits, n);
    const float difference = logits[token] - logits[best];
    transformer->kernels->softmax(logits, n, 1.0f);
    /* not log(softmax[token]), which may have underflowed */
    return (double)difference + log((double)logits[best]);
}

/* Where the file has the row of attn_q or attn_k that stands at `row` when pairs are neighbours. */
static size_t stored_row(const l2c_model *model, l2c_tensor_role role, size_t row) {
    const size_t head_dim = (size_t)model->config.head_dim, in_head = row % head_dim;
    const bool halves = model->rope_halves && (role == L2C_TENSOR_ATTN_Q || role == L2C_TENSOR_ATTN_K);
    return halves ? row - in_head + in_head / 2 + in_head % 2 * (head_dim / 2) : row;
}

int l2c_transformer_row(const l2c_transformer *transformer, const char *tensor, int32_t layer, int64_t row, float *out,
                        int64_t *rows, int64_t *cols, l2c_error *error) {
    for (size_t i = 0; i < sizeof tensor_names / sizeof *tensor_names; i++) {
        if (strcmp(tensor, tensor_names[i].name) != 0) {
            continue;
        }
        const int32_t layers = tensor_names[i].role < L2C_TENSOR_GLOBALS ? 1 : transformer->model.config.n_layers;
        if (layer < 0 || layer >= layers) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "layer %ld of %s, expected 0 to %ld", (long)layer, tensor,
                            (long)layers - 1);
        }
        const l2c_tensor *t = l2c_model_tensor(&transformer->model, tensor_names[i].role, (size_t)layer);
        *rows = (int64_t)t->rows;
        *cols = (int64_t)t->cols;
        if (out && (row < 0 || row >= *rows)) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "row %lld of %s, expected 0 to %lld", (long long)row, tensor,
                            (long long)*rows - 1);
        }
        if (out) {
            l2c_tensor_row(t, stored_row(&transformer->model, tensor_names[i].role, (size_t)row), out);
        }
        return L2C_OK;
    }
    return l2c_fail(error, L2C_ERROR_ARGUMENT,
                    "no tensor \"%.40s\": expected token_embd, attn_q, ffn_down, output, ...", tensor);
}
