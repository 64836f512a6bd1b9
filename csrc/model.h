/* model.h: a model as plain data. Readers fill a tensor table from a file's bytes; model.c places the table's entries,
 * checked by shape, into a transformer. Everything downstream reads; nothing writes. */
#ifndef L2C_MODEL_H
#define L2C_MODEL_H

#include "gguf.h"
#include "kernels.h"
#include "llama2c.h"
#include "platform.h"

#include <assert.h>

typedef enum l2c_tensor_role {
    L2C_TENSOR_TOKEN_EMBD,  /* [vocab_size][dim] */
    L2C_TENSOR_OUTPUT_NORM, /* [dim] */
    L2C_TENSOR_OUTPUT,      /* [vocab_size][dim] */
    L2C_TENSOR_ATTN_NORM,   /* [dim]; from here on one for each layer */
    L2C_TENSOR_ATTN_Q,      /* [n_heads head_dim][dim] */
    L2C_TENSOR_ATTN_K,      /* [n_kv_heads head_dim][dim] */
    L2C_TENSOR_ATTN_V,      /* [n_kv_heads head_dim][dim] */
    L2C_TENSOR_ATTN_OUTPUT, /* [dim][n_heads head_dim] */
    L2C_TENSOR_FFN_NORM,    /* [dim] */
    L2C_TENSOR_FFN_GATE,    /* [hidden_dim][dim] */
    L2C_TENSOR_FFN_UP,      /* [hidden_dim][dim] */
    L2C_TENSOR_FFN_DOWN,    /* [dim][hidden_dim] */
    L2C_TENSOR_ROLES,
    L2C_TENSOR_GLOBALS = L2C_TENSOR_ATTN_NORM, /* number of tensors that no layer owns */
    L2C_TENSOR_PER_LAYER = L2C_TENSOR_ROLES - L2C_TENSOR_GLOBALS,
} l2c_tensor_role;

/* W, with y = x @ W^T; the data belongs to the file. */
typedef struct l2c_tensor {
    const l2c_type_info *type;
    size_t rows, cols;
    const void *data;    /* [rows] of cols / type->values blocks */
    const float *scales; /* [rows * cols / group_size] of Q8_GROUP, else NULL */
    size_t group_size;   /* of Q8_GROUP, else 1 */
} l2c_tensor;

typedef struct l2c_model {
    l2c_config config;
    l2c_tensor *tensors;     /* [L2C_TENSOR_GLOBALS + n_layers * L2C_TENSOR_PER_LAYER], owned; see l2c_model_tensor */
    double rope_factor;      /* positions are divided by it */
    const float *rope_freqs; /* [head_dim / 2] divisors of the frequencies, NULL for none; the file's or in `owned` */
    bool rope_halves;        /* see l2c_table */
    float *owned;            /* what a table's files do not hold as it is needed here */
} l2c_model;

/* bin.c: llama2.c's versions 0, 1 and 2 from the first `held` bytes of a file of `size` bytes. Pure: reads nothing but
 * them. l2c_bin_config needs 256 bytes (or the whole file); l2c_bin_read allocates model->tensors and needs all. */
int l2c_bin_config(l2c_config *out, const uint8_t *bytes, size_t held, size_t size, l2c_error *error);
int l2c_bin_read(l2c_model *out, const uint8_t *bytes, size_t size, l2c_error *error);

/* gguf_model.c: a model from the parts of a GGUF file (one, or all of a split one) that l2c_gguf_read has read. Allocates
 * model->tensors; without it, fills in the configuration only. */
int l2c_gguf_config(l2c_config *out, const l2c_gguf *parts, size_t n_parts, l2c_error *error);
int l2c_gguf_model(l2c_model *out, const l2c_gguf *parts, size_t n_parts, l2c_error *error);
/* Number of parts that a GGUF file belongs to, 1 unless it is split; *part is the file's own, from 0. */
int l2c_gguf_parts(size_t *n_parts, size_t *part, const l2c_gguf *gguf, l2c_error *error);

/* table.c: a model from a table and its open files, [table->n_files]. Allocates model->tensors and model->owned. */
int l2c_table_model(l2c_model *out, const l2c_table *table, const l2c_file *files, l2c_error *error);

typedef struct l2c_lora l2c_lora; /* lora.h */

struct l2c_transformer {
    l2c_model model;
    l2c_lora *lora;  /* NULL: no adapters */
    l2c_file *files; /* [n_files] */
    size_t n_files;
    const l2c_kernels *kernels;
    double *frequencies; /* [head_dim / 2] of RoPE, radians a position */
};

/* The role of a tensor's name without "blk.<layer>." and ".weight", L2C_TENSOR_ROLES for none. */
l2c_tensor_role l2c_tensor_role_of(const char *name, size_t size);
/* Its name. */
const char *l2c_tensor_role_name(l2c_tensor_role role);

/* Index of a tensor in the table; `layer` is ignored for the globals. */
static inline size_t l2c_tensor_index(l2c_tensor_role role, size_t layer) {
    return (size_t)role + (role < L2C_TENSOR_GLOBALS ? 0 : layer * L2C_TENSOR_PER_LAYER);
}

static inline const l2c_tensor *l2c_model_tensor(const l2c_model *model, l2c_tensor_role role, size_t layer) {
    return &model->tensors[l2c_tensor_index(role, layer)];
}

static inline size_t l2c_model_tensors(const l2c_model *model) {
    return L2C_TENSOR_GLOBALS + (size_t)model->config.n_layers * L2C_TENSOR_PER_LAYER;
}

static inline bool l2c_tensor_is_norm(l2c_tensor_role role) {
    return role == L2C_TENSOR_OUTPUT_NORM || role == L2C_TENSOR_ATTN_NORM || role == L2C_TENSOR_FFN_NORM;
}

/* Allocates the table of tensors, all of them without data. */
int l2c_model_allocate(l2c_model *model, l2c_error *error);
/* Checks that every tensor has its data, once the embedding has been made the classifier where it is. */
int l2c_model_complete(l2c_model *model, l2c_error *error);
/* Bytes of a tensor in the file, scales included. */
size_t l2c_tensor_bytes(const l2c_tensor *tensor);
/* Row `row` as f32. */
void l2c_tensor_row(const l2c_tensor *tensor, size_t row, float *out);
/* Shape that a role has in a model. */
void l2c_tensor_shape(const l2c_config *config, l2c_tensor_role role, size_t *rows, size_t *cols);

static_assert(sizeof(size_t) >= 8, "sizes of models need 64 bits");

/* Of l2c_config.kv_type. */
l2c_kv_type l2c_kv_type_of(const char *name);

#endif
