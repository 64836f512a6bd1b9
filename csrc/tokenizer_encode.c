/* tokenizer_encode.c: text to token ids, as SentencePiece's BPE and byte-level BPE do it.
 *
 *   text --special tokens cut out--> parts --> stretches --> symbols --best neighbours joined, again and again--> ids
 *
 * SentencePiece's symbols are characters. A stretch ends where no piece of the vocabulary could span two neighbouring
 * bytes (in Llama's mostly between words): cutting the text there changes no id and keeps the heap small. In byte-level
 * BPE a stretch is a pre-token, and its symbols are bytes. */
#include "tokenizer.h"

#include "unicode.h"

#include <stdlib.h>
#include <string.h>

#define NONE UINT32_MAX

typedef struct symbol {
    uint32_t previous, next; /* offsets in the stretch, NONE at its ends */
    uint32_t size;           /* in bytes; 0 once joined to its left neighbour */
    int32_t id;              /* -1: not in the vocabulary */
} symbol;

typedef struct candidate { /* two neighbours that spell a piece */
    uint64_t key;  /* the better the greater: order of the piece, then ~(offset of the left one), so ties go leftmost */
    uint32_t size; /* of both; tells whether they have changed since */
    int32_t id;
} candidate;

typedef struct encoder {
    const l2c_tokenizer *tokenizer;
    const char *text; /* the stretch */
    symbol *symbols;  /* [symbol_capacity], each at the offset of its first byte */
    candidate *heap;  /* [heap_capacity], the best first */
    uint32_t *splits; /* [count] bytes of the left part in the join last seen of an UNUSED piece; NULL without such */
    int32_t *ids;     /* [2 * bytes of text + 1]: at most one a byte, and one a space put before a part */
    size_t symbol_capacity, heap_capacity, heap_size, id_count;
    bool after_unknown;
} encoder;

static int32_t find(const l2c_tokenizer *t, const char *piece, size_t size) {
    return l2c_tokenizer_match(t, l2c_hash_bytes(L2C_HASH_SEED, piece, size), piece, size, true);
}

static bool has_type(const l2c_tokenizer *t, int32_t id, l2c_token_type type) {
    return id >= 0 && t->tokens[id].type == type;
}

/* ---- Symbols ---- */

/* Bytes of the longest user-defined or control piece that the text begins with, of those in a set of types, and its id;
 * 0 if there is none. */
static size_t special_length(const l2c_tokenizer *t, unsigned types, const char *text, size_t size, int32_t *id) {
    if (!(t->special_first[(uint8_t)text[0]] & types)) {
        return 0;
    }
    const size_t limit = size < t->longest_special ? size : t->longest_special;
    uint64_t hash = L2C_HASH_SEED;
    size_t best = 0;
    for (size_t length = 1; length <= limit; length++) {
        hash = l2c_hash_step(hash, text[length - 1]);
        for (int matched = 0; matched < 2; matched++) {
            const int32_t found = l2c_tokenizer_match(t, hash, text, length, matched);
            if (found >= 0 && types & L2C_TOKEN_BIT(t->tokens[found].type)) {
                best = length;
                *id = found;
            }
        }
    }
    return best;
}

/* Bytes of the next symbol, and its id: the longest user-defined piece, else one character. */
static size_t next_symbol(const l2c_tokenizer *t, const char *text, size_t size, int32_t *id) {
    uint32_t point;
    size_t length = special_length(t, L2C_TOKEN_BIT(L2C_TOKEN_USER_DEFINED), text, size, id);
    if (length == 0) {
        length = l2c_utf8_decode(&point, text, size);
        *id = find(t, text, length);
    }
    return length;
}

/* Whether two neighbouring bytes may end up in one piece. With UNUSED pieces all may: see `split`. */
static bool can_join(const l2c_tokenizer *t, char a, char b) {
    const uint8_t bit = (uint8_t)b;
    return t->has_unused || (t->joins[(uint8_t)a][bit / 8] >> bit % 8 & 1);
}

/* ---- Merging ---- */

static void heap_push(encoder *e, candidate c) {
    size_t at = e->heap_size++;
    while (at > 0 && c.key > e->heap[(at - 1) / 2].key) {
        e->heap[at] = e->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    e->heap[at] = c;
}

static candidate heap_pop(encoder *e) {
    const candidate best = e->heap[0];
    const candidate last = e->heap[--e->heap_size];
    size_t at = 0;
    for (size_t child = 1; child < e->heap_size; child = 2 * at + 1) {
        child += child + 1 < e->heap_size && e->heap[child + 1].key > e->heap[child].key;
        if (e->heap[child].key <= last.key) {
            break;
        }
        e->heap[at] = e->heap[child];
        at = child;
    }
    e->heap[at] = last;
    return best;
}

/* Id of what two neighbours join to, the first at `text`, and its order; -1 if they do not. */
static int32_t joined(const l2c_tokenizer *t, const char *text, const symbol *a, const symbol *b, uint32_t *order) {
    if (t->merges) {
        const int32_t rank = *l2c_merge_slot(t, a->id, b->id) - 1;
        *order = ~(uint32_t)rank;
        return rank < 0 ? -1 : t->merges[rank].id;
    }
    const uint32_t size = a->size + b->size;
    if (size > t->longest || has_type(t, a->id, L2C_TOKEN_USER_DEFINED) || has_type(t, b->id, L2C_TOKEN_USER_DEFINED)) {
        return -1;
    }
    const int32_t id = find(t, text, size);
    *order = id < 0 ? 0 : t->tokens[id].order;
    return id;
}

static void propose(encoder *e, uint32_t left) {
    if (left == NONE || e->symbols[left].next == NONE) {
        return;
    }
    const symbol *a = &e->symbols[left], *b = &e->symbols[a->next];
    uint32_t order;
    const int32_t id = joined(e->tokenizer, e->text + left, a, b, &order);
    if (id >= 0) {
        heap_push(e, (candidate){(uint64_t)order << 32 | (uint32_t)~left, a->size + b->size, id});
        if (has_type(e->tokenizer, id, L2C_TOKEN_UNUSED)) {
            e->splits[id] = a->size;
        }
    }
}

static void merge(encoder *e) {
    for (uint32_t at = 0; at != NONE; at = e->symbols[at].next) {
        propose(e, at);
    }
    while (e->heap_size) {
        const candidate best = heap_pop(e);
        const uint32_t left = ~(uint32_t)best.key;
        symbol *a = &e->symbols[left];
        if (a->size == 0 || a->next == NONE || a->size + e->symbols[a->next].size != best.size) {
            continue;
        }
        symbol *b = &e->symbols[a->next];
        a->size = best.size;
        a->id = best.id;
        a->next = b->next;
        b->size = 0;
        if (a->next != NONE) {
            e->symbols[a->next].previous = left;
        }
        propose(e, a->previous);
        propose(e, left);
    }
}

/* An UNUSED piece helps merging but is no result: it falls apart as it was last joined anywhere in the text. */
static void split(encoder *e, uint32_t at) {
    symbol *a = &e->symbols[at];
    const uint32_t size = e->splits[a->id], right = at + size;
    symbol *b = &e->symbols[right];
    *b = (symbol){at, a->next, a->size - size, find(e->tokenizer, e->text + right, a->size - size)};
    a->next = right;
    a->size = size;
    a->id = find(e->tokenizer, e->text + at, size);
}

static int emit(encoder *e, l2c_error *error) {
    const l2c_tokenizer *t = e->tokenizer;
    for (uint32_t at = 0; at != NONE; at = e->symbols[at].next) {
        const symbol *s = &e->symbols[at];
        while (has_type(t, s->id, L2C_TOKEN_UNUSED) && e->splits[s->id]) {
            split(e, at);
        }
        const bool is_known = s->id >= 0 && !has_type(t, s->id, L2C_TOKEN_UNUSED);
        if (is_known) {
            e->ids[e->id_count++] = s->id;
        } else if (t->has_bytes) {
            for (uint32_t i = 0; i < s->size; i++) {
                e->ids[e->id_count++] = t->byte_ids[(uint8_t)e->text[at + i]];
            }
        } else if (t->unk < 0) {
            return l2c_fail(error, L2C_ERROR_ARGUMENT,
                            "the vocabulary has no token for the character that begins with byte 0x%02X, and neither "
                            "byte tokens nor an unknown token to stand for it",
                            (unsigned)(uint8_t)e->text[at]);
        } else if (!e->after_unknown) {
            e->ids[e->id_count++] = t->unk; /* one for a run of them, as SentencePiece has it */
        }
        e->after_unknown = !is_known;
    }
    return L2C_OK;
}

/* ---- Stretches ---- */

static int reserve_symbols(encoder *e, size_t size, l2c_error *error) {
    if (size > e->symbol_capacity) {
        const size_t capacity = 2 * size;
        symbol *larger = capacity > SIZE_MAX / sizeof *larger ? NULL : realloc(e->symbols, capacity * sizeof *larger);
        if (!larger) {
            return l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for %zu symbols", capacity);
        }
        e->symbols = larger;
        e->symbol_capacity = capacity;
    }
    return L2C_OK;
}

/* n symbols make n - 1 candidates; each of at most n - 1 joins takes one and adds two. */
static int reserve_heap(encoder *e, size_t count, l2c_error *error) {
    if (2 * count > e->heap_capacity) {
        free(e->heap);
        e->heap_capacity = 0;
        e->heap = 2 * count > SIZE_MAX / sizeof *e->heap ? NULL : malloc(2 * count * sizeof *e->heap);
        if (!e->heap) {
            return l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for the merges of %zu symbols", count);
        }
        e->heap_capacity = 2 * count;
    }
    return L2C_OK;
}

static int too_long(l2c_error *error) {
    return l2c_fail(error, L2C_ERROR_ARGUMENT, "the text has 4 GiB that this vocabulary cannot cut in parts");
}

/* Fills `symbols` with the stretch at the start of `text`; *size is the text's, then the stretch's. */
static int take_stretch(encoder *e, const char *text, size_t *size, l2c_error *error) {
    const l2c_tokenizer *t = e->tokenizer;
    const size_t limit = *size;
    uint32_t previous = NONE;
    size_t end = 0, count = 0;
    bool joins = true;
    while (joins) {
        int32_t id;
        const size_t length = next_symbol(t, text + end, limit - end, &id);
        if (length >= NONE - end) {
            return too_long(error);
        }
        const int status = reserve_symbols(e, end + length, error);
        if (status != L2C_OK) {
            return status;
        }
        e->symbols[end] = (symbol){previous, NONE, (uint32_t)length, id};
        if (previous != NONE) {
            e->symbols[previous].next = (uint32_t)end;
        }
        previous = (uint32_t)end;
        end += length;
        count++;
        joins = end < limit && can_join(t, text[end - 1], text[end]);
    }
    e->text = text;
    *size = end;
    return reserve_heap(e, count, error);
}

/* The same for a pre-token. */
static int take_pretoken(encoder *e, const char *text, size_t *size, l2c_error *error) {
    const l2c_tokenizer *t = e->tokenizer;
    *size = t->pretokenize(text, *size);
    if (*size >= NONE) {
        return too_long(error);
    }
    const uint32_t count = (uint32_t)*size;
    const int32_t whole = t->ignore_merges && count <= t->longest ? find(t, text, count) : -1;
    const int status = reserve_symbols(e, count, error);
    if (status != L2C_OK) {
        return status;
    }
    e->text = text;
    if (whole >= 0) {
        e->symbols[0] = (symbol){NONE, NONE, count, whole};
        return L2C_OK;
    }
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t next = i + 1 < count ? i + 1 : NONE; /* i - 1 is NONE for the first */
        e->symbols[i] = (symbol){i - 1, next, 1, t->byte_ids[(uint8_t)text[i]]};
    }
    return reserve_heap(e, count, error);
}

/* ---- Encoding ---- */

/* The text as it is merged: with its space in front, and U+2581 a space, for so SentencePiece writes spaces. */
static size_t normalize(char *out, const char *text, size_t size, bool add_space_prefix) {
    size_t length = 0;
    if (add_space_prefix) {
        out[length++] = ' ';
    }
    for (size_t i = 0; i < size; length++) {
        const bool meta = size - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        out[length] = meta ? ' ' : text[i];
        i += meta ? 3 : 1;
    }
    return length;
}

/* A part between special tokens. `normal` has room for it and a byte more. */
static int encode_part(encoder *e, char *normal, const char *text, size_t size, l2c_error *error) {
    const l2c_tokenizer *t = e->tokenizer;
    if (!t->pretokenize && size > 0) {
        size = normalize(normal, text, size, t->add_space_prefix);
        text = normal;
    }
    for (size_t at = 0, step; at < size; at += step) {
        step = size - at;
        int status =
            t->pretokenize ? take_pretoken(e, text + at, &step, error) : take_stretch(e, text + at, &step, error);
        if (status == L2C_OK) {
            merge(e);
            status = emit(e, error);
        }
        if (status != L2C_OK) {
            return status;
        }
    }
    return L2C_OK;
}

/* Bytes before the first special token, with the token's bytes and id; all bytes and 0 if there is none. In
 * SentencePiece's kind user-defined pieces are symbols of the part that they are in. */
static size_t find_special(const l2c_tokenizer *t, const char *text, size_t size, bool special, size_t *length,
                           int32_t *id) {
    const unsigned user = L2C_TOKEN_BIT(L2C_TOKEN_USER_DEFINED);
    const unsigned control = special ? L2C_TOKEN_BIT(L2C_TOKEN_CONTROL) : 0;
    const bool any = control || t->pretokenize;
    for (size_t at = 0; any && at < size; at += *length ? *length : 1) {
        *length = special_length(t, user | control, text + at, size - at, id);
        if (*length && (t->pretokenize || has_type(t, *id, L2C_TOKEN_CONTROL))) {
            return at;
        }
    }
    *length = 0;
    return size;
}

static int encode_all(encoder *e, char *normal, const char *text, size_t size, bool special, l2c_error *error) {
    size_t length;
    for (size_t at = 0; at < size; at += length) {
        int32_t id = -1;
        const size_t part = find_special(e->tokenizer, text + at, size - at, special, &length, &id);
        const int status = encode_part(e, normal, text + at, part, error);
        if (status != L2C_OK) {
            return status;
        }
        at += part;
        if (length > 0) {
            e->ids[e->id_count++] = id;
            e->after_unknown = false;
        }
    }
    return L2C_OK;
}

int l2c_tokenizer_encode(const l2c_tokenizer *tokenizer, int32_t **ids, size_t *count, const char *text, size_t size,
                         bool special, l2c_error *error) {
    encoder e = {.tokenizer = tokenizer};
    *ids = NULL;
    *count = 0;
    char *normal = size < SIZE_MAX / (2 * sizeof *e.ids) ? malloc(size + 1) : NULL;
    e.ids = normal ? malloc((2 * size + 1) * sizeof *e.ids) : NULL;
    e.splits = tokenizer->has_unused ? calloc((size_t)tokenizer->count, sizeof *e.splits) : NULL;
    int status = L2C_OK;
    if (!normal || !e.ids || (tokenizer->has_unused && !e.splits)) {
        status = l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for a text of %zu bytes", size);
    } else {
        status = encode_all(&e, normal, text, size, special, error);
    }
    if (status == L2C_OK) {
        int32_t *exact = realloc(e.ids, (e.id_count + 1) * sizeof *exact);
        *ids = exact ? exact : e.ids;
        *count = e.id_count;
        e.ids = NULL;
    }
    free(normal);
    free(e.ids);
    free(e.splits);
    free(e.symbols);
    free(e.heap);
    return status;
}

void l2c_ids_free(int32_t **ids) {
    if (ids) {
        free(*ids);
        *ids = NULL;
    }
}
