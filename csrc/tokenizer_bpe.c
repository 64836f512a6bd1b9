/* tokenizer_bpe.c: vocabularies of byte-level BPE, as GPT-2 and Llama 3 have them.
 *
 * GGUF, after GPT-2, writes each byte as a character that can be seen; here pieces are bytes again. */
#include "tokenizer.h"

#include "unicode.h"

#include <stdlib.h>
#include <string.h>

/* The byte that a character of GPT-2's alphabet stands for, else -1: the visible ones of Latin-1 for themselves, and
 * U+0100 to U+0143 for the others, in their order. */
static int32_t byte_of(uint32_t point) {
    if ((point >= 0x21 && point <= 0x7E) || (point >= 0xA1 && point <= 0xFF && point != 0xAD)) {
        return (int32_t)point;
    }
    if (point < 0x100 || point > 0x143) {
        return -1;
    }
    return point <= 0x120 ? (int32_t)point - 0x100 : point <= 0x142 ? (int32_t)point - 0x121 + 0x7F : 0xAD;
}

/* The bytes that a spelling stands for, at most as many as it has; -1 for another character. *size: of the bytes. */
static int unspell(char *out, size_t *size, const char *spelling, size_t length) {
    *size = 0;
    for (size_t at = 0; at < length;) {
        uint32_t point = (uint8_t)spelling[at];
        at += point < 0x80 ? 1 : l2c_utf8_decode(&point, spelling + at, length - at);
        const int32_t value = byte_of(point);
        if (value < 0) {
            return -1;
        }
        out[(*size)++] = (char)value;
    }
    return 0;
}

static int add_tokens(l2c_tokenizer *t, const l2c_bpe_table *table, l2c_error *error) {
    char *end = t->text;
    for (int32_t id = 0; id < t->count; id++) {
        const char *piece = table->pieces[id];
        size_t size = (size_t)table->lengths[id];
        const bool is_normal = table->types[id] == L2C_TOKEN_NORMAL;
        if (table->types[id] == L2C_TOKEN_BYTE) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "token %d: its type is 6, a byte token, in a byte-level vocabulary", id);
        }
        if (is_normal && size == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: its piece is empty", id);
        }
        if (is_normal && table->merges) {
            if (unspell(end, &size, piece, size) < 0) {
                return l2c_fail(error, L2C_ERROR_FORMAT,
                                "token %d: its piece has a character outside GPT-2's alphabet of bytes, which only "
                                "control and user-defined tokens may have",
                                id);
            }
        } else if (size > 0) {
            memcpy(end, piece, size);
        }
        const l2c_token token = {
            .piece = end, .length = (int32_t)size, .order = ~(uint32_t)id, .type = table->types[id]};
        if (!l2c_tokenizer_add(t, id, &token) && is_normal) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: an earlier token has the same piece", id);
        }
        if (is_normal && size == 1) {
            t->byte_ids[(uint8_t)end[0]] = id;
        }
        end += size;
    }
    return L2C_OK;
}

/* *id: of a piece that text can become, else -1. Returns -1 if there is no such piece of any type. */
static int find(const l2c_tokenizer *t, int32_t *id, const char *piece, size_t size) {
    const uint64_t hash = l2c_hash_bytes(L2C_HASH_SEED, piece, size);
    *id = l2c_tokenizer_match(t, hash, piece, size, true);
    return *id >= 0 || l2c_tokenizer_match(t, hash, piece, size, false) >= 0 ? 0 : -1;
}

/* The same for what a merge joins to. Files list merges mostly by that: the id before, or the next one, is likely. */
static int find_joined(const l2c_tokenizer *t, int32_t *id, int32_t before, const char *piece, size_t size) {
    for (*id = before; *id >= 0 && *id < t->count && *id <= before + 1; ++*id) {
        const l2c_token *token = &t->tokens[*id];
        if (token->type == L2C_TOKEN_NORMAL && (size_t)token->length == size &&
            memcmp(token->piece, piece, size) == 0) {
            return 0;
        }
    }
    return find(t, id, piece, size);
}

/* `scratch` has room for the longest merge. */
static int read_merges(l2c_tokenizer *t, char *scratch, const l2c_bpe_table *table, l2c_error *error) {
    int32_t before = -1;
    for (int32_t rank = 0; rank < table->n_merges; rank++) {
        l2c_merge *merge = &t->merges[rank];
        const char *spelling = table->merges[rank];
        const size_t length = (size_t)table->merge_lengths[rank];
        const char *gap = length > 0 ? memchr(spelling, ' ', length) : NULL;
        size_t left = 0, right = 0;
        if (!gap || unspell(scratch, &left, spelling, (size_t)(gap - spelling)) < 0 ||
            unspell(scratch + left, &right, gap + 1, length - 1 - (size_t)(gap - spelling)) < 0 || left == 0 ||
            right == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "merge %d: expected two pieces in GPT-2's alphabet of bytes with a space between them",
                            rank);
        }
        const char *missing = find(t, &merge->left, scratch, left) < 0                        ? "its left part"
                              : find(t, &merge->right, scratch + left, right) < 0             ? "its right part"
                              : find_joined(t, &merge->id, before, scratch, left + right) < 0 ? "what it joins to"
                                                                                              : NULL;
        if (missing) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "merge %d: %s is no piece of the vocabulary", rank, missing);
        }
        before = merge->id;
    }
    return L2C_OK;
}

/* Of equal pairs the first counts. A pair with a piece of another type than normal is never met in a text, and what
 * joins to one was cut out of it. */
static void index_merges(l2c_tokenizer *t, int32_t n_merges) {
    for (int32_t rank = 0; rank < n_merges; rank++) {
        const l2c_merge *merge = &t->merges[rank];
        if (merge->left >= 0 && merge->right >= 0 && merge->id >= 0) {
            int32_t *slot = l2c_merge_slot(t, merge->left, merge->right);
            *slot = *slot ? *slot : rank + 1;
        }
    }
}

static int take_merges(l2c_tokenizer *t, const l2c_bpe_table *table, l2c_error *error) {
    size_t slots = 2, longest = 0;
    if (table->n_merges < 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "the vocabulary has %d merges, expected 0 or more", table->n_merges);
    }
    for (int32_t rank = 0; rank < table->n_merges; rank++) {
        const int32_t length = table->merge_lengths[rank];
        if (length < 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "merge %d: its length is %d, expected 0 or more", rank, length);
        }
        longest = (size_t)length > longest ? (size_t)length : longest;
    }
    while (slots < (size_t)table->n_merges + (size_t)table->n_merges / 2) {
        slots *= 2;
    }
    t->merge_mask = slots - 1;
    t->merge_slots = calloc(slots, sizeof *t->merge_slots);
    t->merges = malloc(((size_t)table->n_merges + 1) * sizeof *t->merges);
    char *scratch = malloc(longest + 1);
    int status = L2C_OK;
    if (!t->merge_slots || !t->merges || !scratch) {
        status = l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for a vocabulary of %d merges", table->n_merges);
    } else {
        status = read_merges(t, scratch, table, error);
    }
    if (status == L2C_OK) {
        index_merges(t, table->n_merges);
    }
    free(scratch);
    return status;
}

int l2c_tokenizer_create_bpe(l2c_tokenizer **out, const l2c_bpe_table *table, l2c_error *error) {
    *out = NULL;
    l2c_pretokenizer *pretokenize = l2c_pretokenizer_find(table->pre);
    if (!pretokenize) {
        char name[81] = {0};
        for (size_t i = 0; i + 1 < sizeof name && table->pre[i]; i++) { /* a message is one line */
            name[i] = (uint8_t)table->pre[i] < 0x20 ? '?' : table->pre[i];
        }
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED, "the pre-tokenizer is \"%s\", expected one of %s", name,
                        L2C_PRETOKENIZER_NAMES);
    }
    int status =
        l2c_tokenizer_begin(out, table->count, table->lengths, table->types, -1, table->bos, table->eos, error);
    if (status == L2C_OK) {
        (*out)->pretokenize = pretokenize;
        (*out)->ignore_merges = table->ignore_merges;
        (*out)->matched = L2C_TOKEN_BIT(L2C_TOKEN_NORMAL);
        status = add_tokens(*out, table, error);
    }
    if (status == L2C_OK && table->merges) {
        status = take_merges(*out, table, error);
    }
    if (status != L2C_OK) {
        l2c_tokenizer_free(out);
    }
    return status;
}
