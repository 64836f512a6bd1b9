/* gguf.h: the content of a GGUF file (version 2 and 3) as a table of metadata and a table of tensors, checked in full
 * against the file's size: a pure function of its bytes, whose entries point into them. */
#ifndef L2C_GGUF_H
#define L2C_GGUF_H

#include "llama2c.h"
#include "quant.h"

typedef enum l2c_gguf_type { /* numbers of GGUF */
                             L2C_GGUF_UINT8,
                             L2C_GGUF_INT8,
                             L2C_GGUF_UINT16,
                             L2C_GGUF_INT16,
                             L2C_GGUF_UINT32,
                             L2C_GGUF_INT32,
                             L2C_GGUF_FLOAT32,
                             L2C_GGUF_BOOL,
                             L2C_GGUF_STRING,
                             L2C_GGUF_ARRAY,
                             L2C_GGUF_UINT64,
                             L2C_GGUF_INT64,
                             L2C_GGUF_FLOAT64,
} l2c_gguf_type;

const char *l2c_gguf_type_name(l2c_gguf_type type);

/* Key and name as the file spells them: no terminator, any bytes. */
typedef struct l2c_text {
    const char *bytes;
    size_t size;
} l2c_text;

/* Its size for "%.*s" in a message of limited length. */
static inline int l2c_shown(l2c_text text) {
    return text.size < 80 ? (int)text.size : 80;
}

typedef struct l2c_gguf_value {
    l2c_text key;
    l2c_gguf_type type;    /* L2C_GGUF_ARRAY: elements of type `element` */
    l2c_gguf_type element; /* else the type again */
    size_t count;          /* of elements; 1 for a single value */
    const uint8_t *data; /* the value or the first element; strings are a u64 length and its bytes, one after another */
    size_t bytes;        /* from data to the end of the value */
} l2c_gguf_value;

typedef struct l2c_gguf_tensor {
    l2c_text name;
    uint32_t n_dims, type;
    uint64_t dims[4]; /* dims[0] is contiguous; 1 past n_dims */
    uint64_t offset;  /* in the file */
    uint64_t bytes;   /* 0 for a type that this build does not know */
    const uint8_t *data;
} l2c_gguf_tensor;

typedef struct l2c_gguf l2c_gguf;

struct l2c_gguf {
    uint32_t version;
    size_t alignment;
    size_t n_values, n_tensors;
    l2c_gguf_value *values;   /* owned */
    l2c_gguf_tensor *tensors; /* owned */
};

bool l2c_is_gguf(const uint8_t *bytes, size_t size);
int l2c_gguf_read(l2c_gguf *out, const uint8_t *bytes, size_t size, l2c_error *error);
void l2c_gguf_free(l2c_gguf *gguf);

bool l2c_text_is(l2c_text text, const char *other);
/* NULL when there is no such key. */
const l2c_gguf_value *l2c_gguf_find(const l2c_gguf *gguf, const char *key);
/* A single number or string under a key: *out is left alone when there is none. Fail when it is of another type or, for
 * integers, outside [low, high]. */
int l2c_gguf_integer(const l2c_gguf *gguf, const char *key, int64_t low, int64_t high, int64_t *out, l2c_error *error);
int l2c_gguf_number(const l2c_gguf *gguf, const char *key, double *out, l2c_error *error);
int l2c_gguf_string(const l2c_gguf *gguf, const char *key, l2c_text *out, l2c_error *error);
int l2c_gguf_bool(const l2c_gguf *gguf, const char *key, bool *out, l2c_error *error);
/* The array under a key, NULL when there is none. Fails when it is no array of that type. */
int l2c_gguf_array(const l2c_gguf *gguf, const char *key, l2c_gguf_type element, const l2c_gguf_value **out,
                   l2c_error *error);
/* Steps through strings: the one at *data, which moves behind it. */
l2c_text l2c_gguf_next_string(const uint8_t **data);

#endif
