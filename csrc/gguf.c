/* gguf.c: reads GGUF's header. Layout, all little-endian:
 *
 *   "GGUF", u32 version, u64 number of tensors, u64 number of metadata entries
 *   each entry: string key, u32 type, value; an array is u32 element type, u64 count, elements; a string u64 length, bytes
 *   each tensor: string name, u32 number of dimensions, u64 dimensions, u32 type, u64 offset into the data
 *   padding to general.alignment (32), the data */
#include "gguf.h"

#include "error.h"

#include <stdlib.h>

enum { MAX_NAME = 1024, DEFAULT_ALIGNMENT = 32, MIN_ALIGNMENT = 8, MAX_ALIGNMENT = 1 << 24 };
/* Fewest bytes of an entry and of a tensor in the file: what bounds the tables' sizes. */
enum { MIN_VALUE = 8 + 4 + 1, MIN_TENSOR = 8 + 4 + 8 + 4 + 8 };

static const char *const type_names[] = {"UINT8", "INT8",   "UINT16", "INT16",  "UINT32", "INT32",  "FLOAT32",
                                         "BOOL",  "STRING", "ARRAY",  "UINT64", "INT64",  "FLOAT64"};
/* Bytes of each; 0: no fixed size. */
static const size_t type_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

enum { TYPES = sizeof type_bytes / sizeof *type_bytes };

const char *l2c_gguf_type_name(l2c_gguf_type type) {
    return (unsigned)type < TYPES ? type_names[type] : "?";
}

typedef struct cursor {
    const uint8_t *bytes;
    size_t size, at;
    l2c_error *error;
} cursor;

static uint64_t u64_of(const uint8_t *p) {
    return (uint64_t)l2c_u32(p) | (uint64_t)l2c_u32(p + 4) << 32;
}

/* `count` bytes, NULL with an error past the end */
static const uint8_t *take(cursor *c, uint64_t count, const char *what) {
    if (count > c->size - c->at) {
        l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: %s of %llu bytes, but the file ends after %zu more", c->at,
                 what, (unsigned long long)count, c->size - c->at);
        return NULL;
    }
    const uint8_t *p = c->bytes + c->at;
    c->at += (size_t)count;
    return p;
}

static bool take_u32(cursor *c, uint32_t *out, const char *what) {
    const uint8_t *p = take(c, 4, what);
    *out = p ? l2c_u32(p) : 0;
    return p;
}

static bool take_u64(cursor *c, uint64_t *out, const char *what) {
    const uint8_t *p = take(c, 8, what);
    *out = p ? u64_of(p) : 0;
    return p;
}

static bool take_text(cursor *c, l2c_text *out, uint64_t most, const char *what) {
    uint64_t size;
    if (!take_u64(c, &size, what)) {
        return false;
    }
    if (size > most) {
        l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: %s of %llu bytes, expected at most %llu", c->at - 8, what,
                 (unsigned long long)size, (unsigned long long)most);
        return false;
    }
    out->bytes = (const char *)take(c, size, what);
    out->size = (size_t)size;
    return out->bytes;
}

static bool take_elements(cursor *c, l2c_gguf_value *v) {
    v->data = c->bytes + c->at;
    if (v->element == L2C_GGUF_STRING) {
        for (size_t i = 0; i < v->count; i++) {
            l2c_text ignored;
            if (!take_text(c, &ignored, UINT64_MAX, "a string")) {
                return false;
            }
        }
        return true;
    }
    const size_t width = type_bytes[v->element];
    if (v->count > (c->size - c->at) / width) {
        l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: key %.*s claims %zu elements of %s, but the file ends before",
                 c->at, l2c_shown(v->key), v->key.bytes, v->count, type_names[v->element]);
        return false;
    }
    for (size_t i = 0; v->element == L2C_GGUF_BOOL && i < v->count; i++) {
        if (v->data[i] > 1) {
            l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: a BOOL is %d, expected 0 or 1", c->at + i, v->data[i]);
            return false;
        }
    }
    c->at += v->count * width;
    return true;
}

static bool take_type(cursor *c, l2c_gguf_type *out, const l2c_gguf_value *v) {
    uint32_t number;
    if (!take_u32(c, &number, "a type")) {
        return false;
    }
    if (number >= TYPES) {
        l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: key %.*s is of type %lu, expected 0 to %d", c->at - 4,
                 l2c_shown(v->key), v->key.bytes, (unsigned long)number, TYPES - 1);
        return false;
    }
    *out = (l2c_gguf_type)number;
    return true;
}

static bool take_value(cursor *c, l2c_gguf_value *v) {
    uint64_t count = 1;
    if (!take_text(c, &v->key, MAX_NAME, "a key") || !take_type(c, &v->type, v)) {
        return false;
    }
    v->element = v->type;
    if (v->type == L2C_GGUF_ARRAY) {
        if (!take_type(c, &v->element, v) || !take_u64(c, &count, "an array's count")) {
            return false;
        }
        if (v->element == L2C_GGUF_ARRAY) {
            l2c_fail(c->error, L2C_ERROR_UNSUPPORTED, "offset %zu: key %.*s is an array of arrays", c->at - 12,
                     l2c_shown(v->key), v->key.bytes);
            return false;
        }
    }
    if (count > SIZE_MAX) {
        count = SIZE_MAX;
    }
    v->count = (size_t)count;
    if (!take_elements(c, v)) {
        return false;
    }
    v->bytes = (size_t)(c->bytes + c->at - v->data);
    return true;
}

static int fail_tensor(const cursor *c, const l2c_gguf_tensor *t, const char *what, uint64_t value) {
    return l2c_fail(c->error, L2C_ERROR_FORMAT, "offset %zu: tensor %.*s: %s %llu", c->at, l2c_shown(t->name),
                    t->name.bytes, what, (unsigned long long)value);
}

/* Dimensions and type give the size in bytes, as far as the type is known. */
static bool size_tensor(cursor *c, l2c_gguf_tensor *t) {
    const l2c_type_info *info = l2c_type_of(t->type);
    uint64_t values = 1;
    for (uint32_t i = 0; i < 4; i++) {
        if (t->dims[i] == 0 || t->dims[i] > INT64_MAX / values) {
            fail_tensor(c, t, "its dimensions multiply to 0 or past 2^63 with", t->dims[i]);
            return false;
        }
        values *= t->dims[i];
    }
    if (!info || !info->dequantize) {
        return true;
    }
    if (t->dims[0] % info->values != 0) {
        fail_tensor(c, t, "its rows are no whole blocks of its type: values", t->dims[0]);
        return false;
    }
    const uint64_t blocks = values / info->values;
    if (blocks > (uint64_t)INT64_MAX / info->bytes) {
        fail_tensor(c, t, "its bytes pass 2^63 with blocks", blocks);
        return false;
    }
    t->bytes = blocks * info->bytes;
    return true;
}

static bool take_tensor(cursor *c, l2c_gguf_tensor *t) {
    if (!take_text(c, &t->name, MAX_NAME, "a tensor's name") || !take_u32(c, &t->n_dims, "a tensor's dimensions")) {
        return false;
    }
    if (t->n_dims < 1 || t->n_dims > 4) {
        fail_tensor(c, t, "expected 1 to 4 dimensions, not", t->n_dims);
        return false;
    }
    for (uint32_t i = 0; i < 4; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims && !take_u64(c, &t->dims[i], "a dimension")) {
            return false;
        }
    }
    return take_u32(c, &t->type, "a tensor's type") && take_u64(c, &t->offset, "a tensor's offset") &&
           size_tensor(c, t);
}

/* Offsets count from the start of the data, which begins at the next multiple of the alignment. */
static bool place_tensors(cursor *c, l2c_gguf *g) {
    const size_t start = (c->at + g->alignment - 1) / g->alignment * g->alignment;
    const size_t room = start < c->size ? c->size - start : 0;
    for (size_t i = 0; i < g->n_tensors; i++) {
        l2c_gguf_tensor *t = &g->tensors[i];
        if (t->offset % g->alignment != 0) {
            fail_tensor(c, t, "expected an offset that is a multiple of general.alignment, not", t->offset);
            return false;
        }
        if (t->offset > room || t->bytes > room - t->offset) {
            l2c_fail(c->error, L2C_ERROR_FORMAT,
                     "tensor %.*s: %llu bytes at offset %llu of the data, of which the file has %zu: not all of it",
                     l2c_shown(t->name), t->name.bytes, (unsigned long long)t->bytes, (unsigned long long)t->offset,
                     room);
            return false;
        }
        t->data = c->bytes + start + (size_t)t->offset;
        t->offset += start;
    }
    return true;
}

static bool take_header(cursor *c, l2c_gguf *g, uint64_t *n_values, uint64_t *n_tensors) {
    if (!take(c, 4, "a header") || !take_u32(c, &g->version, "a version") ||
        !take_u64(c, n_tensors, "a number of tensors") || !take_u64(c, n_values, "a number of metadata entries")) {
        return false;
    }
    if (g->version != 2 && g->version != 3) {
        l2c_fail(c->error, L2C_ERROR_UNSUPPORTED, "offset 4: GGUF of version %lu%s; versions 2 and 3 are supported",
                 (unsigned long)g->version, g->version % 65536 == 0 ? " (a big-endian file?)" : "");
        return false;
    }
    const uint64_t room = c->size - c->at;
    if (*n_values > room / MIN_VALUE || *n_tensors > room / MIN_TENSOR) {
        l2c_fail(c->error, L2C_ERROR_FORMAT,
                 "offset 8: %llu tensors and %llu metadata entries do not fit into the file of %zu bytes",
                 (unsigned long long)*n_tensors, (unsigned long long)*n_values, c->size);
        return false;
    }
    return true;
}

static bool read_all(cursor *c, l2c_gguf *g) {
    uint64_t n_values, n_tensors;
    if (!take_header(c, g, &n_values, &n_tensors)) {
        return false;
    }
    g->values = calloc((size_t)n_values + 1, sizeof *g->values);
    g->tensors = calloc((size_t)n_tensors + 1, sizeof *g->tensors);
    if (!g->values || !g->tensors) {
        l2c_fail(c->error, L2C_ERROR_MEMORY, "no memory for tables of %llu and %llu entries",
                 (unsigned long long)n_values, (unsigned long long)n_tensors);
        return false;
    }
    for (; g->n_values < n_values; g->n_values++) {
        if (!take_value(c, &g->values[g->n_values])) {
            return false;
        }
    }
    int64_t alignment = DEFAULT_ALIGNMENT;
    if (l2c_gguf_integer(g, "general.alignment", MIN_ALIGNMENT, MAX_ALIGNMENT, &alignment, c->error) != L2C_OK) {
        return false;
    }
    if (alignment & (alignment - 1)) {
        l2c_fail(c->error, L2C_ERROR_FORMAT, "key general.alignment is %lld, expected a power of two",
                 (long long)alignment);
        return false;
    }
    g->alignment = (size_t)alignment;
    for (; g->n_tensors < n_tensors; g->n_tensors++) {
        if (!take_tensor(c, &g->tensors[g->n_tensors])) {
            return false;
        }
    }
    return place_tensors(c, g);
}

bool l2c_is_gguf(const uint8_t *bytes, size_t size) {
    return size >= 4 && memcmp(bytes, "GGUF", 4) == 0;
}

int l2c_gguf_read(l2c_gguf *out, const uint8_t *bytes, size_t size, l2c_error *error) {
    *out = (l2c_gguf){0};
    if (!l2c_is_gguf(bytes, size)) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "offset 0: expected \"GGUF\"");
    }
    if (!read_all(&(cursor){bytes, size, 0, error}, out)) {
        l2c_gguf_free(out);
        return error->status;
    }
    return L2C_OK;
}

void l2c_gguf_free(l2c_gguf *gguf) {
    free(gguf->values);
    free(gguf->tensors);
    *gguf = (l2c_gguf){0};
}

bool l2c_text_is(l2c_text text, const char *other) {
    return strlen(other) == text.size && memcmp(text.bytes, other, text.size) == 0;
}

const l2c_gguf_value *l2c_gguf_find(const l2c_gguf *gguf, const char *key) {
    for (size_t i = 0; i < gguf->n_values; i++) {
        if (l2c_text_is(gguf->values[i].key, key)) {
            return &gguf->values[i];
        }
    }
    return NULL;
}

static int fail_type(const l2c_gguf_value *v, const char *key, const char *expected, l2c_error *error) {
    return l2c_fail(error, L2C_ERROR_FORMAT, "key %s is %s%s, expected %s", key,
                    v->type == L2C_GGUF_ARRAY ? "an array of " : "", type_names[v->element], expected);
}

/* The integer at p, false for a UINT64 past INT64_MAX and for what is no integer. */
static bool integer_at(const uint8_t *p, l2c_gguf_type type, int64_t *out) {
    switch (type) {
    case L2C_GGUF_UINT8: *out = p[0]; return true;
    case L2C_GGUF_INT8: *out = (int8_t)p[0]; return true;
    case L2C_GGUF_UINT16: *out = l2c_u16(p); return true;
    case L2C_GGUF_INT16: *out = (int16_t)l2c_u16(p); return true;
    case L2C_GGUF_UINT32: *out = l2c_u32(p); return true;
    case L2C_GGUF_INT32: *out = (int32_t)l2c_u32(p); return true;
    case L2C_GGUF_UINT64:
    case L2C_GGUF_INT64: *out = (int64_t)u64_of(p); return type == L2C_GGUF_INT64 || *out >= 0;
    default: return false;
    }
}

/* One value under a key. An array whose elements are all equal counts as one of them: some writers give the number of
 * heads once for each layer. */
static bool single_integer(const l2c_gguf_value *v, int64_t *out) {
    const size_t width = type_bytes[v->element];
    if (v->count == 0 || width == 0 || !integer_at(v->data, v->element, out)) {
        return false;
    }
    for (size_t i = 1; i < v->count; i++) {
        if (memcmp(v->data, v->data + i * width, width) != 0) {
            return false;
        }
    }
    return true;
}

int l2c_gguf_integer(const l2c_gguf *gguf, const char *key, int64_t low, int64_t high, int64_t *out, l2c_error *error) {
    const l2c_gguf_value *v = l2c_gguf_find(gguf, key);
    int64_t value;
    if (!v) {
        return L2C_OK;
    }
    if (!single_integer(v, &value)) {
        return fail_type(v, key, "one integer", error);
    }
    if (value < low || value > high) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "key %s is %lld, expected %lld to %lld", key, (long long)value,
                        (long long)low, (long long)high);
    }
    *out = value;
    return L2C_OK;
}

int l2c_gguf_number(const l2c_gguf *gguf, const char *key, double *out, l2c_error *error) {
    const l2c_gguf_value *v = l2c_gguf_find(gguf, key);
    if (!v) {
        return L2C_OK;
    }
    if (v->type == L2C_GGUF_FLOAT32) {
        *out = (double)l2c_f32_of_bits(l2c_u32(v->data));
    } else if (v->type == L2C_GGUF_FLOAT64) {
        const uint64_t bits = u64_of(v->data);
        memcpy(out, &bits, sizeof *out);
    } else {
        return fail_type(v, key, "FLOAT32 or FLOAT64", error);
    }
    return L2C_OK;
}

int l2c_gguf_string(const l2c_gguf *gguf, const char *key, l2c_text *out, l2c_error *error) {
    const l2c_gguf_value *v = l2c_gguf_find(gguf, key);
    if (!v) {
        return L2C_OK;
    }
    if (v->type != L2C_GGUF_STRING) {
        return fail_type(v, key, "STRING", error);
    }
    const uint8_t *data = v->data;
    *out = l2c_gguf_next_string(&data);
    return L2C_OK;
}

int l2c_gguf_bool(const l2c_gguf *gguf, const char *key, bool *out, l2c_error *error) {
    const l2c_gguf_value *v = l2c_gguf_find(gguf, key);
    if (!v) {
        return L2C_OK;
    }
    if (v->type != L2C_GGUF_BOOL) {
        return fail_type(v, key, "BOOL", error);
    }
    *out = v->data[0];
    return L2C_OK;
}

int l2c_gguf_array(const l2c_gguf *gguf, const char *key, l2c_gguf_type element, const l2c_gguf_value **out,
                   l2c_error *error) {
    *out = l2c_gguf_find(gguf, key);
    if (*out && ((*out)->type != L2C_GGUF_ARRAY || (*out)->element != element)) {
        char expected[40] = "an array of ";
        strncat(expected, type_names[element], sizeof expected - strlen(expected) - 1);
        return fail_type(*out, key, expected, error);
    }
    return L2C_OK;
}

l2c_text l2c_gguf_next_string(const uint8_t **data) {
    const l2c_text text = {(const char *)*data + 8, (size_t)u64_of(*data)};
    *data += 8 + text.size;
    return text;
}
