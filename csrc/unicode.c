/* unicode.c: see unicode.h. */
#include "unicode.h"

l2c_unicode_class l2c_unicode_class_of(uint32_t point) {
    if (point < 0x80) { /* most of most texts */
        return (point | 0x20) - 'a' < 26          ? L2C_UNICODE_LETTER
               : point - '0' < 10                 ? L2C_UNICODE_NUMBER
               : point == ' ' || point - '\t' < 5 ? L2C_UNICODE_SPACE
                                                  : L2C_UNICODE_OTHER;
    }
    if (point > 0x10FFFF) {
        return L2C_UNICODE_OTHER;
    }
    /* The run that holds `point` is in [low, high). */
    size_t low = 0, high = l2c_unicode_range_count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (l2c_unicode_ranges[middle] >> 2 <= point) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return (l2c_unicode_class)(l2c_unicode_ranges[low] & 3);
}

size_t l2c_utf8_decode(uint32_t *point, const char *text, size_t size) {
    const uint8_t *s = (const uint8_t *)text;
    const size_t length = s[0] < 0xC2 || s[0] > 0xF4 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    *point = s[0] < 0x80 ? s[0] : L2C_UNICODE_NONE;
    if (length == 1 || length > size) {
        return 1;
    }
    const uint8_t low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < low || s[1] > high) {
        return 1;
    }
    uint32_t value = s[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xC0) != 0x80) {
            return 1;
        }
        value = value << 6 | (s[i] & 0x3Fu);
    }
    *point = value;
    return length;
}
