/* session.c: one timeline of keys and values: which pages of a pool hold it. */
#include "session.h"

#include "error.h"

#include <stdlib.h>
#include <string.h>

enum { CACHE_LINE = 64 };

l2c_kv_layout l2c_kv_layout_of(const l2c_config *config) {
    static const size_t bytes[] = {[L2C_KV_F32] = sizeof(float), [L2C_KV_F16] = 2, [L2C_KV_Q8] = 1};
    l2c_kv_layout layout = {.type = l2c_kv_type_of(config->kv_type)};
    const size_t element = bytes[layout.type], scales = layout.type == L2C_KV_Q8 ? 2 * L2C_KV_BLOCK * sizeof(float) : 0;
    layout.head_dim = (size_t)config->head_dim;
    layout.value_stride = l2c_round_up(layout.head_dim, L2C_LANES);
    layout.values = L2C_KV_BLOCK * layout.head_dim * element;
    layout.scales = layout.values + L2C_KV_BLOCK * layout.value_stride * element;
    layout.block = l2c_round_up(layout.scales + scales, CACHE_LINE);
    layout.head = L2C_KV_PAGE / L2C_KV_BLOCK * layout.block;
    layout.layer = (size_t)config->n_kv_heads * layout.head;
    layout.page = (size_t)config->n_layers * layout.layer;
    return layout;
}

static size_t page_count(int32_t context) {
    return ((size_t)context + L2C_KV_PAGE - 1) / L2C_KV_PAGE;
}

size_t l2c_session_bytes(const l2c_config *config, int32_t context) {
    const size_t pages = page_count(context), page_bytes = l2c_kv_layout_of(config).page;
    return pages > SIZE_MAX / page_bytes ? SIZE_MAX : pages * page_bytes;
}

static int create(l2c_session **out, l2c_pool *pool, int32_t context, l2c_error *error) {
    const l2c_transformer *transformer = l2c_pool_transformer(pool);
    l2c_session *s = *out = calloc(1, sizeof **out);
    uint8_t **pages = calloc(page_count(context), sizeof *pages);
    if (!s || !pages) {
        free(s);
        free(pages);
        *out = NULL;
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a session of %ld positions", (long)context);
    }
    s->transformer = transformer;
    s->layout = l2c_kv_layout_of(&transformer->model.config);
    s->context = context;
    s->pages = pages;
    s->pool = pool;
    l2c_pool_retain(pool);
    return L2C_OK;
}

int l2c_session_create_in(l2c_session **out, l2c_pool *pool, int32_t context, l2c_error *error) {
    *out = NULL;
    if (context < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a context of %ld positions, expected at least 1", (long)context);
    }
    return create(out, pool, context, error);
}

int l2c_session_create(l2c_session **out, const l2c_transformer *transformer, int32_t context, l2c_error *error) {
    l2c_pool *pool;
    *out = NULL;
    int status = l2c_pool_create_sized(&pool, transformer, 0, context > 0 ? context : 1, error);
    if (status == L2C_OK) {
        status = l2c_session_create_in(out, pool, context, error);
        l2c_pool_free(&pool);
    }
    return status;
}

int l2c_session_fork(l2c_session **out, const l2c_session *session, int32_t position, l2c_error *error) {
    *out = NULL;
    if (position < 0 || position > session->position) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a fork at position %ld, expected 0 to %ld", (long)position,
                        (long)session->position);
    }
    const int status = create(out, session->pool, session->context, error);
    if (status == L2C_OK) {
        l2c_session *s = *out;
        s->position = position;
        for (; s->n_pages < page_count(position); s->n_pages++) {
            s->pages[s->n_pages] = session->pages[s->n_pages];
            l2c_page_retain(s->pool, s->pages[s->n_pages]);
        }
    }
    return status;
}

void l2c_session_free(l2c_session **session) {
    l2c_session *s = *session;
    if (s) {
        s->position = 0;
        l2c_session_trim(s);
        l2c_pool_free(&s->pool);
        free(s->pages);
        free(s);
    }
    *session = NULL;
}

void l2c_session_trim(l2c_session *session) {
    while (session->n_pages > page_count(session->position)) {
        l2c_page_release(session->pool, session->pages[--session->n_pages]);
    }
}

/* Copy on write: the page goes on holding the positions before the session's. */
static int own(l2c_session *s, size_t page, l2c_error *error) {
    void *copy;
    const int status = l2c_page_take(&copy, s->pool, error);
    if (status == L2C_OK) {
        memcpy(copy, s->pages[page], l2c_session_bytes(&s->transformer->model.config, 1));
        l2c_page_release(s->pool, s->pages[page]);
        s->pages[page] = copy;
    }
    return status;
}

int l2c_session_reserve(l2c_session *session, int32_t count, l2c_error *error) {
    const size_t page = (size_t)session->position / L2C_KV_PAGE, needed = page_count(session->position + count);
    int status = L2C_OK;
    if (page < session->n_pages && l2c_page_shared(session->pages[page])) {
        status = own(session, page, error);
    }
    while (status == L2C_OK && session->n_pages < needed) {
        void *fresh;
        status = l2c_page_take(&fresh, session->pool, error);
        if (status == L2C_OK) {
            session->pages[session->n_pages++] = fresh;
        }
    }
    return status;
}

int32_t l2c_session_position(const l2c_session *session) {
    return session->position;
}

int32_t l2c_session_context(const l2c_session *session) {
    return session->context;
}

bool l2c_session_enter(l2c_session *session) {
    return !atomic_exchange(&session->busy, true);
}

void l2c_session_leave(l2c_session *session) {
    atomic_store(&session->busy, false);
}

int l2c_session_rewind(l2c_session *session, int32_t position, l2c_error *error) {
    if (position < 0 || position > session->position) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "rewind to position %ld, expected 0 to %ld", (long)position,
                        (long)session->position);
    }
    session->position = position;
    l2c_session_trim(session);
    return L2C_OK;
}

void l2c_session_cancel(l2c_session *session) {
    atomic_store(&session->cancelled, true);
}
