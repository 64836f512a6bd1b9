/* platform.h: what the core needs of the operating system: files, pages, time, sleep. */
#ifndef L2C_PLATFORM_H
#define L2C_PLATFORM_H

#include "llama2c.h"

#include <stdatomic.h>

/* A whole file's bytes, mapped read-only or read into memory. */
typedef struct l2c_file {
    const uint8_t *bytes; /* [held], owned */
    size_t held;          /* min(size, limit) */
    size_t size;          /* of the file */
    bool mapped;
} l2c_file;

/* `path` is UTF-8. limit: hold no more than so many bytes (0: all). */
int l2c_file_open(l2c_file *out, const char *path, bool mapped, size_t limit, l2c_error *error);
void l2c_file_close(l2c_file *file);

/* Zeroed pages that take no memory until touched; NULL when the system refuses. */
void *l2c_pages_alloc(size_t size);
void l2c_pages_free(void *pages, size_t size);
/* Asks for 2 MiB pages, before the first touch; a wish that the system may ignore. */
void l2c_pages_huge(void *pages, size_t size);

double l2c_seconds(void); /* monotonic */
/* Sleeps while *word holds `value`; may return early. l2c_wake ends the sleep of all who wait for *word. */
void l2c_sleep_while(atomic_uint *word, unsigned value);
void l2c_wake(atomic_uint *word);
int l2c_processor(void); /* number of the processor that this thread runs on, -1 if the system does not tell */
void l2c_nap(void);      /* sleep for the shortest time there is */
bool l2c_forked(void);   /* true in a child that was forked after the first call of l2c_watch_fork */
void l2c_watch_fork(void);

/* One lock for the process, held for a few instructions at a time. After l2c_watch_fork no fork finds it taken. */
void l2c_lock(void);
void l2c_unlock(void);

#endif
