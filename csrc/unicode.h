/* unicode.h: UTF-8 and the classes of characters that pre-tokenizers tell apart. */
#ifndef L2C_UNICODE_H
#define L2C_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#define L2C_UNICODE_NONE UINT32_MAX /* the "code point" of a byte that begins no character */

typedef enum l2c_unicode_class {
    L2C_UNICODE_OTHER,
    L2C_UNICODE_LETTER, /* general category L */
    L2C_UNICODE_NUMBER, /* general category N */
    L2C_UNICODE_SPACE,  /* White_Space */
} l2c_unicode_class;

/* Runs of one class from U+0000 on: first code point << 2 | class, ascending. */
extern const uint32_t l2c_unicode_ranges[];
extern const size_t l2c_unicode_range_count;

/* Of any number; L2C_UNICODE_OTHER beyond Unicode. */
l2c_unicode_class l2c_unicode_class_of(uint32_t point);

/* Bytes of the first character of a text that is not empty; 1 for a byte that begins none (Unicode 15, table 3-7). */
size_t l2c_utf8_decode(uint32_t *point, const char *text, size_t size);

#endif
