/* session.c: the memory of one timeline of keys and values. */
#include "session.h"

#include "error.h"

#include <stdlib.h>

l2c_kv_layout l2c_kv_layout_of(const l2c_config *config) {
    l2c_kv_layout layout;
    layout.value_stride = l2c_round_up((size_t)config->head_dim, L2C_LANES);
    layout.block = L2C_KV_BLOCK * ((size_t)config->head_dim + layout.value_stride);
    layout.head = L2C_KV_PAGE / L2C_KV_BLOCK * layout.block;
    layout.layer = (size_t)config->n_kv_heads * layout.head;
    layout.page = (size_t)config->n_layers * layout.layer;
    return layout;
}

static size_t page_count(int32_t context) {
    return ((size_t)context + L2C_KV_PAGE - 1) / L2C_KV_PAGE;
}

size_t l2c_session_bytes(const l2c_config *config, int32_t context) {
    const size_t pages = page_count(context), page_bytes = l2c_kv_layout_of(config).page * sizeof(float);
    return pages > SIZE_MAX / page_bytes ? SIZE_MAX : pages * page_bytes;
}

static int build(l2c_session *s, const l2c_transformer *transformer, int32_t context, l2c_error *error) {
    const l2c_config *config = &transformer->model.config;
    const size_t pages = page_count(context);
    s->transformer = transformer;
    s->layout = l2c_kv_layout_of(config);
    s->context = context;
    s->memory_bytes = l2c_session_bytes(config, context);
    s->memory = l2c_pages_alloc(s->memory_bytes);
    s->pages = calloc(pages, sizeof *s->pages);
    if (!s->memory || !s->pages) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of keys and values", s->memory_bytes);
    }
    for (size_t i = 0; i < pages; i++) {
        s->pages[i] = (float *)s->memory + i * s->layout.page;
    }
    return L2C_OK;
}

int l2c_session_create(l2c_session **out, const l2c_transformer *transformer, int32_t context, l2c_error *error) {
    *out = NULL;
    if (context < 1) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "a context of %ld positions, expected at least 1", (long)context);
    }
    *out = calloc(1, sizeof **out);
    if (!*out) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a session");
    }
    const int status = build(*out, transformer, context, error);
    if (status != L2C_OK) {
        l2c_session_free(out);
    }
    return status;
}

void l2c_session_free(l2c_session **session) {
    l2c_session *s = *session;
    if (s) {
        l2c_pages_free(s->memory, s->memory_bytes);
        free(s->pages);
        free(s);
    }
    *session = NULL;
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
    return L2C_OK;
}

void l2c_session_cancel(l2c_session *session) {
    atomic_store(&session->cancelled, true);
}
