/* pool.h: where the pages of keys and values come from. A page is an opaque run of bytes that any number of sessions may
 * hold; who alone holds it may write to it. */
#ifndef L2C_POOL_H
#define L2C_POOL_H

#include "model.h"

/* A pool has as many owners as sessions, and the caller that made it; the last one takes the memory along. */
void l2c_pool_retain(l2c_pool *pool);
const l2c_transformer *l2c_pool_transformer(const l2c_pool *pool);
/* A pool without a limit that takes memory from the system for about `positions` positions at a time. */
int l2c_pool_create_sized(l2c_pool **out, const l2c_transformer *transformer, size_t limit, int32_t positions,
                          l2c_error *error);

/* A page that the caller alone holds, of any content, 64-byte aligned; L2C_ERROR_EXHAUSTED at the limit. */
int l2c_page_take(void **page, l2c_pool *pool, l2c_error *error);
void l2c_page_retain(l2c_pool *pool, void *page);
void l2c_page_release(l2c_pool *pool, void *page);
bool l2c_page_shared(void *page);

#endif
