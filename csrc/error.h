/* error.h: filling the caller's l2c_error. */
#ifndef L2C_ERROR_H
#define L2C_ERROR_H

#include "llama2c.h"

/* Writes status and message (printf format) unless error is NULL; returns status. */
int l2c_fail(l2c_error *error, l2c_status status, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;
/* L2C_ERROR_IO with the current errno and its text after `what`. */
int l2c_fail_io(l2c_error *error, const char *what);

#endif
