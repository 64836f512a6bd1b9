/* tokenizer.h: the vocabulary as encoding sees it; internal to tokenizer*.c.
 *
 * Two kinds share it. SentencePiece's joins neighbours that spell a piece, the higher score first. Byte-level BPE cuts
 * text into pre-tokens, begins with their bytes, and joins neighbours that a list of merges names, the first first. */
#ifndef L2C_TOKENIZER_H
#define L2C_TOKENIZER_H

#include "error.h"
#include "pretokenizer.h"

#define L2C_HASH_SEED 0xcbf29ce484222325u /* FNV-1a, 64 bits */

/* Asks for what will be read soon. */
#ifdef __GNUC__
#define L2C_PREFETCH(p) __builtin_prefetch(p)
#else
#define L2C_PREFETCH(p) ((void)(p))
#endif

#define L2C_TOKEN_BIT(type) (1u << (type)) /* in sets of types */

typedef struct l2c_token {
    const char *piece; /* [length], in the tokenizer's `text` */
    int32_t length;
    float score;
    uint32_t order; /* of what joins to this piece the greater goes first */
    uint8_t type;
    uint8_t byte; /* value of a byte token */
} l2c_token;

typedef struct l2c_token_slot {
    uint32_t tag; /* high half of the piece's hash */
    int32_t rank; /* id + 1; 0: free */
} l2c_token_slot;

typedef struct l2c_merge {
    int32_t left, right; /* ids, -1 for what is no normal piece */
    int32_t id;          /* what they join to */
} l2c_merge;

struct l2c_tokenizer {
    int32_t count, unk, bos, eos;
    l2c_pretokenizer *pretokenize; /* of byte-level BPE; NULL: SentencePiece's kind */
    bool ignore_merges;            /* a pre-token that is a piece is not merged to it: it is it */
    bool add_space_prefix;
    bool add_bos, add_eos;  /* what a text begins and ends with unless the caller says otherwise */
    bool has_bytes;         /* all 256 byte tokens are there */
    bool has_unused;        /* some piece is L2C_TOKEN_UNUSED, and text can become it */
    unsigned matched;       /* set of the types that text can become */
    size_t longest;         /* bytes of the longest piece that text can become */
    size_t longest_special; /* of the longest L2C_TOKEN_USER_DEFINED or L2C_TOKEN_CONTROL piece */
    size_t slot_mask, merge_mask;
    l2c_token_slot *slots;      /* [slot_mask + 1], at most half full */
    l2c_merge *merges;          /* [n_merges], the first goes first; NULL: what spells a piece joins to it */
    int32_t *merge_slots;       /* [merge_mask + 1], at most two thirds full: rank + 1 of a merge; 0: free */
    l2c_token *tokens;          /* [count] */
    char *text;                 /* all pieces, end to end */
    int32_t byte_ids[256];      /* -1 where there is no such byte token, or piece of that byte in byte-level BPE */
    char byte_values[256];      /* what l2c_tokenizer_bytes points to for them */
    uint8_t special_first[256]; /* set of the types, of those of longest_special, that begin with this byte */
    uint8_t joins[256][32];     /* bit [a][b]: some piece has byte b after byte a */
};

static inline uint64_t l2c_hash_step(uint64_t hash, char byte) {
    return (hash ^ (uint8_t)byte) * 0x100000001b3u;
}

static inline uint64_t l2c_hash_bytes(uint64_t hash, const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        hash = l2c_hash_step(hash, bytes[i]);
    }
    return hash;
}

/* Where a pair's slot is looked for first, to be masked. */
static inline size_t l2c_hash_pair(int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (size_t)((pair * 0x9E3779B97F4A7C15u) >> 32);
}

/* The slot of a pair's merge, or the free one where it belongs. */
static inline int32_t *l2c_merge_slot(const l2c_tokenizer *tokenizer, int32_t left, int32_t right) {
    for (size_t at = l2c_hash_pair(left, right);; at++) {
        int32_t *slot = &tokenizer->merge_slots[at & tokenizer->merge_mask];
        if (*slot == 0) {
            return slot;
        }
        const l2c_merge *found = &tokenizer->merges[*slot - 1];
        if (found->left == left && found->right == right) {
            return slot;
        }
    }
}

/* Id of a piece; -1 if none. `matched`: among those that text can become, else among the others. A text that spells
 * "<s>" or "<0x0A>" stays what it is. */
int32_t l2c_tokenizer_match(const l2c_tokenizer *tokenizer, uint64_t hash, const char *piece, size_t size,
                            bool matched);

/* A vocabulary without tokens, after a check of what both kinds of tables have. `lengths`, `types`: [count]. `text` has
 * room for all pieces and a byte more. */
int l2c_tokenizer_begin(l2c_tokenizer **out, int32_t count, const int32_t *lengths, const uint8_t *types, int32_t unk,
                        int32_t bos, int32_t eos, l2c_error *error);
/* Gives an id its token, `hash` its piece's; of equal pieces the first counts, and false comes back for the others. */
bool l2c_tokenizer_add(l2c_tokenizer *tokenizer, int32_t id, const l2c_token *token, uint64_t hash);

#endif
