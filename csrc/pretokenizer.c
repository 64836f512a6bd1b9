/* pretokenizer.c: the regular expressions of published tokenizers, written out as scanners. Each is the first
 * alternative that matches, and together they cover all text; a byte that is no UTF-8 counts as a symbol, of no class.
 *
 *   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   smollm     first every \p{N} for itself, then gpt-2 in what lies between
 *   llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
 *              \s+(?!\S)|\s+
 *   qwen2      llama-bpe with \p{N} in place of \p{N}{1,3} */
#include "pretokenizer.h"

#include "unicode.h"

#include <stdbool.h>
#include <string.h>

#define OTHER L2C_UNICODE_OTHER
#define LETTER L2C_UNICODE_LETTER
#define NUMBER L2C_UNICODE_NUMBER
#define SPACE L2C_UNICODE_SPACE
#define END (-1)

/* Class of the character at `at`, END at the text's end; *next: where the one after it begins. */
static int class_at(const char *text, size_t size, size_t at, size_t *next) {
    uint32_t point;
    *next = at;
    if (at == size) {
        return END;
    }
    *next += l2c_utf8_decode(&point, text + at, size - at);
    return (int)l2c_unicode_class_of(point);
}

/* Where the run of up to `limit` characters of one class ends that begins at `at`. */
static size_t run_end(const char *text, size_t size, size_t at, int class, size_t limit) {
    size_t next;
    for (; limit > 0 && class_at(text, size, at, &next) == class; limit--) {
        at = next;
    }
    return at;
}

static bool is_newline(char byte) {
    return byte == '\r' || byte == '\n';
}

/* 's|'t|'re|'ve|'m|'ll|'d, 0 if it is none of them. */
static size_t contraction(const char *text, size_t size, bool any_case) {
    if (size < 2 || text[0] != '\'') {
        return 0;
    }
    const char fold = any_case ? 0x20 : 0;
    const char a = (char)(text[1] | fold), b = size < 3 ? 0 : (char)(text[2] | fold);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') {
        return 2;
    }
    if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) {
        return 3;
    }
    /* U+017F, the long s, is the one other character that is an S whatever its case. */
    return any_case && size >= 3 && memcmp(text + 1, "\xC5\xBF", 2) == 0 ? 3 : 0;
}

/* \s+(?!\S)|\s+ with \s*[\r\n]+ in front of it if `newlines`; before a number that `ends` the text, as at the end. */
static size_t space(const char *text, size_t size, bool newlines, bool number_ends) {
    size_t end = 0, last = 0, newline_end = 0, next;
    int class;
    while ((class = class_at(text, size, end, &next)) == SPACE) {
        newline_end = is_newline(text[end]) ? next : newline_end;
        last = end;
        end = next;
    }
    if (newlines && newline_end > 0) {
        return newline_end;
    }
    /* The last one goes with what follows. */
    return class == END || (number_ends && class == NUMBER) || last == 0 ? end : last;
}

static size_t gpt2_like(const char *text, size_t size, bool single_numbers) {
    const size_t short_form = contraction(text, size, false), start = text[0] == ' ';
    if (short_form > 0) {
        return short_form;
    }
    size_t next;
    const int class = class_at(text, size, start, &next);
    if (single_numbers && class == NUMBER && start == 0) {
        return next;
    }
    if (class == LETTER || class == OTHER || (class == NUMBER && !single_numbers)) {
        return run_end(text, size, next, class, SIZE_MAX);
    }
    return space(text, size, false, single_numbers);
}

static size_t llama3_like(const char *text, size_t size, size_t numbers) {
    const size_t short_form = contraction(text, size, true);
    if (short_form > 0) {
        return short_form;
    }
    size_t next, after;
    const int first = class_at(text, size, 0, &next), second = class_at(text, size, next, &after);
    if (first == LETTER || (second == LETTER && first != NUMBER && !is_newline(text[0]))) {
        return run_end(text, size, next, LETTER, SIZE_MAX);
    }
    if (first == NUMBER) {
        return run_end(text, size, next, NUMBER, numbers - 1);
    }
    if (first == OTHER || (second == OTHER && text[0] == ' ')) {
        size_t end = run_end(text, size, next, OTHER, SIZE_MAX);
        while (end < size && is_newline(text[end])) {
            end++;
        }
        return end;
    }
    return space(text, size, true, false);
}

static size_t gpt2(const char *text, size_t size) {
    return gpt2_like(text, size, false);
}

static size_t smollm(const char *text, size_t size) {
    return gpt2_like(text, size, true);
}

static size_t llama3(const char *text, size_t size) {
    return llama3_like(text, size, 3);
}

static size_t qwen2(const char *text, size_t size) {
    return llama3_like(text, size, 1);
}

l2c_pretokenizer *l2c_pretokenizer_find(const char *name) {
    static const struct {
        const char *name;
        l2c_pretokenizer *function;
    } table[] = {{"gpt-2", gpt2}, {"llama-bpe", llama3}, {"llama3", llama3}, {"qwen2", qwen2}, {"smollm", smollm}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(name, table[i].name) == 0) {
            return table[i].function;
        }
    }
    return NULL;
}
