/* tokenizer_gguf.c: the vocabulary in a GGUF file's metadata. */
#include "gguf.h"
#include "tokenizer.h"

#include <stdlib.h>

/* What is read of the metadata: arrays that point into the file, ids, settings. */
typedef struct vocabulary {
    l2c_text model, pre;
    const l2c_gguf_value *pieces, *scores, *types, *merges;
    bool byte_level; /* of GPT-2's kind, else of SentencePiece's */
    int64_t unk, bos, eos;
    bool add_space_prefix, add_bos, add_eos;
} vocabulary;

/* An id under a key; one past the vocabulary (some writers say 2^32 - 1) is none. */
static int read_id(const l2c_gguf *g, const char *key, int64_t *id, int64_t count, l2c_error *error) {
    const int status = l2c_gguf_integer(g, key, INT64_MIN, INT64_MAX, id, error);
    if (*id < 0 || *id >= count) {
        *id = -1;
    }
    return status;
}

static int read_vocabulary(vocabulary *v, const l2c_gguf *g, l2c_error *error) {
    *v = (vocabulary){.model = {"", 0}, .pre = {"", 0}, .add_space_prefix = true};
    if (l2c_gguf_string(g, "tokenizer.ggml.model", &v->model, error) ||
        l2c_gguf_array(g, "tokenizer.ggml.tokens", L2C_GGUF_STRING, &v->pieces, error) ||
        l2c_gguf_array(g, "tokenizer.ggml.scores", L2C_GGUF_FLOAT32, &v->scores, error) ||
        l2c_gguf_array(g, "tokenizer.ggml.token_type", L2C_GGUF_INT32, &v->types, error) ||
        l2c_gguf_array(g, "tokenizer.ggml.merges", L2C_GGUF_STRING, &v->merges, error) ||
        l2c_gguf_string(g, "tokenizer.ggml.pre", &v->pre, error)) {
        return error->status;
    }
    if (v->model.size == 0 || !v->pieces) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "keys tokenizer.ggml.model and tokenizer.ggml.tokens: the file has no "
                        "tokenizer");
    }
    v->byte_level = l2c_text_is(v->model, "gpt2");
    if (!v->byte_level && !l2c_text_is(v->model, "llama")) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                        "tokenizer.ggml.model is \"%.*s\"; \"llama\" and \"gpt2\" are supported", l2c_shown(v->model),
                        v->model.bytes);
    }
    if (v->byte_level && !v->merges) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "key tokenizer.ggml.merges is missing");
    }
    const size_t count = v->pieces->count, n_scores = v->scores ? v->scores->count : 0;
    const size_t n_types = v->types ? v->types->count : 0;
    if (count == 0 || count > INT32_MAX || (n_scores != count && !v->byte_level) || (v->types && n_types != count)) {
        return l2c_fail(
            error, L2C_ERROR_FORMAT,
            "tokenizer.ggml.tokens, .scores and .token_type have %zu, %zu and %zu elements: expected the same "
            "number",
            count, n_scores, n_types);
    }
    const bool llama3 = l2c_text_is(v->pre, "llama-bpe") || l2c_text_is(v->pre, "llama3");
    v->unk = -1;
    v->bos = v->byte_level ? -1 : 1;
    v->eos = v->byte_level ? -1 : 2;
    v->add_bos = !v->byte_level || llama3;
    if (read_id(g, "tokenizer.ggml.unknown_token_id", &v->unk, (int64_t)count, error) ||
        read_id(g, "tokenizer.ggml.bos_token_id", &v->bos, (int64_t)count, error) ||
        read_id(g, "tokenizer.ggml.eos_token_id", &v->eos, (int64_t)count, error) ||
        l2c_gguf_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, error) ||
        l2c_gguf_bool(g, "tokenizer.ggml.add_bos_token", &v->add_bos, error) ||
        l2c_gguf_bool(g, "tokenizer.ggml.add_eos_token", &v->add_eos, error)) {
        return error->status;
    }
    return L2C_OK;
}

/* Copies a piece with U+2581, which stands for a space in SentencePiece's kind, as a space; returns its new size. */
static size_t copy_piece(char *out, l2c_text piece) {
    size_t size = 0;
    for (size_t i = 0; i < piece.size; i++) {
        if (piece.size - i >= 3 && memcmp(piece.bytes + i, "\xe2\x96\x81", 3) == 0) {
            out[size++] = ' ';
            i += 2;
        } else {
            out[size++] = piece.bytes[i];
        }
    }
    return size;
}

/* The arrays of a token table. */
typedef struct columns {
    const char **pieces;
    int32_t *lengths;
    float *scores;
    uint8_t *types;
    char *text;
    const char **merges;
    int32_t *merge_lengths;
} columns;

static void free_columns(columns *c) {
    free((void *)c->pieces);
    free(c->lengths);
    free(c->scores);
    free(c->types);
    free(c->text);
    free((void *)c->merges);
    free(c->merge_lengths);
}

static int fill_columns(columns *c, const vocabulary *v, l2c_error *error) {
    const size_t count = v->pieces->count, n_merges = v->byte_level ? v->merges->count : 0;
    const uint8_t *data = v->pieces->data, *merge = v->byte_level ? v->merges->data : NULL;
    *c = (columns){
        .pieces = malloc(count * sizeof *c->pieces),
        .lengths = malloc(count * sizeof *c->lengths),
        .scores = malloc(count * sizeof *c->scores),
        .types = malloc(count),
        .text = malloc(v->pieces->bytes),
        .merges = malloc((n_merges + 1) * sizeof *c->merges),
        .merge_lengths = malloc((n_merges + 1) * sizeof *c->merge_lengths),
    };
    if (!c->pieces || !c->lengths || !c->scores || !c->types || !c->text || !c->merges || !c->merge_lengths) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a vocabulary of %zu tokens", count);
    }
    char *end = c->text;
    for (size_t i = 0; i < count; i++) {
        const l2c_text piece = l2c_gguf_next_string(&data);
        const uint32_t type = v->types ? l2c_u32(v->types->data + 4 * i) : L2C_TOKEN_NORMAL;
        if (piece.size > INT32_MAX || type > UINT8_MAX) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %zu: %zu bytes, type %lu: expected less than 2^31, 1 to 6",
                            i, piece.size, (unsigned long)type);
        }
        const size_t size = v->byte_level ? piece.size : copy_piece(end, piece);
        c->pieces[i] = v->byte_level ? piece.bytes : end;
        c->lengths[i] = (int32_t)size;
        c->scores[i] = v->byte_level ? 0.0f : l2c_f32_of_bits(l2c_u32(v->scores->data + 4 * i));
        c->types[i] = (uint8_t)type;
        end += v->byte_level ? 0 : size;
    }
    for (size_t i = 0; i < n_merges; i++) {
        const l2c_text text = l2c_gguf_next_string(&merge);
        if (text.size > INT32_MAX || n_merges > INT32_MAX) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "merge %zu of %zu: %zu bytes: expected less than 2^31", i,
                            n_merges, text.size);
        }
        c->merges[i] = text.bytes;
        c->merge_lengths[i] = (int32_t)text.size;
    }
    return L2C_OK;
}

static int create_sentencepiece(l2c_tokenizer **out, const vocabulary *v, const columns *c, l2c_error *error) {
    const l2c_token_table table = {
        .count = (int32_t)v->pieces->count,
        .pieces = c->pieces,
        .lengths = c->lengths,
        .scores = c->scores,
        .types = c->types,
        .unk = (int32_t)v->unk,
        .bos = (int32_t)v->bos,
        .eos = (int32_t)v->eos,
        .add_space_prefix = v->add_space_prefix,
    };
    return l2c_tokenizer_create(out, &table, error);
}

static int create_byte_level(l2c_tokenizer **out, const vocabulary *v, const columns *c, l2c_error *error) {
    char pre[64] = "";
    if (v->pre.size < sizeof pre && !memchr(v->pre.bytes, 0, v->pre.size)) {
        memcpy(pre, v->pre.bytes, v->pre.size);
    }
    const l2c_bpe_table table = {
        .count = (int32_t)v->pieces->count,
        .pieces = c->pieces,
        .lengths = c->lengths,
        .types = c->types,
        .n_merges = (int32_t)v->merges->count,
        .merges = c->merges,
        .merge_lengths = c->merge_lengths,
        .pre = pre,
        .bos = (int32_t)v->bos,
        .eos = (int32_t)v->eos,
        .ignore_merges = strcmp(pre, "llama-bpe") == 0 || strcmp(pre, "llama3") == 0,
    };
    return l2c_tokenizer_create_bpe(out, &table, error);
}

int l2c_tokenizer_read_gguf(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error) {
    l2c_gguf g;
    vocabulary v;
    columns c = {0};
    *out = NULL;
    int status = l2c_gguf_read(&g, bytes, size, error);
    if (status != L2C_OK) {
        return status;
    }
    status = read_vocabulary(&v, &g, error);
    if (status == L2C_OK) {
        status = fill_columns(&c, &v, error);
    }
    if (status == L2C_OK) {
        status = (v.byte_level ? create_byte_level : create_sentencepiece)(out, &v, &c, error);
    }
    if (status == L2C_OK) {
        (*out)->add_bos = v.add_bos;
        (*out)->add_eos = v.add_eos;
    }
    free_columns(&c);
    l2c_gguf_free(&g);
    return status;
}
