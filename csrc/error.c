/* error.c: filling the caller's l2c_error. */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int l2c_fail(l2c_error *error, l2c_status status, const char *format, ...) {
    if (error) {
        va_list arguments;
        error->status = status;
        error->system = 0;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

int l2c_fail_io(l2c_error *error, const char *what) {
    const int system = errno;
    l2c_fail(error, L2C_ERROR_IO, "%s: %s", what, strerror(system));
    if (error) {
        error->system = system;
    }
    return L2C_ERROR_IO;
}
