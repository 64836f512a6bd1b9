/* table.c: a model from a table that the caller has made of its files. Formats whose headers are read elsewhere come in
 * here, so every statement of the table is held against the files and against the shapes that the configuration gives. */
#include "error.h"
#include "model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LAYERS = 1 << 16, SHOWN = 120 /* characters of a name in a message */ };

/* ---- Configuration ---- */

static int check_shape(const l2c_config *c, l2c_error *error) {
    if (c->dim < 1 || c->hidden_dim < 1 || c->n_layers < 1 || c->n_layers > MAX_LAYERS || c->vocab_size < 1 ||
        c->context < 1 || c->window < 0) {
        return l2c_fail(
            error, L2C_ERROR_FORMAT,
            "dim %ld, hidden_dim %ld, %ld layers, vocabulary %ld, context %ld, window %ld: expected numbers "
            "from 1 (the window from 0), layers to %d",
            (long)c->dim, (long)c->hidden_dim, (long)c->n_layers, (long)c->vocab_size, (long)c->context,
            (long)c->window, MAX_LAYERS);
    }
    if (c->n_heads < 1 || c->n_kv_heads < 1 || c->n_heads % c->n_kv_heads != 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "%ld heads share %ld of keys and values, expected a divisor",
                        (long)c->n_heads, (long)c->n_kv_heads);
    }
    if (c->head_dim < 2 || c->head_dim % 2 != 0 || c->head_dim > INT32_MAX / c->n_heads) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "%ld heads of size %ld, expected an even size, and below 2^31 together", (long)c->n_heads,
                        (long)c->head_dim);
    }
    return L2C_OK;
}

static int check_constants(const l2c_table *table, l2c_error *error) {
    const l2c_config *c = &table->config;
    if (!(c->norm_eps >= 0) || !(c->norm_eps < 1) || !(c->rope_theta > 0) || !isfinite(c->rope_theta) ||
        !(table->rope_factor > 0) || !isfinite(table->rope_factor)) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "norm_eps %g, rope_theta %g, rope_factor %g: expected 0 to 1, and positive numbers",
                        (double)c->norm_eps, c->rope_theta, table->rope_factor);
    }
    for (int32_t i = 0; table->rope_freqs && i < c->head_dim / 2; i++) {
        if (!(table->rope_freqs[i] > 0) || !isfinite(table->rope_freqs[i])) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "divisor %ld of RoPE's frequencies is %g, expected a positive one",
                            (long)i, (double)table->rope_freqs[i]);
        }
    }
    return L2C_OK;
}

/* ---- Tensors ---- */

/* What a type's values are aligned to: blocks are read byte by byte. */
static size_t alignment_of(const l2c_type_info *type) {
    return type->values == 1 ? type->bytes : 1;
}

static int check_type(const l2c_table_entry *e, const l2c_type_info *type, size_t cols, l2c_error *error) {
    if (!type || !type->dequantize) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "tensor %.*s is of type %.20s; supported are %s", SHOWN, e->name,
                        e->type, l2c_type_names());
    }
    if (cols % type->values != 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s: rows of %zu values are no whole blocks of %s", SHOWN,
                        e->name, cols, type->name);
    }
    if (e->offset % alignment_of(type) != 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s lies at offset %llu, expected a multiple of %zu", SHOWN,
                        e->name, (unsigned long long)e->offset, alignment_of(type));
    }
    return L2C_OK;
}

static int place(l2c_model *m, const l2c_table *table, const l2c_table_entry *e, const l2c_file *files,
                 l2c_error *error) {
    const l2c_tensor_role role = l2c_tensor_role_of(e->role, strlen(e->role));
    const int32_t layers = role < L2C_TENSOR_GLOBALS ? 1 : m->config.n_layers;
    size_t rows, cols;
    if (role == L2C_TENSOR_ROLES || (role == L2C_TENSOR_OUTPUT && m->config.tied) || e->layer < 0 ||
        e->layer >= layers) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s: no %.20s of layer %ld in this model", SHOWN, e->name,
                        e->role, (long)e->layer);
    }
    l2c_tensor *slot = &m->tensors[l2c_tensor_index(role, (size_t)e->layer)];
    if (slot->data) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s is there twice", SHOWN, e->name);
    }
    l2c_tensor_shape(&m->config, role, &rows, &cols);
    if (e->rows != rows || e->cols != cols) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s has %llu rows of %llu values, expected %zu of %zu", SHOWN,
                        e->name, (unsigned long long)e->rows, (unsigned long long)e->cols, rows, cols);
    }
    const l2c_type_info *type = l2c_type_named(e->type);
    if (check_type(e, type, cols, error) != L2C_OK) {
        return error->status;
    }
    if (e->file >= table->n_files) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "tensor %.*s lies in file %zu of %zu", SHOWN, e->name, e->file,
                        table->n_files);
    }
    *slot = (l2c_tensor){.type = type, .rows = rows, .cols = cols, .group_size = 1};
    const size_t size = files[e->file].size, bytes = l2c_tensor_bytes(slot); /* no overflow: both sides below 2^31 */
    if (e->offset > size || bytes > size - e->offset) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s: %zu bytes from offset %llu on, but the file has %zu",
                        SHOWN, e->name, bytes, (unsigned long long)e->offset, size);
    }
    slot->data = files[e->file].bytes + e->offset;
    return L2C_OK;
}

/* The type of most of the weights, and whether some are computed in integers. */
static void read_types(l2c_config *c, const l2c_model *m) {
    size_t most = 0, bytes[L2C_TYPE_TQ2_0 + 1] = {0};
    for (size_t i = c->tied ? 1 : 0; i < l2c_model_tensors(m); i++) {
        const l2c_tensor *t = &m->tensors[i];
        c->blocks |= t->type->integer;
        c->below_f32 |= t->type->type != L2C_TYPE_F32;
        bytes[t->type->type] += l2c_tensor_bytes(t);
        if (bytes[t->type->type] > most) {
            most = bytes[t->type->type];
            c->weight_type = t->type->name;
        }
    }
}

/* Copies what the files do not hold as the model needs it: vectors of other types than F32, frequencies, the format. */
static int own(l2c_model *m, const l2c_table *table, l2c_error *error) {
    const size_t dim = (size_t)m->config.dim, pairs = table->rope_freqs ? (size_t)m->config.head_dim / 2 : 0;
    const size_t format = strlen(table->config.format) + 1;
    size_t vectors = 0;
    for (size_t i = 0; i < l2c_model_tensors(m); i++) {
        vectors += m->tensors[i].rows == 1 && m->tensors[i].type->type != L2C_TYPE_F32;
    }
    float *at = m->owned = calloc((vectors * dim + pairs) * sizeof *at + format, 1);
    if (!at) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu norms", vectors);
    }
    for (int32_t layer = 0; layer < m->config.n_layers; layer++) {
        for (int i = 0; i < L2C_TENSOR_ROLES; i++) {
            const l2c_tensor_role role = (l2c_tensor_role)i;
            l2c_tensor *t = &m->tensors[l2c_tensor_index(role, (size_t)layer)];
            if (l2c_tensor_is_norm(role) && t->type->type != L2C_TYPE_F32) {
                l2c_tensor_row(t, 0, at);
                t->type = l2c_type_of(L2C_TYPE_F32);
                t->data = at;
                at += dim;
            }
        }
    }
    if (pairs) {
        memcpy(at, table->rope_freqs, pairs * sizeof *at);
        m->rope_freqs = at;
    }
    m->config.format = memcpy(at + pairs, table->config.format, format);
    return L2C_OK;
}

int l2c_table_model(l2c_model *out, const l2c_table *table, const l2c_file *files, l2c_error *error) {
    *out = (l2c_model){.config = table->config, .rope_factor = table->rope_factor, .rope_halves = table->rope_halves};
    out->config.blocks = out->config.below_f32 = false;
    out->config.group_size = 0;
    out->config.weight_type = "F32";
    if (check_shape(&out->config, error) || check_constants(table, error)) {
        return error->status;
    }
    const size_t count = l2c_model_tensors(out) - (out->config.tied ? 1 : 0);
    if (table->n_entries < count) { /* claims do not make memory */
        return l2c_fail(error, L2C_ERROR_FORMAT, "%zu tensors, but %ld layers need %zu: not all of it",
                        table->n_entries, (long)out->config.n_layers, count);
    }
    if (l2c_model_allocate(out, error) != L2C_OK) {
        return error->status;
    }
    for (size_t i = 0; i < table->n_entries; i++) {
        if (place(out, table, &table->entries[i], files, error) != L2C_OK) {
            return error->status;
        }
    }
    if (l2c_model_complete(out, error) != L2C_OK) {
        return error->status;
    }
    read_types(&out->config, out);
    return own(out, table, error);
}
