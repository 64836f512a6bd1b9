/* gguf_model.c: a Llama from the metadata and tensors of a GGUF file: every field checked, every tensor held against the
 * shape that the configuration gives its role. What this build does not compute is refused by name. */
#include "error.h"
#include "gguf.h"
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_LAYERS = 1 << 16, MAX_PARTS = 1 << 12 };

int l2c_gguf_parts(size_t *n_parts, size_t *part, const l2c_gguf *gguf, l2c_error *error) {
    int64_t count = 1, own = 0;
    int status = l2c_gguf_integer(gguf, "split.count", 0, MAX_PARTS, &count, error);
    if (status == L2C_OK) {
        count = count ? count : 1; /* some writers mark a whole file so */
        status = l2c_gguf_integer(gguf, "split.no", 0, count - 1, &own, error);
    }
    *n_parts = (size_t)count;
    *part = (size_t)own;
    return status;
}

static const l2c_gguf_tensor *find_tensor(const l2c_gguf *parts, size_t n_parts, const char *name) {
    for (size_t p = 0; p < n_parts; p++) {
        for (size_t i = 0; i < parts[p].n_tensors; i++) {
            if (l2c_text_is(parts[p].tensors[i].name, name)) {
                return &parts[p].tensors[i];
            }
        }
    }
    return NULL;
}

/* ---- Configuration ---- */

static int need_integer(const l2c_gguf *g, const char *key, int64_t most, int32_t *out, l2c_error *error) {
    int64_t value = 0;
    const int status = l2c_gguf_integer(g, key, 1, most, &value, error);
    if (status == L2C_OK && value == 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "key %s is missing", key);
    }
    *out = (int32_t)value;
    return status;
}

static int check_architecture(const l2c_gguf *g, l2c_error *error) {
    l2c_text architecture = {"", 0};
    const int status = l2c_gguf_string(g, "general.architecture", &architecture, error);
    if (status == L2C_OK && architecture.size == 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "key general.architecture is missing: not a model?");
    }
    if (status == L2C_OK && !l2c_text_is(architecture, "llama")) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "general.architecture is \"%.*s\"; \"llama\" is supported",
                        l2c_shown(architecture), architecture.bytes);
    }
    return status;
}

/* Settings that a Llama may have and this build does not compute. */
static int refuse_others(const l2c_gguf *g, const l2c_config *c, l2c_error *error) {
    int64_t experts = 0, rotated = c->head_dim, values = c->head_dim;
    l2c_text scaling = {"none", 4};
    if (l2c_gguf_integer(g, "llama.expert_count", 0, INT32_MAX, &experts, error) ||
        l2c_gguf_integer(g, "llama.rope.dimension_count", 0, INT32_MAX, &rotated, error) ||
        l2c_gguf_integer(g, "llama.attention.value_length", 1, INT32_MAX, &values, error) ||
        l2c_gguf_string(g, "llama.rope.scaling.type", &scaling, error)) {
        return error->status;
    }
    if (experts > 0) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "llama.expert_count is %lld: a mixture of experts",
                        (long long)experts);
    }
    if (rotated != c->head_dim || values != c->head_dim) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                        "llama.rope.dimension_count is %lld, llama.attention.value_length %lld: expected the size of a "
                        "head, %ld",
                        (long long)rotated, (long long)values, (long)c->head_dim);
    }
    if (!l2c_text_is(scaling, "none") && !l2c_text_is(scaling, "linear")) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                        "llama.rope.scaling.type is \"%.*s\"; \"none\" and \"linear\" are supported",
                        l2c_shown(scaling), scaling.bytes);
    }
    return L2C_OK;
}

static int read_shape(const l2c_gguf *g, l2c_config *c, l2c_error *error) {
    int64_t n_kv_heads, head_dim, window = 0;
    if (need_integer(g, "llama.embedding_length", INT32_MAX, &c->dim, error) ||
        need_integer(g, "llama.feed_forward_length", INT32_MAX, &c->hidden_dim, error) ||
        need_integer(g, "llama.block_count", MAX_LAYERS, &c->n_layers, error) ||
        need_integer(g, "llama.attention.head_count", c->dim, &c->n_heads, error) ||
        need_integer(g, "llama.context_length", INT32_MAX, &c->context, error)) {
        return error->status;
    }
    n_kv_heads = c->n_heads;
    head_dim = c->dim % c->n_heads == 0 ? c->dim / c->n_heads : 0;
    if (l2c_gguf_integer(g, "llama.attention.head_count_kv", 1, c->n_heads, &n_kv_heads, error) ||
        l2c_gguf_integer(g, "llama.attention.key_length", 1, c->dim, &head_dim, error) ||
        l2c_gguf_integer(g, "llama.attention.sliding_window", 0, INT32_MAX, &window, error)) {
        return error->status;
    }
    c->window = (int32_t)window;
    c->n_kv_heads = (int32_t)n_kv_heads;
    c->head_dim = (int32_t)head_dim;
    if (c->n_heads % c->n_kv_heads != 0) {
        return l2c_fail(
            error, L2C_ERROR_FORMAT,
            "key llama.attention.head_count_kv is %ld, expected a divisor of llama.attention.head_count, %ld",
            (long)c->n_kv_heads, (long)c->n_heads);
    }
    if (c->head_dim < 2 || c->head_dim % 2 != 0) {
        return l2c_fail(
            error, L2C_ERROR_FORMAT,
            "key llama.attention.head_count is %ld, expected a divisor of llama.embedding_length, %ld, that "
            "leaves an even head size",
            (long)c->n_heads, (long)c->dim);
    }
    return L2C_OK;
}

static int read_constants(const l2c_gguf *g, l2c_config *c, double *factor, l2c_error *error) {
    double eps = 1e-5;
    l2c_text scaling = {"none", 4};
    *factor = 1.0;
    c->rope_theta = 10000.0;
    if (l2c_gguf_number(g, "llama.attention.layer_norm_rms_epsilon", &eps, error) ||
        l2c_gguf_number(g, "llama.rope.freq_base", &c->rope_theta, error) ||
        l2c_gguf_string(g, "llama.rope.scaling.type", &scaling, error) ||
        (l2c_text_is(scaling, "linear") && l2c_gguf_number(g, "llama.rope.scaling.factor", factor, error))) {
        return error->status;
    }
    c->norm_eps = (float)eps;
    if (!(eps >= 0) || !(eps < 1) || !(c->rope_theta > 0) || !isfinite(c->rope_theta) || !(*factor > 0) ||
        !isfinite(*factor)) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "keys llama.attention.layer_norm_rms_epsilon %g, llama.rope.freq_base %g, "
                        "llama.rope.scaling.factor %g: expected 0 to 1, and positive numbers",
                        eps, c->rope_theta, *factor);
    }
    return L2C_OK;
}

/* What the tensors tell: the vocabulary's size, the classifier, the types. */
static int read_tensors(const l2c_gguf *parts, size_t n_parts, l2c_config *c, l2c_error *error) {
    const l2c_gguf_tensor *embedding = find_tensor(parts, n_parts, "token_embd.weight");
    uint64_t most = 0, bytes[L2C_TYPE_TQ2_0 + 1] = {0}; /* by type */
    if (!embedding) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor token_embd.weight is missing: a vocabulary without a model?");
    }
    if (embedding->n_dims != 2 || embedding->dims[1] > INT32_MAX) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "tensor token_embd.weight has %lu dimensions, the second %llu: expected "
                        "[vocabulary][%ld]",
                        (unsigned long)embedding->n_dims, (unsigned long long)embedding->dims[1], (long)c->dim);
    }
    c->vocab_size = (int32_t)embedding->dims[1];
    c->tied = !find_tensor(parts, n_parts, "output.weight");
    c->weight_type = "F32";
    for (size_t p = 0; p < n_parts; p++) {
        for (size_t i = 0; i < parts[p].n_tensors; i++) {
            const l2c_gguf_tensor *t = &parts[p].tensors[i];
            const l2c_type_info *info = l2c_type_of(t->type);
            if (!info || !info->dequantize) {
                char name[24];
                return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "tensor %.*s is of type %s; supported are %s",
                                l2c_shown(t->name), t->name.bytes, l2c_type_name(t->type, name), l2c_type_names());
            }
            c->blocks |= info->integer && t->n_dims == 2;
            c->below_f32 |= info->type != L2C_TYPE_F32 && t->n_dims == 2;
            bytes[t->type] += t->bytes;
            if (bytes[t->type] > most) {
                most = bytes[t->type];
                c->weight_type = info->name;
            }
        }
    }
    return L2C_OK;
}

static int read_config(l2c_config *c, double *factor, const l2c_gguf *parts, size_t n_parts, l2c_error *error) {
    *c = (l2c_config){.format = parts[0].version == 2 ? "GGUF v2" : "GGUF v3"};
    if (check_architecture(&parts[0], error) || read_shape(&parts[0], c, error) ||
        read_constants(&parts[0], c, factor, error) || refuse_others(&parts[0], c, error)) {
        return error->status;
    }
    return read_tensors(parts, n_parts, c, error);
}

int l2c_gguf_config(l2c_config *out, const l2c_gguf *parts, size_t n_parts, l2c_error *error) {
    double factor;
    return read_config(out, &factor, parts, n_parts, error);
}

/* ---- Tensors ---- */

/* "blk.<layer>.<role>.weight" or "<role>.weight"; L2C_TENSOR_ROLES for any other name. */
static l2c_tensor_role role_of(l2c_text name, size_t *layer) {
    static const char block[] = "blk.", weight[] = ".weight";
    const char *p = name.bytes;
    size_t size = name.size;
    bool in_block = false;
    *layer = 0;
    if (size < sizeof weight - 1 || memcmp(p + size - (sizeof weight - 1), weight, sizeof weight - 1) != 0) {
        return L2C_TENSOR_ROLES;
    }
    size -= sizeof weight - 1;
    if (size > sizeof block - 1 && memcmp(p, block, sizeof block - 1) == 0) {
        const char *start = p += sizeof block - 1;
        size -= sizeof block - 1;
        for (; size > 0 && *p >= '0' && *p <= '9' && *layer <= MAX_LAYERS; p++, size--) {
            *layer = *layer * 10 + (size_t)(*p - '0');
        }
        if (p == start || size == 0 || *p != '.') {
            return L2C_TENSOR_ROLES;
        }
        p++;
        size--;
        in_block = true;
    }
    const l2c_tensor_role role = l2c_tensor_role_of(p, size);
    return in_block == (role >= L2C_TENSOR_GLOBALS) ? role : L2C_TENSOR_ROLES;
}

static int place(l2c_model *m, const l2c_gguf_tensor *t, l2c_error *error) {
    size_t layer, rows, cols;
    const l2c_tensor_role role = role_of(t->name, &layer);
    const int shown = l2c_shown(t->name);
    if (role == L2C_TENSOR_ROLES) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "tensor %.*s is none that a Llama has here", shown,
                        t->name.bytes);
    }
    if (layer >= (size_t)m->config.n_layers) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s: llama.block_count is %ld", shown, t->name.bytes,
                        (long)m->config.n_layers);
    }
    l2c_tensor *slot = &m->tensors[l2c_tensor_index(role, layer)];
    l2c_tensor_shape(&m->config, role, &rows, &cols);
    if (slot->data) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor %.*s is there twice", shown, t->name.bytes);
    }
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "tensor %.*s has dimensions [%llu, %llu, %llu, %llu], expected [%zu, %zu]", shown,
                        t->name.bytes, (unsigned long long)t->dims[0], (unsigned long long)t->dims[1],
                        (unsigned long long)t->dims[2], (unsigned long long)t->dims[3], cols, rows);
    }
    const l2c_type_info *type = l2c_type_of(t->type);
    if (l2c_tensor_is_norm(role) && type->type != L2C_TYPE_F32) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "tensor %.*s is of type %s, expected F32", shown, t->name.bytes,
                        type->name);
    }
    *slot = (l2c_tensor){.type = type, .rows = rows, .cols = cols, .data = t->data, .group_size = 1};
    return L2C_OK;
}

static int place_rope_freqs(l2c_model *m, const l2c_gguf_tensor *t, l2c_error *error) {
    const size_t pairs = (size_t)m->config.head_dim / 2;
    if (t->type != L2C_TYPE_F32 || t->n_dims != 1 || t->dims[0] != pairs) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "tensor rope_freqs.weight: expected %zu values of F32", pairs);
    }
    m->rope_freqs = (const float *)(const void *)t->data;
    for (size_t i = 0; i < pairs; i++) {
        if (!(m->rope_freqs[i] > 0) || !isfinite(m->rope_freqs[i])) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "tensor rope_freqs.weight: value %zu is %g, expected a positive one", i,
                            (double)m->rope_freqs[i]);
        }
    }
    return L2C_OK;
}

static int place_all(l2c_model *m, const l2c_gguf *parts, size_t n_parts, l2c_error *error) {
    for (size_t p = 0; p < n_parts; p++) {
        for (size_t i = 0; i < parts[p].n_tensors; i++) {
            const l2c_gguf_tensor *t = &parts[p].tensors[i];
            const int status =
                l2c_text_is(t->name, "rope_freqs.weight") ? place_rope_freqs(m, t, error) : place(m, t, error);
            if (status != L2C_OK) {
                return status;
            }
        }
    }
    return l2c_model_complete(m, error);
}

int l2c_gguf_model(l2c_model *out, const l2c_gguf *parts, size_t n_parts, l2c_error *error) {
    *out = (l2c_model){0};
    const int status = read_config(&out->config, &out->rope_factor, parts, n_parts, error);
    if (status != L2C_OK) {
        return status;
    }
    /* A model of so many layers has at least so many tensors: claims do not make memory. */
    size_t n_tensors = 0;
    for (size_t p = 0; p < n_parts; p++) {
        n_tensors += parts[p].n_tensors;
    }
    const size_t count = l2c_model_tensors(out);
    if (n_tensors + 1 < count) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "%zu tensors, but llama.block_count %ld needs %zu: not all of it",
                        n_tensors, (long)out->config.n_layers, count - 1);
    }
    return l2c_model_allocate(out, error) ? error->status : place_all(out, parts, n_parts, error);
}
