/* bin.c: reads llama2.c checkpoints: a pure function of their bytes.
 *
 *   version 0: 7 int32 (vocab_size negative: a classifier of its own), then f32 tensors, two RoPE tables among them
 *   version 1: "ak42", version, 7 int32, a flag byte, zeros up to 256; f32, norms first, tensors by kind
 *   version 2: the same and an int32 group size after the flag; matrices are int8 values followed by f32 scales
 *
 * The file size must be exactly what the header implies: that is what tells a checkpoint from anything else. */
#include "error.h"
#include "model.h"

#include <stdlib.h>
#include <string.h>

enum { V0_HEADER = 28, V1_HEADER = 256, FIELDS = 7, MAX_LAYERS = 1 << 16 };

static const uint32_t MAGIC = 0x616b3432; /* "ak42" read as a big-endian number */

typedef enum field { DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, N_KV_HEADS, VOCAB_SIZE, CONTEXT } field;

static const char *const field_names[FIELDS] = {"dim",        "hidden_dim", "n_layers",   "n_heads",
                                                "n_kv_heads", "vocab_size", "max_seq_len"};

typedef struct header {
    int version;
    size_t size;
    int32_t fields[FIELDS];
    bool tied;
    int32_t group_size;
} header;

static uint32_t word_at(const uint8_t *bytes, size_t offset) {
    const uint8_t *b = bytes + offset;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static int read_header(header *h, const uint8_t *bytes, size_t held, l2c_error *error) {
    *h = (header){.size = V0_HEADER};
    if (held < V0_HEADER) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: the file ends inside the header of %d bytes", held,
                        V0_HEADER);
    }
    size_t at = 0;
    if (word_at(bytes, 0) == MAGIC) {
        h->version = (int)word_at(bytes, 4);
        if (h->version != 1 && h->version != 2) {
            return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                            "offset 4: llama2.c checkpoint of version %d; versions 0, 1 and 2 are supported",
                            h->version);
        }
        h->size = V1_HEADER;
        at = 8;
        if (held < V1_HEADER) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: the file ends inside the header of %d bytes", held,
                            V1_HEADER);
        }
    }
    for (int i = 0; i < FIELDS; i++) {
        h->fields[i] = (int32_t)word_at(bytes, at + 4 * (size_t)i);
    }
    if (h->version == 0) {
        h->tied = h->fields[VOCAB_SIZE] > 0;
        if (h->fields[VOCAB_SIZE] < 0 && h->fields[VOCAB_SIZE] != INT32_MIN) {
            h->fields[VOCAB_SIZE] = -h->fields[VOCAB_SIZE];
        }
        return L2C_OK;
    }
    if (bytes[36] > 1) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset 36: the shared-classifier flag is %d, expected 0 or 1",
                        bytes[36]);
    }
    h->tied = bytes[36] == 1;
    h->group_size = h->version == 2 ? (int32_t)word_at(bytes, 37) : 0;
    return L2C_OK;
}

static int check_header(const header *h, size_t size, l2c_error *error) {
    const size_t at = h->version == 0 ? 0 : 8;
    const int32_t *f = h->fields;
    for (int i = 0; i < FIELDS; i++) {
        /* No dimension can exceed the file's size in f32 or int8: this also keeps the products below within 64 bits. */
        if (i == CONTEXT && f[i] <= 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: max_seq_len is %ld, expected at least 1",
                            at + 4 * (size_t)i, (long)f[i]);
        }
        if (i != CONTEXT && (f[i] <= 0 || (size_t)f[i] > size)) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "offset %zu: %s is %ld, expected 1 to %zu: not a llama2.c checkpoint?", at + 4 * (size_t)i,
                            field_names[i], (long)f[i], size);
        }
    }
    if (f[N_LAYERS] > MAX_LAYERS) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: n_layers is %ld, expected at most %d", at + 4 * N_LAYERS,
                        (long)f[N_LAYERS], MAX_LAYERS);
    }
    if (f[DIM] % f[N_HEADS] != 0 || f[DIM] / f[N_HEADS] % 2 != 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "offset %zu: n_heads is %ld, expected a divisor of dim %ld that leaves an even head size",
                        at + 4 * N_HEADS, (long)f[N_HEADS], (long)f[DIM]);
    }
    if (f[N_HEADS] % f[N_KV_HEADS] != 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: n_kv_heads is %ld, expected a divisor of n_heads %ld",
                        at + 4 * N_KV_HEADS, (long)f[N_KV_HEADS], (long)f[N_HEADS]);
    }
    if (h->version == 2) {
        if (h->group_size < 1) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "offset 37: group_size is %ld, expected at least 1",
                            (long)h->group_size);
        }
        /* Four values are summed as one integer, so they must share a scale and a row. */
        if (h->group_size % 4 != 0 || f[DIM] % 4 != 0 || f[HIDDEN_DIM] % 4 != 0) {
            return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                            "offset 37: group_size %ld, dim %ld, hidden_dim %ld: int8 needs multiples of 4",
                            (long)h->group_size, (long)f[DIM], (long)f[HIDDEN_DIM]);
        }
    }
    return L2C_OK;
}

static l2c_config config_of(const header *h) {
    static const char *const formats[] = {"llama2.c v0", "llama2.c v1", "llama2.c v2"};
    const int32_t *f = h->fields;
    return (l2c_config){
        .dim = f[DIM],
        .hidden_dim = f[HIDDEN_DIM],
        .n_layers = f[N_LAYERS],
        .n_heads = f[N_HEADS],
        .n_kv_heads = f[N_KV_HEADS],
        .head_dim = f[DIM] / f[N_HEADS],
        .vocab_size = f[VOCAB_SIZE],
        .context = f[CONTEXT],
        .group_size = h->group_size,
        .tied = h->tied,
        .weight_type = h->version == 2 ? "Q8" : "F32",
        .norm_eps = 1e-5f,
        .rope_theta = 10000.0,
        .format = formats[h->version],
    };
}

/* Walks the file in its order. Without a model it only measures; offsets are checked against `size` by the caller. */
typedef struct walk {
    const l2c_config *config;
    const uint8_t *bytes; /* NULL: measure */
    l2c_model *model;
    size_t at;
    bool overflow; /* of `at` */
    bool partial;  /* a tensor ends inside an int8 group */
} walk;

static void advance(walk *w, size_t count, size_t width) {
    if (count > (SIZE_MAX - w->at) / width) {
        w->overflow = true;
    } else {
        w->at += count * width;
    }
}

static void take(walk *w, l2c_tensor_role role, size_t layer, bool norm) {
    const bool q8 = w->config->group_size && !norm;
    const size_t group_size = q8 ? (size_t)w->config->group_size : 1;
    l2c_tensor t = {.type = l2c_type_of(q8 ? L2C_TYPE_Q8_GROUP : L2C_TYPE_F32), .group_size = group_size};
    l2c_tensor_shape(w->config, role, &t.rows, &t.cols);
    /* two int32 factors: their product fits 64 bits */
    const size_t values = t.rows * t.cols;
    const size_t data_at = w->at;
    advance(w, values, q8 ? 1 : sizeof(float));
    const size_t scales_at = w->at;
    if (q8) {
        w->partial |= values % group_size != 0;
        advance(w, values / group_size, sizeof(float));
    }
    if (w->bytes) {
        t.data = w->bytes + data_at;
        t.scales = q8 ? (const float *)(const void *)(w->bytes + scales_at) : NULL;
        w->model->tensors[l2c_tensor_index(role, layer)] = t;
    }
}

static void take_layers(walk *w, l2c_tensor_role role, bool norm) {
    for (size_t layer = 0; layer < (size_t)w->config->n_layers && !w->overflow; layer++) {
        take(w, role, layer, norm);
    }
}

static void walk_v0(walk *w) {
    take(w, L2C_TENSOR_TOKEN_EMBD, 0, false);
    take_layers(w, L2C_TENSOR_ATTN_NORM, true);
    take_layers(w, L2C_TENSOR_ATTN_Q, false);
    take_layers(w, L2C_TENSOR_ATTN_K, false);
    take_layers(w, L2C_TENSOR_ATTN_V, false);
    take_layers(w, L2C_TENSOR_ATTN_OUTPUT, false);
    take_layers(w, L2C_TENSOR_FFN_NORM, true);
    take_layers(w, L2C_TENSOR_FFN_GATE, false);
    take_layers(w, L2C_TENSOR_FFN_DOWN, false);
    take_layers(w, L2C_TENSOR_FFN_UP, false);
    take(w, L2C_TENSOR_OUTPUT_NORM, 0, true);
    /* cosines and sines of RoPE, [context][head_dim / 2] each, which are computed here instead */
    advance(w, (size_t)w->config->context * (size_t)w->config->head_dim, sizeof(float));
}

static void walk_v1(walk *w) {
    take_layers(w, L2C_TENSOR_ATTN_NORM, true);
    take_layers(w, L2C_TENSOR_FFN_NORM, true);
    take(w, L2C_TENSOR_OUTPUT_NORM, 0, true);
    take(w, L2C_TENSOR_TOKEN_EMBD, 0, false);
    take_layers(w, L2C_TENSOR_ATTN_Q, false);
    take_layers(w, L2C_TENSOR_ATTN_K, false);
    take_layers(w, L2C_TENSOR_ATTN_V, false);
    take_layers(w, L2C_TENSOR_ATTN_OUTPUT, false);
    take_layers(w, L2C_TENSOR_FFN_GATE, false);
    take_layers(w, L2C_TENSOR_FFN_DOWN, false);
    take_layers(w, L2C_TENSOR_FFN_UP, false);
}

static void walk_file(walk *w, const header *h) {
    w->at = h->size;
    (h->version == 0 ? walk_v0 : walk_v1)(w);
    if (!h->tied) {
        take(w, L2C_TENSOR_OUTPUT, 0, false);
    } else if (w->bytes) {
        w->model->tensors[L2C_TENSOR_OUTPUT] = w->model->tensors[L2C_TENSOR_TOKEN_EMBD];
    }
}

static int read_config(header *h, l2c_config *out, const uint8_t *bytes, size_t held, size_t size, l2c_error *error) {
    int status = read_header(h, bytes, held, error);
    if (status == L2C_OK) {
        status = check_header(h, size, error);
    }
    if (status != L2C_OK) {
        return status;
    }
    *out = config_of(h);
    walk measure = {.config = out};
    walk_file(&measure, h);
    if (measure.partial) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "offset 37: group_size is %ld, expected a divisor of every matrix's size",
                        (long)out->group_size);
    }
    if (measure.overflow || measure.at != size) {
        return l2c_fail(
            error, L2C_ERROR_FORMAT,
            "the file has %zu bytes, but its header (%s: dim %ld, hidden_dim %ld, n_layers %ld, n_heads %ld, "
            "n_kv_heads %ld, vocab_size %ld, max_seq_len %ld) implies %s%zu: not a llama2.c checkpoint, or not "
            "all of it",
            size, out->format, (long)out->dim, (long)out->hidden_dim, (long)out->n_layers, (long)out->n_heads,
            (long)out->n_kv_heads, (long)out->vocab_size, (long)out->context, measure.overflow ? "more than " : "",
            measure.at);
    }
    return L2C_OK;
}

int l2c_bin_config(l2c_config *out, const uint8_t *bytes, size_t held, size_t size, l2c_error *error) {
    header h;
    return read_config(&h, out, bytes, held, size, error);
}

int l2c_bin_read(l2c_model *out, const uint8_t *bytes, size_t size, l2c_error *error) {
    header h;
    *out = (l2c_model){.rope_factor = 1.0};
    const int status = read_config(&h, &out->config, bytes, size, size, error);
    if (status != L2C_OK) {
        return status;
    }
    if (l2c_model_allocate(out, error) != L2C_OK) {
        return error->status;
    }
    walk_file(&(walk){.config = &out->config, .bytes = bytes, .model = out}, &h);
    return L2C_OK;
}
