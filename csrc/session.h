/* session.h: a session as plain data, for batch.c and forward.c. */
#ifndef L2C_SESSION_H
#define L2C_SESSION_H

#include "pool.h"

/* The layout of a model's pages. */
l2c_kv_layout l2c_kv_layout_of(const l2c_config *config);

struct l2c_session {
    const l2c_transformer *transformer;
    l2c_kv_layout layout;
    int32_t context, position;
    uint8_t **pages; /* [context / L2C_KV_PAGE rounded up]; the first n_pages are held */
    size_t n_pages;
    l2c_pool *pool; /* owned, with others */
    atomic_bool busy, cancelled;
};

/* Takes the pages that the next `count` positions need, so that no other session holds a page that will be written to.
 * On failure the session may hold more pages than before. */
int l2c_session_reserve(l2c_session *session, int32_t count, l2c_error *error);
/* Gives back the pages beyond the session's position. */
void l2c_session_trim(l2c_session *session);

#endif
