/* pool.c: pages of one size, taken from the system in slabs, given out, counted by holders, taken back, given out again.
 *
 * Counts of holders are atomic; the lists are under l2c_lock, which is taken once for L2C_KV_PAGE positions. */
#include "pool.h"

#include "error.h"

#include <stdlib.h>

enum { SLAB_BYTES = 1 << 25, ALIGNMENT = 64 };

typedef struct header { /* before each page; ALIGNMENT bytes are kept for it */
    atomic_size_t holders;
    struct header *next; /* in the list of free pages */
} header;

typedef struct slab {
    struct slab *next;
    void *memory;
    size_t bytes;
} slab;

struct l2c_pool {
    const l2c_transformer *transformer;
    size_t page_bytes, stride; /* stride: with its header */
    size_t limit, slab_pages;
    atomic_size_t owners, shared;
    /* under the lock */
    size_t used;
    header *free; /* the last given back goes out first: it is in the cache */
    char *fresh;  /* pages of the newest slab that were never given out, and so take no memory yet */
    size_t n_fresh;
    slab *slabs;
};

int l2c_pool_create_sized(l2c_pool **out, const l2c_transformer *transformer, size_t limit, int32_t positions,
                          l2c_error *error) {
    const size_t bytes = l2c_session_bytes(&transformer->model.config, 1);
    l2c_pool *pool = *out = calloc(1, sizeof **out);
    if (!pool || bytes > SIZE_MAX / 2) {
        free(pool);
        *out = NULL;
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for a pool of pages of %zu bytes", bytes);
    }
    pool->transformer = transformer;
    pool->page_bytes = bytes;
    pool->stride = l2c_round_up(bytes, ALIGNMENT) + ALIGNMENT;
    pool->limit = limit ? limit : SIZE_MAX;
    const size_t few = SLAB_BYTES / pool->stride, wanted = ((size_t)positions + L2C_KV_PAGE - 1) / L2C_KV_PAGE;
    pool->slab_pages = few < wanted ? few : wanted;
    pool->slab_pages = pool->slab_pages < pool->limit ? pool->slab_pages : pool->limit;
    pool->slab_pages = pool->slab_pages ? pool->slab_pages : 1;
    atomic_init(&pool->owners, 1);
    return L2C_OK;
}

int l2c_pool_create(l2c_pool **out, const l2c_transformer *transformer, size_t limit, l2c_error *error) {
    return l2c_pool_create_sized(out, transformer, limit, INT32_MAX, error);
}

void l2c_pool_retain(l2c_pool *pool) {
    atomic_fetch_add(&pool->owners, 1);
}

void l2c_pool_free(l2c_pool **pool) {
    l2c_pool *p = *pool;
    *pool = NULL;
    if (!p || atomic_fetch_sub(&p->owners, 1) > 1) {
        return;
    }
    while (p->slabs) {
        slab *next = p->slabs->next;
        l2c_pages_free(p->slabs->memory, p->slabs->bytes);
        free(p->slabs);
        p->slabs = next;
    }
    free(p);
}

const l2c_transformer *l2c_pool_transformer(const l2c_pool *pool) {
    return pool->transformer;
}

void l2c_pool_stat(l2c_pool_stats *out, const l2c_pool *pool) {
    l2c_lock();
    *out = (l2c_pool_stats){L2C_KV_PAGE, pool->page_bytes, pool->limit == SIZE_MAX ? 0 : pool->limit, pool->used,
                            atomic_load(&pool->shared)};
    l2c_unlock();
}

/* Under the lock; false when the system has no memory. */
static bool add_slab(l2c_pool *pool) {
    const size_t left = pool->limit - pool->used, pages = pool->slab_pages < left ? pool->slab_pages : left;
    slab *s = calloc(1, sizeof *s);
    if (!s || !(s->memory = l2c_pages_alloc(pages * pool->stride))) {
        free(s);
        return false;
    }
    s->bytes = pages * pool->stride;
    s->next = pool->slabs;
    pool->slabs = s;
    pool->fresh = s->memory;
    pool->n_fresh = pages;
    return true;
}

/* Under the lock. */
static header *take(l2c_pool *pool) {
    header *page = pool->free;
    if (page) {
        pool->free = page->next;
    } else if (pool->n_fresh || add_slab(pool)) {
        page = (header *)pool->fresh;
        pool->fresh += pool->stride;
        pool->n_fresh--;
    }
    pool->used += page != NULL;
    return page;
}

int l2c_page_take(void **page, l2c_pool *pool, l2c_error *error) {
    l2c_lock();
    const bool exhausted = pool->used == pool->limit;
    header *taken = exhausted ? NULL : take(pool);
    l2c_unlock();
    if (exhausted) {
        return l2c_fail(error, L2C_ERROR_EXHAUSTED, "all %zu pages of the pool, %d positions each, are in use",
                        pool->limit, L2C_KV_PAGE);
    }
    if (!taken) {
        return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of keys and values", pool->page_bytes);
    }
    atomic_init(&taken->holders, 1);
    *page = (char *)taken + ALIGNMENT;
    return L2C_OK;
}

static header *header_of(void *page) {
    return (header *)((char *)page - ALIGNMENT);
}

void l2c_page_retain(l2c_pool *pool, void *page) {
    if (atomic_fetch_add(&header_of(page)->holders, 1) == 1) {
        atomic_fetch_add(&pool->shared, 1);
    }
}

void l2c_page_release(l2c_pool *pool, void *page) {
    header *h = header_of(page);
    const size_t holders = atomic_fetch_sub(&h->holders, 1);
    if (holders == 2) {
        atomic_fetch_sub(&pool->shared, 1);
    } else if (holders == 1) {
        l2c_lock();
        h->next = pool->free;
        pool->free = h;
        pool->used--;
        l2c_unlock();
    }
}

bool l2c_page_shared(void *page) {
    return atomic_load(&header_of(page)->holders) > 1;
}
