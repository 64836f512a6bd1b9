/* model.c: opens a file as a transformer and answers questions about it. */
#include "model.h"

#include "error.h"

#include <math.h>
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
    if (tensor->type == L2C_WEIGHT_F32) {
        return values * sizeof(float);
    }
    return values + values / tensor->group_size * sizeof(float);
}

void l2c_tensor_row(const l2c_tensor *tensor, size_t row, float *out) {
    const size_t first = row * tensor->cols;
    if (tensor->type == L2C_WEIGHT_F32) {
        memcpy(out, (const float *)tensor->data + first, tensor->cols * sizeof *out);
        return;
    }
    const int8_t *values = tensor->data;
    for (size_t i = first; i < first + tensor->cols; i++) {
        out[i - first] = (float)values[i] * tensor->scales[i / tensor->group_size];
    }
}

int l2c_config_read(l2c_config *out, const char *path, l2c_error *error) {
    l2c_file file;
    int status = l2c_file_open(&file, path, false, 256, error);
    if (status == L2C_OK) {
        status = l2c_bin_config(out, file.bytes, file.held, file.size, error);
    }
    l2c_file_close(&file);
    return status;
}

static int open_model(l2c_transformer *t, const char *path, const l2c_open_options *options, l2c_error *error) {
    int status = l2c_kernels_select(&t->kernels, options->isa, error);
    if (status == L2C_OK) {
        status = l2c_file_open(&t->file, path, !options->no_mmap, 0, error);
    }
    if (status == L2C_OK) {
        status = l2c_bin_read(&t->model, t->file.bytes, t->file.size, error);
    }
    if (status != L2C_OK) {
        return status;
    }
    l2c_config *config = &t->model.config;
    if (options->rope_theta != 0) {
        if (!(options->rope_theta > 0) || !isfinite(options->rope_theta)) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT, "rope_theta is %g, expected a positive number",
                            options->rope_theta);
        }
        config->rope_theta = options->rope_theta;
    }
    const size_t pairs = (size_t)config->head_dim / 2;
    t->frequencies = malloc(pairs * sizeof *t->frequencies);
    if (!t->frequencies) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu RoPE frequencies", pairs);
    }
    for (size_t i = 0; i < pairs; i++) {
        t->frequencies[i] = pow(config->rope_theta, -2.0 * (double)i / config->head_dim);
    }
    return L2C_OK;
}

int l2c_transformer_open(l2c_transformer **out, const char *path, const l2c_open_options *options, l2c_error *error) {
    static const l2c_open_options defaults = {0};
    l2c_watch_fork(); /* from here on: threads of a team exist only after a model is open */
    *out = calloc(1, sizeof **out);
    if (!*out) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a transformer");
    }
    const int status = open_model(*out, path, options ? options : &defaults, error);
    if (status != L2C_OK) {
        l2c_transformer_free(out);
    }
    return status;
}

void l2c_transformer_free(l2c_transformer **transformer) {
    l2c_transformer *t = *transformer;
    if (t) {
        free(t->frequencies);
        free(t->model.tensors);
        l2c_file_close(&t->file);
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

size_t l2c_transformer_weight_bytes(const l2c_transformer *transformer) {
    size_t bytes = 0;
    for (size_t i = transformer->model.config.tied ? 1 : 0; i < l2c_model_tensors(&transformer->model); i++) {
        bytes += l2c_tensor_bytes(&transformer->model.tensors[i]);
    }
    return bytes;
}

size_t l2c_transformer_token_bytes(const l2c_transformer *transformer) {
    size_t bytes = 0;
    for (size_t i = L2C_TENSOR_TOKEN_EMBD + 1; i < l2c_model_tensors(&transformer->model); i++) {
        bytes += l2c_tensor_bytes(&transformer->model.tensors[i]);
    }
    return bytes;
}

double l2c_transformer_token_macs(const l2c_transformer *transformer) {
    double macs = 0;
    for (size_t i = L2C_TENSOR_TOKEN_EMBD + 1; i < l2c_model_tensors(&transformer->model); i++) {
        const l2c_tensor *t = &transformer->model.tensors[i];
        macs += t->rows > 1 ? (double)t->rows * (double)t->cols : 0;
    }
    return macs;
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
            l2c_tensor_row(t, (size_t)row, out);
        }
        return L2C_OK;
    }
    return l2c_fail(error, L2C_ERROR_ARGUMENT,
                    "no tensor \"%.40s\": expected token_embd, attn_q, ffn_down, output, ...", tensor);
}
