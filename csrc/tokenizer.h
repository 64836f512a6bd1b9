/* tokenizer.h: the vocabulary as encoding sees it; internal to tokenizer*.c. */
#ifndef L2C_TOKENIZER_H
#define L2C_TOKENIZER_H

#include "error.h"

#define L2C_HASH_SEED 0xcbf29ce484222325u /* FNV-1a, 64 bits */

typedef struct l2c_token {
    const char *piece; /* [length], in the tokenizer's `text` */
    int32_t length;
    float score;
    uint32_t order; /* the score as an integer of the same order */
    uint8_t type;
    uint8_t byte; /* value of a byte token */
} l2c_token;

typedef struct l2c_token_slot {
    uint32_t tag; /* high half of the piece's hash */
    int32_t rank; /* id + 1; 0: free */
} l2c_token_slot;

struct l2c_tokenizer {
    int32_t count, unk, bos, eos;
    bool add_space_prefix;
    bool add_bos, add_eos; /* what a text begins and ends with unless the caller says otherwise */
    bool has_bytes;        /* all 256 byte tokens are there */
    bool has_unused;       /* some piece is L2C_TOKEN_UNUSED */
    size_t longest;        /* bytes of the longest piece that text can become */
    size_t longest_user;   /* of the longest L2C_TOKEN_USER_DEFINED piece */
    size_t slot_mask;
    l2c_token_slot *slots;   /* [slot_mask + 1], at most half full */
    l2c_token *tokens;       /* [count] */
    char *text;              /* all pieces, end to end */
    int32_t byte_ids[256];   /* -1 where there is no such byte token */
    char byte_values[256];   /* what l2c_tokenizer_bytes points to for them */
    uint8_t user_first[256]; /* whether a user-defined piece begins with this byte */
    uint8_t joins[256][32];  /* bit [a][b]: some piece has byte b after byte a */
};

static inline uint64_t l2c_hash_step(uint64_t hash, char byte) {
    return (hash ^ (uint8_t)byte) * 0x100000001b3u;
}

/* Id of a piece among those that text can become (normal, user-defined, unused); -1 if none. A text that spells "<s>"
 * or "<0x0A>" stays what it is. */
int32_t l2c_tokenizer_match(const l2c_tokenizer *tokenizer, uint64_t hash, const char *piece, size_t size);

#endif
