/* platform.c: files, pages and scheduling, once for POSIX and once for Windows. */
#define _FILE_OFFSET_BITS 64
#ifndef _WIN32
#define _GNU_SOURCE
#endif
#include "platform.h"

#include "error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { READ_CHUNK = 1 << 26 };

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#ifdef _MSC_VER
#pragma comment(lib, "synchronization.lib") /* WaitOnAddress */
#endif

static int fail_windows(l2c_error *error, const char *what) {
    const DWORD code = GetLastError();
    switch (code) {
    case ERROR_FILE_NOT_FOUND:
    case ERROR_PATH_NOT_FOUND:
    case ERROR_INVALID_NAME: errno = ENOENT; break;
    case ERROR_ACCESS_DENIED:
    case ERROR_SHARING_VIOLATION:
    case ERROR_LOCK_VIOLATION: errno = EACCES; break;
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_COMMITMENT_LIMIT: errno = ENOMEM; break;
    default: errno = EIO;
    }
    return l2c_fail_io(error, what);
}

static int read_all(uint8_t *bytes, HANDLE handle, size_t size, l2c_error *error) {
    for (size_t done = 0; done < size;) {
        const DWORD part = (DWORD)(size - done < READ_CHUNK ? size - done : READ_CHUNK);
        DWORD got = 0;
        if (!ReadFile(handle, bytes + done, part, &got, NULL)) {
            return fail_windows(error, "read");
        }
        if (got == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "the file shrank while it was read");
        }
        done += got;
    }
    return L2C_OK;
}

int l2c_file_open(l2c_file *out, const char *path, bool mapped, size_t limit, l2c_error *error) {
    wchar_t wide[4096];
    LARGE_INTEGER size = {0};
    int status = L2C_OK;
    *out = (l2c_file){0};
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096)) {
        return l2c_fail(error, L2C_ERROR_ARGUMENT, "the path is not valid UTF-8 or too long");
    }
    HANDLE handle = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
    if (handle == INVALID_HANDLE_VALUE) {
        return fail_windows(error, "open");
    }
    if (!GetFileSizeEx(handle, &size)) {
        status = fail_windows(error, "size");
    }
    const size_t whole = (size_t)size.QuadPart, part = limit && limit < whole ? limit : whole;
    if (status == L2C_OK && whole == 0) {
        status = l2c_fail(error, L2C_ERROR_FORMAT, "the file is empty");
    }
    if (status == L2C_OK && mapped) {
        HANDLE mapping = CreateFileMappingW(handle, NULL, PAGE_READONLY, 0, 0, NULL);
        out->bytes = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, part) : NULL;
        if (!out->bytes) {
            status = fail_windows(error, "map");
        }
        if (mapping) {
            CloseHandle(mapping);
        }
    } else if (status == L2C_OK) {
        uint8_t *bytes = l2c_pages_alloc(part);
        status = bytes ? read_all(bytes, handle, part, error)
                       : l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of the file", part);
        if (status == L2C_OK) {
            out->bytes = bytes;
        } else {
            l2c_pages_free(bytes, part);
        }
    }
    CloseHandle(handle);
    out->size = whole;
    out->held = part;
    out->mapped = mapped;
    return status;
}

void l2c_file_close(l2c_file *file) {
    if (file->bytes && file->mapped) {
        UnmapViewOfFile(file->bytes);
    } else if (file->bytes) {
        l2c_pages_free((void *)file->bytes, file->held);
    }
    *file = (l2c_file){0};
}

/* Committed: the system promises room in memory or paging file, but gives pages only when they are touched. */
void *l2c_pages_alloc(size_t size) {
    return VirtualAlloc(NULL, size ? size : 1, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void l2c_pages_free(void *pages, size_t size) {
    (void)size;
    if (pages) {
        VirtualFree(pages, 0, MEM_RELEASE);
    }
}

void l2c_pages_huge(void *pages, size_t size) {
    (void)pages;
    (void)size;
}

double l2c_seconds(void) {
    LARGE_INTEGER now, frequency;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&frequency);
    return (double)now.QuadPart / (double)frequency.QuadPart;
}

void l2c_sleep_while(atomic_uint *word, unsigned value) {
    WaitOnAddress(word, &value, sizeof value, INFINITE);
}

void l2c_wake(atomic_uint *word) {
    WakeByAddressAll(word);
}

int l2c_processor(void) {
    return -1;
}

void l2c_nap(void) {
}

bool l2c_forked(void) {
    return false;
}

void l2c_watch_fork(void) {
}

static SRWLOCK process_lock = SRWLOCK_INIT;

void l2c_lock(void) {
    AcquireSRWLockExclusive(&process_lock);
}

void l2c_unlock(void) {
    ReleaseSRWLockExclusive(&process_lock);
}

#else
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

static int read_all(uint8_t *bytes, int descriptor, size_t size, l2c_error *error) {
    for (size_t done = 0; done < size;) {
        const size_t part = size - done < READ_CHUNK ? size - done : READ_CHUNK;
        const ssize_t got = read(descriptor, bytes + done, part);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return l2c_fail_io(error, "read");
        }
        if (got == 0) {
            return l2c_fail(error, L2C_ERROR_FORMAT, "the file shrank while it was read");
        }
        done += (size_t)got;
    }
    return L2C_OK;
}

static int load(l2c_file *out, int descriptor, bool mapped, size_t limit, l2c_error *error) {
    struct stat info;
    if (fstat(descriptor, &info) != 0) {
        return l2c_fail_io(error, "stat");
    }
    if (S_ISDIR(info.st_mode)) {
        errno = EISDIR;
        return l2c_fail_io(error, "open");
    }
    if (!S_ISREG(info.st_mode)) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "not a regular file");
    }
    if (info.st_size == 0) {
        return l2c_fail(error, L2C_ERROR_FORMAT, "the file is empty");
    }
    const size_t whole = (size_t)info.st_size, part = limit && limit < whole ? limit : whole;
    if (mapped) {
        void *bytes = mmap(NULL, part, PROT_READ, MAP_SHARED, descriptor, 0);
        if (bytes == MAP_FAILED) {
            return l2c_fail_io(error, "map");
        }
        out->bytes = bytes;
    } else {
        uint8_t *bytes = l2c_pages_alloc(part);
        if (!bytes) {
            return l2c_fail(error, L2C_ERROR_MEMORY, "no memory for %zu bytes of the file", part);
        }
        l2c_pages_huge(bytes, part);
        const int status = read_all(bytes, descriptor, part, error);
        if (status != L2C_OK) {
            l2c_pages_free(bytes, part);
            return status;
        }
        out->bytes = bytes;
    }
    out->size = whole;
    out->held = part;
    out->mapped = mapped;
    return L2C_OK;
}

int l2c_file_open(l2c_file *out, const char *path, bool mapped, size_t limit, l2c_error *error) {
    *out = (l2c_file){0};
    /* O_NONBLOCK: opening a FIFO must not wait for a writer; regular files do not mind. */
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) {
        return l2c_fail_io(error, "open");
    }
    const int status = load(out, descriptor, mapped, limit, error);
    close(descriptor);
    return status;
}

void l2c_file_close(l2c_file *file) {
    if (file->bytes) {
        munmap((void *)file->bytes, file->held);
    }
    *file = (l2c_file){0};
}

void *l2c_pages_alloc(size_t size) {
    void *pages =
        mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void l2c_pages_free(void *pages, size_t size) {
    if (pages) {
        munmap(pages, size ? size : 1);
    }
}

void l2c_pages_huge(void *pages, size_t size) {
#ifdef MADV_HUGEPAGE
    madvise(pages, size, MADV_HUGEPAGE);
#else
    (void)pages;
    (void)size;
#endif
}

double l2c_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#ifdef __linux__
void l2c_sleep_while(atomic_uint *word, unsigned value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

void l2c_wake(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

int l2c_processor(void) {
    return sched_getcpu();
}
#else
void l2c_sleep_while(atomic_uint *word, unsigned value) {
    (void)word;
    (void)value;
    sched_yield();
}

void l2c_wake(atomic_uint *word) {
    (void)word;
}

int l2c_processor(void) {
    return -1;
}
#endif

void l2c_nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1}, NULL);
}

static pthread_mutex_t process_lock = PTHREAD_MUTEX_INITIALIZER;

void l2c_lock(void) {
    pthread_mutex_lock(&process_lock);
}

void l2c_unlock(void) {
    pthread_mutex_unlock(&process_lock);
}

static atomic_bool forked;

static void after_fork_in_child(void) {
    atomic_store(&forked, true);
    l2c_unlock();
}

/* The thread that forks holds the lock meanwhile: the child's copy of what it guards is whole, and free. */
static void watch_fork(void) {
    pthread_atfork(l2c_lock, l2c_unlock, after_fork_in_child);
}

bool l2c_forked(void) {
    return atomic_load_explicit(&forked, memory_order_relaxed);
}

void l2c_watch_fork(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_fork);
}
#endif
