/* tokenizer.c: the vocabulary: pieces, scores and types by id, ids by piece. It owns a copy of every piece. How one of
 * SentencePiece's kind is made; tokenizer_bpe.c makes the other. */
#include "tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool is_matched(const l2c_tokenizer *t, uint8_t type) {
    return t->matched & L2C_TOKEN_BIT(type);
}

/* The piece's slot, or the free one where it belongs. */
static l2c_token_slot *probe(const l2c_tokenizer *t, uint64_t hash, const char *piece, size_t size, bool matched) {
    for (size_t at = (size_t)hash & t->slot_mask;; at = (at + 1) & t->slot_mask) {
        l2c_token_slot *s = &t->slots[at];
        if (s->rank == 0) {
            return s;
        }
        if (s->tag == (uint32_t)(hash >> 32)) {
            const l2c_token *found = &t->tokens[s->rank - 1];
            if ((size_t)found->length == size && is_matched(t, found->type) == matched &&
                memcmp(found->piece, piece, size) == 0) {
                return s;
            }
        }
    }
}

int32_t l2c_tokenizer_match(const l2c_tokenizer *tokenizer, uint64_t hash, const char *piece, size_t size,
                            bool matched) {
    return probe(tokenizer, hash, piece, size, matched)->rank - 1;
}

/* The value of "<0xXX>", else -1. */
static int32_t byte_value(const char *piece, int32_t length) {
    static const char digits[] = "0123456789ABCDEF";
    if (length != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') {
        return -1;
    }
    const char *high = memchr(digits, piece[3], 16), *low = memchr(digits, piece[4], 16);
    return high && low ? (int32_t)((high - digits) * 16 + (low - digits)) : -1;
}

static uint32_t order_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are equal */
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* *bytes: of all pieces. */
static int check_table(size_t *bytes, int32_t count, const int32_t *lengths, const uint8_t *types,
                       const int32_t specials[3], l2c_error *error) {
    static const char *const names[] = {"unk", "bos", "eos"};
    *bytes = 0;
    if (count < 1) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "the vocabulary has %d tokens, expected at least 1", count);
    }
    for (int i = 0; i < 3; i++) {
        if (specials[i] < -1 || specials[i] >= count) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "the id of %s is %d, expected -1 to %d", names[i], specials[i],
                            count - 1);
        }
    }
    for (int32_t id = 0; id < count; id++) {
        if (lengths[id] < 0 || (size_t)lengths[id] > SIZE_MAX - 1 - *bytes) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: its length is %d, expected 0 or more", id, lengths[id]);
        }
        if (types[id] < L2C_TOKEN_NORMAL || types[id] > L2C_TOKEN_BYTE) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: its type is %d, expected 1 to 6", id, types[id]);
        }
        *bytes += (size_t)lengths[id];
    }
    return L2C_OK;
}

int l2c_tokenizer_begin(l2c_tokenizer **out, int32_t count, const int32_t *lengths, const uint8_t *types, int32_t unk,
                        int32_t bos, int32_t eos, l2c_error *error) {
    size_t bytes, slots = 2;
    *out = NULL;
    const int status = check_table(&bytes, count, lengths, types, (const int32_t[]){unk, bos, eos}, error);
    if (status != L2C_OK) {
        return status;
    }
    while (slots < 2 * (size_t)count) {
        slots *= 2;
    }
    l2c_tokenizer *t = calloc(1, sizeof *t);
    if (t) {
        t->tokens = calloc((size_t)count, sizeof *t->tokens);
        t->slots = calloc(slots, sizeof *t->slots);
        t->text = malloc(bytes + 1);
    }
    if (!t || !t->tokens || !t->slots || !t->text) {
        l2c_tokenizer_free(&t);
        return l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for a vocabulary of %d tokens", count);
    }
    t->count = count;
    t->unk = unk;
    t->bos = bos;
    t->eos = eos;
    t->add_bos = true;
    t->slot_mask = slots - 1;
    for (int value = 0; value < 256; value++) {
        t->byte_ids[value] = -1;
        t->byte_values[value] = (char)value;
    }
    *out = t;
    return L2C_OK;
}

bool l2c_tokenizer_add(l2c_tokenizer *tokenizer, int32_t id, const l2c_token *token, uint64_t hash) {
    l2c_tokenizer *t = tokenizer;
    const size_t length = (size_t)token->length;
    l2c_token_slot *place = probe(t, hash, token->piece, length, is_matched(t, token->type));
    t->tokens[id] = *token;
    if (length == 0) {
        return true;
    }
    if (place->rank != 0) {
        return false;
    }
    *place = (l2c_token_slot){(uint32_t)(hash >> 32), id + 1};
    if (token->type == L2C_TOKEN_USER_DEFINED || token->type == L2C_TOKEN_CONTROL) {
        t->special_first[(uint8_t)token->piece[0]] |= (uint8_t)L2C_TOKEN_BIT(token->type);
        t->longest_special = length > t->longest_special ? length : t->longest_special;
    }
    if (is_matched(t, token->type)) {
        t->longest = length > t->longest ? length : t->longest;
        t->has_unused |= token->type == L2C_TOKEN_UNUSED;
    }
    return true;
}

/* ---- SentencePiece's kind ---- */

/* Notes a byte token, and which bytes stand beside each other in a piece. */
static void index_bytes(l2c_tokenizer *t, int32_t id, int32_t *bytes_found) {
    l2c_token *added = &t->tokens[id];
    if (added->type == L2C_TOKEN_BYTE) {
        const int32_t value = byte_value(added->piece, added->length);
        added->byte = (uint8_t)value;
        if (t->byte_ids[value] < 0) {
            t->byte_ids[value] = id;
            ++*bytes_found;
        }
    }
    for (int32_t i = 1; is_matched(t, added->type) && i < added->length; i++) {
        const uint8_t a = (uint8_t)added->piece[i - 1], b = (uint8_t)added->piece[i];
        t->joins[a][b / 8] |= (uint8_t)(1u << b % 8);
    }
}

static int add_tokens(l2c_tokenizer *t, const l2c_token_table *table, l2c_error *error) {
    char *end = t->text;
    int32_t bytes_found = 0;
    for (int32_t id = 0; id < t->count; id++) {
        const int32_t length = table->lengths[id];
        if (isnan(table->scores[id])) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: its score is not a number", id);
        }
        if (table->types[id] == L2C_TOKEN_BYTE && byte_value(table->pieces[id], length) < 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "token %d: a byte token must be spelled <0x00> to <0xFF>", id);
        }
        if (length > 0) {
            memcpy(end, table->pieces[id], (size_t)length);
        }
        l2c_tokenizer_add(t, id,
                          &(l2c_token){.piece = end,
                                       .length = length,
                                       .score = table->scores[id],
                                       .order = order_of(table->scores[id]),
                                       .type = table->types[id]},
                          l2c_hash_bytes(L2C_HASH_SEED, end, (size_t)length));
        index_bytes(t, id, &bytes_found);
        end += length;
    }
    t->has_bytes = bytes_found == 256;
    return L2C_OK;
}

int l2c_tokenizer_create(l2c_tokenizer **out, const l2c_token_table *table, l2c_error *error) {
    int status =
        l2c_tokenizer_begin(out, table->count, table->lengths, table->types, table->unk, table->bos, table->eos, error);
    if (status == L2C_OK) {
        (*out)->add_space_prefix = table->add_space_prefix;
        (*out)->matched =
            L2C_TOKEN_BIT(L2C_TOKEN_NORMAL) | L2C_TOKEN_BIT(L2C_TOKEN_USER_DEFINED) | L2C_TOKEN_BIT(L2C_TOKEN_UNUSED);
        status = add_tokens(*out, table, error);
    }
    if (status != L2C_OK) {
        l2c_tokenizer_free(out);
    }
    return status;
}

/* ---- Both kinds ---- */

void l2c_tokenizer_free(l2c_tokenizer **tokenizer) {
    if (tokenizer && *tokenizer) {
        free((*tokenizer)->tokens);
        free((*tokenizer)->slots);
        free((*tokenizer)->merges);
        free((*tokenizer)->merge_slots);
        free((*tokenizer)->text);
        free(*tokenizer);
        *tokenizer = NULL;
    }
}

int32_t l2c_tokenizer_count(const l2c_tokenizer *tokenizer) {
    return tokenizer->count;
}
int32_t l2c_tokenizer_unk(const l2c_tokenizer *tokenizer) {
    return tokenizer->unk;
}
int32_t l2c_tokenizer_bos(const l2c_tokenizer *tokenizer) {
    return tokenizer->bos;
}
int32_t l2c_tokenizer_eos(const l2c_tokenizer *tokenizer) {
    return tokenizer->eos;
}

bool l2c_tokenizer_add_bos(const l2c_tokenizer *tokenizer) {
    return tokenizer->add_bos;
}

bool l2c_tokenizer_add_eos(const l2c_tokenizer *tokenizer) {
    return tokenizer->add_eos;
}

bool l2c_tokenizer_add_space_prefix(const l2c_tokenizer *tokenizer) {
    return tokenizer->add_space_prefix;
}

const char *l2c_tokenizer_bytes(const l2c_tokenizer *tokenizer, int32_t id, size_t *size) {
    *size = 0;
    if (id < 0 || id >= tokenizer->count || tokenizer->tokens[id].type == L2C_TOKEN_CONTROL) {
        return tokenizer->text;
    }
    const l2c_token *found = &tokenizer->tokens[id];
    const bool is_byte = found->type == L2C_TOKEN_BYTE;
    *size = is_byte ? 1 : (size_t)found->length;
    return is_byte ? &tokenizer->byte_values[found->byte] : found->piece;
}

const char *l2c_tokenizer_piece(const l2c_tokenizer *tokenizer, int32_t id, size_t *size, float *score,
                                l2c_token_type *type) {
    if (id < 0 || id >= tokenizer->count) {
        return NULL;
    }
    const l2c_token *found = &tokenizer->tokens[id];
    *size = (size_t)found->length;
    *score = found->score;
    *type = (l2c_token_type)found->type;
    return found->piece;
}

int32_t l2c_tokenizer_find(const l2c_tokenizer *tokenizer, const char *piece, size_t size) {
    const uint64_t hash = l2c_hash_bytes(L2C_HASH_SEED, piece, size);
    const int32_t reserved = probe(tokenizer, hash, piece, size, false)->rank - 1;
    return reserved >= 0 ? reserved : probe(tokenizer, hash, piece, size, true)->rank - 1;
}
