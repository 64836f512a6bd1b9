/* tokenizer_bpe.c: vocabularies of byte-level BPE, as GPT-2 and Llama 3 have them.
 *
 * GGUF, after GPT-2, writes each byte as a character that can be seen; here pieces are bytes again. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

/* The byte that a character of two bytes stands for in GPT-2's alphabet, else -1: the visible ones of Latin-1 for
 * themselves, as those of ASCII do, and U+0100 to U+0143 for the others, in their order. */
static int32_t byte_of(uint32_t first, uint32_t second) {
    const uint32_t point = (first & 0x1F) << 6 | (second & 0x3F);
    if (first < 0xC2 || first > 0xC5 || (second & 0xC0) != 0x80 || point < 0xA1 || point == 0xAD || point > 0x143) {
        return -1;
    }
    const int32_t other = (int32_t)point - 0x100;
    return other < 0 ? (int32_t)point : other <= 0x20 ? other : other <= 0x42 ? other - 0x21 + 0x7F : 0xAD;
}

/* A piece of the vocabulary, or what a merge says is one. */
typedef struct part {
    const char *bytes; /* [size] */
    size_t size;
    uint64_t hash;
} part;

/* The bytes that characters stand for, from *at up to `end` or to one that stands for none, where *at is left. They are
 * at most as many as the characters have. */
static part unspell(char *out, const char **at, const char *end) {
    part p = {out, 0, L2C_HASH_SEED};
    for (const char *from = *at; from < end; *at = from) {
        const uint8_t first = (uint8_t)*from++;
        int32_t value = first;
        if (first < 0x21 || first > 0x7E) {
            value = from < end ? byte_of(first, (uint8_t)*from++) : -1;
        }
        if (value < 0) {
            break;
        }
        out[p.size++] = (char)value;
        p.hash = l2c_hash_step(p.hash, (char)value);
    }
    return p;
}

static int add_tokens(l2c_tokenizer *t, const l2c_bpe_table *table, l2c_error *error) {
    char *end = t->text;
    for (int32_t id = 0; id < t->count; id++) {
        const char *at = table->pieces[id];
        const size_t length = (size_t)table->lengths[id];
        part piece = {end, length, L2C_HASH_SEED};
        const bool is_normal = table->types[id] == L2C_TOKEN_NORMAL;
        if (table->types[id] == L2C_TOKEN_BYTE) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "token %d: its type is 6, a byte token, in a byte-level vocabulary", id);
        }
        if (is_normal && length == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: its piece is empty", id);
        }
        if (is_normal && table->merges) {
            const char *stop = at + length;
            piece = unspell(end, &at, stop);
            if (at < stop) {
                return l2c_fail(error, L2C_ERROR_FORMAT,
                                "token %d: its piece has a character outside GPT-2's alphabet of bytes, which only "
                                "control and user-defined tokens may have",
                                id);
            }
        } else if (length > 0) {
            memcpy(end, at, length);
            piece.hash = l2c_hash_bytes(piece.hash, end, length);
        }
        const l2c_token token = {
            .piece = end, .length = (int32_t)piece.size, .order = ~(uint32_t)id, .type = table->types[id]};
        if (!l2c_tokenizer_add(t, id, &token, piece.hash) && is_normal) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: an earlier token has the same piece", id);
        }
        if (is_normal && piece.size == 1) {
            t->byte_ids[(uint8_t)end[0]] = id;
        }
        end += piece.size;
    }
    return L2C_OK;
}

/* Merges are read so many ahead, each of whose parts waits for memory twice, for a slot and for the token there: many
 * that wait together take little longer than one. */
enum { AHEAD = 64 };

typedef struct batch {
    part left[AHEAD], right[AHEAD];
    char *text;  /* [room], the parts: each merge's right one after its left one */
    size_t room; /* for the longest merge at least */
} batch;

static bool read_merge(batch *b, int32_t i, char *text, const char *spelling, size_t length) {
    const char *at = spelling, *end = spelling + length;
    b->left[i] = unspell(text, &at, end);
    if (at == end || *at++ != ' ') {
        return false;
    }
    b->right[i] = unspell(text + b->left[i].size, &at, end);
    return at == end && b->left[i].size > 0 && b->right[i].size > 0;
}

/* The token that a hash leads to first, mostly the one looked for; any if there is none. */
static const l2c_token *likely(const l2c_tokenizer *t, uint64_t hash) {
    const int32_t rank = t->slots[hash & t->slot_mask].rank;
    return &t->tokens[rank > 0 ? rank - 1 : 0];
}

/* Reads merges from `rank` on, as many as there is room for: their number. The first that is spelled wrong ends them,
 * for an error of an earlier one comes first. */
static int32_t read_batch(batch *b, const l2c_tokenizer *t, const l2c_bpe_table *table, int32_t rank) {
    int32_t n = 0;
    for (size_t used = 0; n < AHEAD && rank + n < table->n_merges; n++) {
        const size_t length = (size_t)table->merge_lengths[rank + n];
        if (length > b->room - used || !read_merge(b, n, b->text + used, table->merges[rank + n], length)) {
            break;
        }
        used += length;
        L2C_PREFETCH(&t->slots[b->left[n].hash & t->slot_mask]);
        L2C_PREFETCH(&t->slots[b->right[n].hash & t->slot_mask]);
    }
    for (int32_t i = 0; i < n; i++) {
        L2C_PREFETCH(likely(t, b->left[i].hash));
        L2C_PREFETCH(likely(t, b->right[i].hash));
    }
    return n;
}

/* *id: of a piece that text can become, else -1. Returns -1 if there is no such piece of any type. */
static int find(const l2c_tokenizer *t, int32_t *id, part p) {
    *id = l2c_tokenizer_match(t, p.hash, p.bytes, p.size, true);
    return *id >= 0 || l2c_tokenizer_match(t, p.hash, p.bytes, p.size, false) >= 0 ? 0 : -1;
}

/* The same for what a merge joins to. Files list merges mostly by that: the id before, or the next one, is likely. */
static int find_joined(const l2c_tokenizer *t, int32_t *id, int32_t before, part left, part right) {
    const size_t size = left.size + right.size;
    for (*id = before; *id >= 0 && *id < t->count && *id <= before + 1; ++*id) {
        const l2c_token *token = &t->tokens[*id];
        if (token->type == L2C_TOKEN_NORMAL && (size_t)token->length == size &&
            memcmp(token->piece, left.bytes, size) == 0) {
            return 0;
        }
    }
    return find(t, id, (part){left.bytes, size, l2c_hash_bytes(left.hash, right.bytes, right.size)});
}

static int read_merges(l2c_tokenizer *t, batch *b, const l2c_bpe_table *table, l2c_error *error) {
    int32_t before = -1;
    for (int32_t rank = 0, n; rank < table->n_merges; rank += n) {
        n = read_batch(b, t, table, rank);
        if (n == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "merge %d: expected two pieces in GPT-2's alphabet of bytes with a space between them",
                            rank);
        }
        for (int32_t i = 0; i < n; i++) {
            l2c_merge *merge = &t->merges[rank + i];
            const part left = b->left[i], right = b->right[i];
            const char *missing = find(t, &merge->left, left) < 0                       ? "its left part"
                                  : find(t, &merge->right, right) < 0                   ? "its right part"
                                  : find_joined(t, &merge->id, before, left, right) < 0 ? "what it joins to"
                                                                                        : NULL;
            if (missing) {
                return l2c_fail(error, L2C_ERROR_FORMAT, "merge %d: %s is no piece of the vocabulary", rank + i,
                                missing);
            }
            before = merge->id;
        }
    }
    return L2C_OK;
}

/* Of equal pairs the first counts. A pair with a piece of another type than normal is never met in a text, and what
 * joins to one was cut out of it. */
static void index_merges(l2c_tokenizer *t, int32_t n_merges) {
    for (int32_t rank = 0; rank < n_merges; rank++) {
        const l2c_merge *merge = &t->merges[rank];
        if (n_merges - rank > AHEAD) {
            L2C_PREFETCH(&t->merge_slots[l2c_hash_pair(merge[AHEAD].left, merge[AHEAD].right) & t->merge_mask]);
        }
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
    batch b = {.room = longest + 64 * AHEAD};
    b.text = malloc(b.room);
    int status = L2C_OK;
    if (!t->merge_slots || !t->merges || !b.text) {
        status = l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for a vocabulary of %d merges", table->n_merges);
    } else {
        status = read_merges(t, &b, table, error);
    }
    if (status == L2C_OK) {
        index_merges(t, table->n_merges);
    }
    free(b.text);
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
