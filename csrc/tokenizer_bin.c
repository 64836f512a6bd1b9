/* tokenizer_bin.c: reader of llama2.c's tokenizer.bin, little-endian:
 *
 *   int32 max_token_length, then to the end of the file one record a token: float32 score, int32 length, piece [length]
 *
 * The number of tokens is stored nowhere: a file cut between two records reads as a smaller vocabulary. */
#include "error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BYTE_TOKEN 3

static uint32_t read_u32(const uint8_t *bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static float read_f32(const uint8_t *bytes) {
    const uint32_t bits = read_u32(bytes);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int count_tokens(int32_t *count, const uint8_t *bytes, size_t size, l2c_error *error) {
    *count = 0;
    if (size < 12) {
        return l2c_fail(error, L2C_ERROR_FORMAT,
                        "offset 0: expected max_token_length and a first token (12 bytes or more), the file has %zu",
                        size);
    }
    const uint32_t longest = read_u32(bytes);
    if (longest > INT32_MAX) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset 0: max_token_length is %d, expected 0 or more",
                        (int32_t)longest);
    }
    for (size_t at = 4; at < size; ++*count) {
        if (size - at < 8) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "offset %zu: expected score and length of token %d (8 bytes), the file ends after %zu", at,
                            *count, size - at);
        }
        if (isnan(read_f32(bytes + at))) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: the score of token %d is not a number", at, *count);
        }
        const uint32_t length = read_u32(bytes + at + 4);
        if (length > longest) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "offset %zu: the length of token %d is %d, expected 0 to max_token_length, which is %d",
                            at + 4, *count, (int32_t)length, (int32_t)longest);
        }
        at += 8;
        if (length > size - at) {
            return l2c_fail(error, L2C_ERROR_FORMAT,
                            "offset %zu: expected the %d bytes of token %d, the file ends after %zu", at,
                            (int32_t)length, *count, size - at);
        }
        if (*count == INT32_MAX) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "offset %zu: more than %d tokens", at, INT32_MAX);
        }
        at += length;
    }
    return L2C_OK;
}

/* Whether <unk>, llama2.c's first token, stands with its length at `at`. */
static bool is_unk_at(const uint8_t *bytes, size_t size, size_t at) {
    return size >= at + 9 && read_u32(bytes + at) == 5 && memcmp(bytes + at + 4, "<unk>", 5) == 0;
}

static bool is_piece(const l2c_token_table *table, int32_t id, const char *piece, int32_t length) {
    return id < table->count && table->lengths[id] == length && memcmp(table->pieces[id], piece, (size_t)length) == 0;
}

static void fill_table(l2c_token_table *table, const char **pieces, int32_t *lengths, float *scores, uint8_t *types,
                       const uint8_t *bytes) {
    static const char digits[] = "0123456789ABCDEF";
    size_t at = 4;
    for (int32_t id = 0; id < table->count; id++) {
        scores[id] = read_f32(bytes + at);
        lengths[id] = (int32_t)read_u32(bytes + at + 4);
        pieces[id] = (const char *)bytes + at + 8;
        types[id] = L2C_TOKEN_NORMAL;
        at += 8 + (size_t)lengths[id];
    }
    table->pieces = pieces;
    table->lengths = lengths;
    table->scores = scores;
    table->types = types;
    /* llama2.c writes newlines around <s> and </s>. */
    table->unk = is_piece(table, 0, "<unk>", 5) ? 0 : -1;
    table->bos = is_piece(table, 1, "\n<s>\n", 5) || is_piece(table, 1, "<s>", 3) ? 1 : -1;
    table->eos = is_piece(table, 2, "\n</s>\n", 6) || is_piece(table, 2, "</s>", 4) ? 2 : -1;
    table->add_space_prefix = true;
    if (table->unk >= 0) {
        types[table->unk] = L2C_TOKEN_UNKNOWN;
    }
    if (table->bos >= 0) {
        types[table->bos] = L2C_TOKEN_CONTROL;
    }
    if (table->eos >= 0) {
        types[table->eos] = L2C_TOKEN_CONTROL;
    }
    for (int32_t value = 0; value < 256; value++) {
        const char spelling[] = {'<', '0', 'x', digits[value / 16], digits[value % 16], '>'};
        if (is_piece(table, FIRST_BYTE_TOKEN + value, spelling, 6)) {
            types[FIRST_BYTE_TOKEN + value] = L2C_TOKEN_BYTE;
        }
    }
}

int l2c_tokenizer_read_bin(l2c_tokenizer **out, const uint8_t *bytes, size_t size, l2c_error *error) {
    static const char advice[] = "export it again with llama2.c of 4 August 2023 or later: python tokenizer.py";
    l2c_token_table table = {0};
    *out = NULL;
    int status = count_tokens(&table.count, bytes, size, error);
    if (status != L2C_OK && is_unk_at(bytes, size, 0)) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                        "offset 0: this is llama2.c's old layout of July 2023 (each token its length and bytes, no "
                        "scores), expected max_token_length, then score, length and bytes; %s",
                        advice);
    }
    if (status != L2C_OK && is_unk_at(bytes, size, 4)) {
        return l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                        "offset 0: this is an old layout without max_token_length in front of the tokens; %s", advice);
    }
    if (status != L2C_OK) {
        return status;
    }
    const size_t count = (size_t)table.count;
    const char **pieces = calloc(count, sizeof *pieces);
    int32_t *lengths = calloc(count, sizeof *lengths);
    float *scores = calloc(count, sizeof *scores);
    uint8_t *types = calloc(count, sizeof *types);
    if (!pieces || !lengths || !scores || !types) {
        status = l2c_fail(error, L2C_ERROR_MEMORY, "out of memory for a vocabulary of %d tokens", table.count);
    } else {
        fill_table(&table, pieces, lengths, scores, types, bytes);
        if (is_piece(&table, FIRST_BYTE_TOKEN, "\0", 1) && is_piece(&table, FIRST_BYTE_TOKEN + 255, "\xC3\xBF", 2)) {
            status = l2c_fail(error, L2C_ERROR_UNSUPPORTED,
                              "token %d: this is llama2.c's old form with characters in place of the byte tokens "
                              "<0x00> to <0xFF>; %s",
                              FIRST_BYTE_TOKEN, advice);
        } else {
            status = l2c_tokenizer_create(out, &table, error);
        }
    }
    free((void *)pieces);
    free(lengths);
    free(scores);
    free(types);
    return status;
}
