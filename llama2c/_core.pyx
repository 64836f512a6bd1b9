"""The C core for Python: ownership, errors, and the GIL; no arithmetic.

Every class owns one C object and keeps alive what that object refers to. Methods that compute release the GIL.
"""

import os
import struct

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

__all__ = [
    "ROLE_GENERATED",
    "ROLE_PROMPT",
    "Batch",
    "BusyError",
    "CancelledError",
    "ContextError",
    "ExhaustedError",
    "FormatError",
    "Pool",
    "Sampler",
    "Session",
    "Tokenizer",
    "Transformer",
    "UnsupportedError",
    "available_isas",
    "batch_bytes",
    "block_types",
    "chosen_isa",
    "is_gguf",
    "probe_bandwidth",
    "probe_flops",
    "quantize_error",
    "quantize_rows",
    "read_config",
    "read_gguf",
    "read_gguf_entries",
    "session_bytes",
]

cdef object numpy_module = None


cdef object numpy():
    # Imported when first needed: NumPy takes longer to import than all of llama2c, and its linear algebra starts threads
    # that spin beside ours at first; the command line can keep it from that (OPENBLAS_NUM_THREADS).
    # An interrupt waits for the import's end: NumPy cannot be imported again where it broke off.
    global numpy_module
    if numpy_module is None:
        from llama2c.interrupts import Interrupts
        interrupts = Interrupts()
        interrupts.hold()
        try:
            import numpy as module
            numpy_module = module
        finally:
            interrupts.release()
    return numpy_module


ROLE_PROMPT = L2C_ROLE_PROMPT
ROLE_GENERATED = L2C_ROLE_GENERATED


class FormatError(ValueError):
    """A file's content is not what its format demands; the message names the file, the place and what was expected."""

    __module__ = "llama2c"


class UnsupportedError(FormatError):
    """A well-formed file holds something that this version does not compute."""

    __module__ = "llama2c"


class ContextError(ValueError):
    """The tokens do not fit into the session's context."""

    __module__ = "llama2c"


class BusyError(RuntimeError):
    """A session, batch or sampler was used by two threads at once."""

    __module__ = "llama2c"


class CancelledError(RuntimeError):
    """Session.cancel() ended the step; the session is at the position it had before."""

    __module__ = "llama2c"


class ExhaustedError(MemoryError):
    """A step needs more pages of keys and values than its pool has left; its sessions are at the positions they had."""

    __module__ = "llama2c"


cdef object exception_of(const l2c_error *error, object path):
    cdef str message = error.message.decode("utf-8", "replace")
    if error.status == L2C_ERROR_IO:
        return OSError(error.system, os.strerror(error.system), path)
    if path is not None:
        message = f"{path}: {message}"
    if error.status == L2C_ERROR_MEMORY:
        return MemoryError(message)
    if error.status == L2C_ERROR_FORMAT:
        return FormatError(message)
    if error.status == L2C_ERROR_UNSUPPORTED:
        return UnsupportedError(message)
    if error.status == L2C_ERROR_CONTEXT:
        return ContextError(message)
    if error.status == L2C_ERROR_BUSY:
        return BusyError(message)
    if error.status == L2C_ERROR_CANCELLED:
        return CancelledError(message)
    if error.status == L2C_ERROR_EXHAUSTED:
        return ExhaustedError(message)
    return ValueError(message)


cdef int check(int status, const l2c_error *error, object path=None) except -1:
    if status != L2C_OK:
        raise exception_of(error, path)
    return 0


cdef bytes encoded_path(object path):
    # Windows paths travel as UTF-8; elsewhere a path is the bytes that the system gave.
    cdef object text = os.fspath(path)
    cdef bytes raw
    if isinstance(text, str):
        raw = text.encode("utf-8", "surrogatepass") if os.name == "nt" else os.fsencode(text)
    else:
        raw = text
    if b"\0" in raw:
        raise ValueError("embedded null byte in a path")
    return raw


cdef bytes encoded_isa(object isa):
    if isa is None:
        return None
    if not isinstance(isa, str):
        raise TypeError(f"isa is {type(isa).__name__}, expected str or None")
    return (<str>isa).encode()


cdef const char *pointer(bytes text):
    return NULL if text is None else <const char *>text


cdef object token_array(object tokens):
    # The ids as a contiguous int32 array. Anything but integers is refused here; their range is the core's to check.
    cdef object array
    cdef int32_t[::1] view
    cdef Py_ssize_t i
    if type(tokens) is list:  # of many short spans NumPy would take most of the time
        array = numpy().empty(len(<list>tokens), dtype=numpy().int32)
        view = array
        for i in range(view.shape[0]):
            token = (<list>tokens)[i]
            if type(token) is not int or not -0x80000000 <= <object>token <= 0x7FFFFFFF:
                break
            view[i] = token
        else:
            return array
    array = numpy().asarray(tokens)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError("token ids must be a one-dimensional sequence of integers")
    if array.size and (array.max() > 0x7FFFFFFF or array.min() < -0x80000000):
        raise ValueError("a token id does not fit 32 bits")
    # always a copy: another thread may write to the caller's array while the GIL is free
    return numpy().array(array, dtype=numpy().int32, order="C")


include "_core_files.pxi"
include "_core_transformer.pxi"
include "_core_session.pxi"
include "_core_batch.pxi"
include "_core_sampler.pxi"
include "_core_tokenizer.pxi"
