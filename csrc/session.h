/* session.h: a session as plain data, for batch.c and forward.c. */
#ifndef L2C_SESSION_H
#define L2C_SESSION_H

#include "model.h"

#include <stdatomic.h>

/* Keys and values live in pages of L2C_KV_PAGE positions: [layer][kv head][block of L2C_KV_BLOCK], each block
 * keys [head_dim][L2C_KV_BLOCK], then values [L2C_KV_BLOCK][head_dim rounded up to L2C_LANES]. */
typedef struct l2c_kv_layout {
    size_t value_stride, block, head, layer, page; /* floats */
} l2c_kv_layout;

l2c_kv_layout l2c_kv_layout_of(const l2c_config *config);

struct l2c_session {
    const l2c_transformer *transformer;
    l2c_kv_layout layout;
    int32_t context, position;
    float **pages; /* [context / L2C_KV_PAGE rounded up] into memory */
    void *memory;  /* owned */
    size_t memory_bytes;
    atomic_bool busy, cancelled;
};

#endif
