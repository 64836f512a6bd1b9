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
    global numpy_module
    if numpy_module is None:
        import numpy as module
        numpy_module = module
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


cdef dict config_dict(const l2c_config *c):
    return {
        "format": c.format.decode(),
        "dim": c.dim,
        "hidden_dim": c.hidden_dim,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "context": c.context,
        "tied": bool(c.tied),
        "weight_type": c.weight_type.decode(),
        "blocks": bool(c.blocks),
        "group_size": c.group_size,
        "window": c.window,
        "lora_rank": c.lora_rank,
        "kv_type": c.kv_type.decode(),
        "norm_eps": round(c.norm_eps, 9),
        "rope_theta": c.rope_theta,
    }


cdef int config_of(l2c_config *config, object path) except -1:
    cdef l2c_error error
    cdef bytes raw = encoded_path(path)
    cdef const char *name = raw
    cdef int status
    with nogil:
        status = l2c_config_read(config, name, &error)
    return check(status, &error, path)


def available_isas():
    """Names of the instruction-set levels that this machine can run, lowest first.

    All give the same bits, but for "amx", which computes the rows of prompts from bf16 unless the weights are F32.
    """
    names = []
    cdef size_t i = 0
    while l2c_isa_name(i) != NULL:
        names.append(l2c_isa_name(i).decode())
        i += 1
    return tuple(names)


def chosen_isa(isa=None):
    """Name of the instruction-set level in use: `isa`, else the environment's LLAMA2C_ISA, else the best.

    Raises ValueError for one that this machine does not have.
    """
    levels = available_isas()
    name = isa or os.environ.get("LLAMA2C_ISA") or levels[-1]
    encoded_isa(name)
    if name not in levels:
        source = "" if isa else "the environment's LLAMA2C_ISA: "
        raise ValueError(f"{source}no instruction-set level {name!r} on this machine: it has {', '.join(levels)}")
    return name


def read_config(path):
    """The configuration in a model file, read without its weights.

    Raises OSError, FormatError or UnsupportedError, which name the file.
    """
    cdef l2c_config config
    config_of(&config, path)
    return config_dict(&config)


cdef object gguf_element(const l2c_gguf_value *v, const uint8_t **data):
    # One element of a value; *data moves behind it.
    cdef l2c_text text
    cdef l2c_gguf_type type = v.element
    if type == L2C_GGUF_STRING:
        text = l2c_gguf_next_string(data)
        return text.bytes[:text.size].decode("utf-8", "replace")
    cdef str code = "BbHhIifB  Qqd"[<int>type]
    cdef bytes raw = data[0][:struct.calcsize("<" + code)]
    data[0] += len(raw)
    value = struct.unpack("<" + code, raw)[0]
    return bool(value) if type == L2C_GGUF_BOOL else value


cdef object gguf_value(const l2c_gguf_value *v, size_t longest):
    cdef const uint8_t *data = v.data
    cdef size_t i
    if v.type != L2C_GGUF_ARRAY:
        return gguf_element(v, &data)
    return [gguf_element(v, &data) for i in range(min(v.count, longest))]


cdef dict gguf_table(const l2c_gguf *g, size_t longest):
    cdef size_t i
    cdef const l2c_gguf_value *v
    cdef const l2c_gguf_tensor *t
    cdef char unknown[24]
    metadata, tensors = [], []
    for i in range(g.n_values):
        v = &g.values[i]
        metadata.append({
            "key": v.key.bytes[:v.key.size].decode("utf-8", "replace"),
            "type": l2c_gguf_type_name(v.type).decode(),
            "element": l2c_gguf_type_name(v.element).decode(),
            "count": v.count,
            "value": gguf_value(v, longest),
        })
    for i in range(g.n_tensors):
        t = &g.tensors[i]
        tensors.append({
            "name": t.name.bytes[:t.name.size].decode("utf-8", "replace"),
            "type": l2c_type_name(t.type, unknown).decode(),
            "shape": [t.dims[j] for j in range(t.n_dims)][::-1],
            "offset": t.offset,
            "bytes": t.bytes,
        })
    return {"version": g.version, "alignment": g.alignment, "metadata": metadata, "tensors": tensors}


def is_gguf(path):
    """Whether a file begins as GGUF files do; a directory does not. Raises OSError."""
    if os.path.isdir(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def read_gguf(path, *, longest=0x7FFFFFFF):
    """What the header of a GGUF file holds, without its weights: version, alignment, metadata, tensors.

    metadata: key, type, element type, count, value; of arrays the first `longest` elements. tensors: name, type, shape
    (rows first), offset in the file, bytes. Raises OSError, FormatError or UnsupportedError, which name the file.
    """
    cdef l2c_error error
    cdef l2c_file file
    cdef l2c_gguf gguf
    cdef bytes raw = encoded_path(path)
    cdef const char *name = raw
    cdef int status
    with nogil:
        status = l2c_file_open(&file, name, True, 0, &error)
        if status == L2C_OK:
            status = l2c_gguf_read(&gguf, file.bytes, file.size, &error)
            if status != L2C_OK:
                l2c_file_close(&file)
    check(status, &error, path)
    try:
        return gguf_table(&gguf, longest)
    finally:
        l2c_gguf_free(&gguf)
        l2c_file_close(&file)


def read_gguf_entries(path):
    """The metadata of a GGUF file as it stands: (key, the bytes of its value, those of its type first).

    Raises what read_gguf raises.
    """
    cdef l2c_error error
    cdef l2c_file file
    cdef l2c_gguf gguf
    cdef const l2c_gguf_value *v
    cdef bytes raw = encoded_path(path)
    cdef const char *name = raw
    cdef int status
    cdef size_t i
    with nogil:
        status = l2c_file_open(&file, name, True, 0, &error)
        if status == L2C_OK:
            status = l2c_gguf_read(&gguf, file.bytes, file.size, &error)
            if status != L2C_OK:
                l2c_file_close(&file)
    check(status, &error, path)
    try:
        out = []
        for i in range(gguf.n_values):
            v = &gguf.values[i]
            kind = struct.pack("<I", v.type)
            if v.type == L2C_GGUF_ARRAY:
                kind += struct.pack("<IQ", v.element, v.count)
            out.append((v.key.bytes[:v.key.size].decode("utf-8", "surrogateescape"), kind + v.data[:v.bytes]))
        return out
    finally:
        l2c_gguf_free(&gguf)
        l2c_file_close(&file)


def block_types():
    """The types that quantize_rows writes: name to (number in GGUF, values of a block, bytes of a block)."""
    cdef uint32_t number
    cdef const l2c_type_info *info
    types = {}
    for number in range(256):
        info = l2c_type_of(number)
        if info != NULL and l2c_can_quantize(info.type):
            types[info.name.decode()] = (number, info.values, info.bytes)
    return types


cdef const l2c_type_info *type_to_write(str name) except NULL:
    cdef bytes raw = name.encode("utf-8", "replace")
    cdef const l2c_type_info *info = l2c_type_named(raw)
    if info == NULL or not l2c_can_quantize(info.type):
        raise ValueError(f"no type {name!r} to quantise to; there are {', '.join(block_types())}")
    return info


def quantize_rows(const float[:, ::1] x not None, str type not None):
    """Rows of weights, float32 [rows, cols], in blocks of a type: uint8 [rows, bytes of a row].

    The squared error is the least that a short search finds, never more than plain rounding's. The bits depend on the
    weights alone; any number of threads may call, without the GIL. Raises ValueError for another type than those of
    block_types(), for rows that are no whole blocks, for weights that are not finite or too large for the type.
    """
    cdef l2c_error error
    cdef const l2c_type_info *info = type_to_write(type)
    cdef size_t rows = x.shape[0], cols = x.shape[1]
    cdef int status
    if cols % info.values:
        raise ValueError(f"rows of {cols} values are no whole blocks of {type}, {info.values} each")
    out = numpy().empty((rows, cols // info.values * info.bytes), dtype=numpy().uint8)
    cdef uint8_t[:, ::1] view = out
    if out.size:
        with nogil:
            status = l2c_quantize(&view[0, 0], info.type, &x[0, 0], rows * cols, &error)
        check(status, &error)
    return out


def quantize_error(const uint8_t[:, ::1] blocks not None, str type not None, const float[:, ::1] x not None):
    """(sum of (w - x)**2, sum of x**2) for the weights w that the blocks of quantize_rows(x, type) hold."""
    cdef const l2c_type_info *info = type_to_write(type)
    cdef size_t rows = x.shape[0], cols = x.shape[1]
    cdef double squares = 0, norm = 0
    if blocks.shape[0] != x.shape[0] or cols % info.values or <size_t>blocks.shape[1] != cols // info.values * info.bytes:
        raise ValueError(f"blocks of {blocks.shape[1]} bytes in {blocks.shape[0]} rows, weights of {cols} in {rows}")
    if rows and cols:
        with nogil:
            squares = l2c_quantize_error(&norm, &blocks[0, 0], info.type, &x[0, 0], rows * cols)
    return squares, norm


cdef int config_of_model(l2c_config *config, object model) except -1:
    # Of a Transformer or a path.
    if not isinstance(model, Transformer):
        return config_of(config, model)
    config[0] = l2c_transformer_config((<Transformer>model).handle)[0]
    return 0


def session_bytes(model, int32_t context):
    """Bytes of keys and values that a session of `context` positions takes when full.

    model: a Transformer, or the path of a file that the core reads.
    """
    cdef l2c_config config
    config_of_model(&config, model)
    if context < 1:
        raise ValueError(f"context is {context}, expected at least 1")
    return l2c_session_bytes(&config, context)


def batch_bytes(model, int32_t rows, int threads=1):
    """Bytes of work space that a step of `rows` rows takes; model: as for session_bytes."""
    cdef l2c_config config
    config_of_model(&config, model)
    if rows < 1 or threads < 1:
        raise ValueError(f"{rows} rows, {threads} threads: expected at least 1")
    return l2c_batch_bytes(&config, rows, threads)


def probe_bandwidth(size_t size, *, int threads=1, int repetitions=5, isa=None):
    """Read bandwidth of `size` bytes of memory in GB/s (10**9 bytes), the best of the repetitions."""
    cdef l2c_error error
    cdef double rate = 0
    cdef int status
    cdef bytes level = encoded_isa(isa)
    cdef const char *name = pointer(level)
    with nogil:
        status = l2c_probe_bandwidth(&rate, size, threads, repetitions, name, &error)
    check(status, &error)
    return rate


def probe_flops(*, int threads=1, int repetitions=5, isa=None):
    """Peak of multiply-add in TFLOP/s (two operations each), the best of the repetitions.

    Of f32; at level "amx" of its bf16 tiles.
    """
    cdef l2c_error error
    cdef double rate = 0
    cdef int status
    cdef bytes level = encoded_isa(isa)
    cdef const char *name = pointer(level)
    with nogil:
        status = l2c_probe_flops(&rate, threads, repetitions, name, &error)
    check(status, &error)
    return rate


cdef class Table:
    # A ModelTable as the core has it, and what that points to.
    cdef l2c_table c
    cdef list strings
    cdef const char **paths
    cdef l2c_table_entry *entries
    cdef float *freqs

    def __cinit__(self, table):
        cdef Py_ssize_t i
        cdef l2c_config config
        self.strings = []
        self.paths = <const char **>malloc(max(1, len(table.paths)) * sizeof(char *))
        self.entries = <l2c_table_entry *>malloc(max(1, len(table.entries)) * sizeof(l2c_table_entry))
        self.freqs = <float *>malloc(max(1, len(table.rope_freqs)) * sizeof(float))
        if self.paths == NULL or self.entries == NULL or self.freqs == NULL:
            raise MemoryError()
        if len(table.rope_freqs) not in (0, table.head_dim // 2):
            raise ValueError(f"{len(table.rope_freqs)} divisors of frequencies, expected {table.head_dim // 2}")
        for i in range(len(table.paths)):
            self.paths[i] = self.keep(encoded_path(table.paths[i]))
        for i in range(len(table.entries)):
            self.fill(&self.entries[i], table.entries[i])
        for i in range(len(table.rope_freqs)):
            self.freqs[i] = table.rope_freqs[i]
        config.dim, config.hidden_dim, config.n_layers = table.dim, table.hidden_dim, table.n_layers
        config.n_heads, config.n_kv_heads, config.head_dim = table.n_heads, table.n_kv_heads, table.head_dim
        config.vocab_size, config.context, config.window = table.vocab_size, table.context, table.window
        config.norm_eps, config.rope_theta, config.tied = table.norm_eps, table.rope_theta, table.tied
        config.format = self.keep(table.format.encode())
        config.kv_type = config.weight_type = NULL
        config.group_size, config.blocks, config.lora_rank = 0, False, 0
        self.c.config = config
        self.c.paths, self.c.n_files = self.paths, len(table.paths)
        self.c.entries, self.c.n_entries = self.entries, len(table.entries)
        self.c.rope_factor, self.c.rope_halves = table.rope_factor, table.rope_halves
        self.c.rope_freqs = self.freqs if table.rope_freqs else NULL

    def __dealloc__(self):
        free(self.paths)
        free(self.entries)
        free(self.freqs)

    cdef const char *keep(self, bytes text):
        self.strings.append(text)
        return text

    cdef int fill(self, l2c_table_entry *out, object entry) except -1:
        out.name = self.keep(entry.name.encode("utf-8", "backslashreplace"))
        out.role = self.keep(entry.role.encode())
        out.type = self.keep(entry.type.encode())
        out.layer, out.file, out.offset = entry.layer, entry.file, entry.offset
        out.rows, out.cols = entry.shape if len(entry.shape) == 2 else (1, entry.shape[0])
        return 0


@cython.final
cdef class AdapterList:
    # The adapters of a Transformer as the core takes them, with what they point to.
    cdef l2c_adapter *items
    cdef size_t count
    cdef list held

    def __cinit__(self, adapters):
        cdef const float[:, ::1] a, b
        cdef bytes name
        cdef l2c_adapter *item
        given = list(adapters)
        self.held = []
        self.items = <l2c_adapter *>malloc(max(len(given), 1) * sizeof(l2c_adapter))
        if self.items == NULL:
            raise MemoryError()
        for tensor, layer, a, b in given:
            if a.shape[0] != b.shape[1] or max(a.shape[0], a.shape[1], b.shape[0]) > 0x7FFFFFFF:
                raise ValueError(
                    f"an adapter of {tensor}: A [{a.shape[0]}, {a.shape[1]}], B [{b.shape[0]}, {b.shape[1]}], "
                    "expected [rank, cols] and [rows, rank]"
                )
            name = tensor.encode()
            self.held.append((name, a, b))
            item = &self.items[self.count]
            item.tensor = name
            item.layer = layer
            item.rows = <int32_t>b.shape[0]
            item.cols = <int32_t>a.shape[1]
            item.rank = <int32_t>a.shape[0]
            item.a = &a[0, 0] if a.size else NULL
            item.b = &b[0, 0] if b.size else NULL
            self.count += 1

    def __dealloc__(self):
        free(self.items)


@cython.final
cdef class Transformer:
    """Configuration and weights of one model: read-only, shared by any number of sessions and threads.

    Transformer(path, *, isa=None, mmap=True, rope_theta=0.0, kv_type=None, table=None, adapters=())

    path: a GGUF file (of a split one the first part) or a llama2.c checkpoint of version 0, 1 or 2. table: a ModelTable
    of files in another format, whose header has been read already; then the path only names the model. The weights are
    mapped, not copied; mmap=False reads them into memory, for files that may shrink or vanish while in use. isa: one of
    available_isas(); None takes the environment's LLAMA2C_ISA, else the best. rope_theta: base of the rotary embedding
    where the format does not store it; 0 means 10000. kv_type: of the keys and values that sessions hold: "f32", "f16" or
    "q8" (int8 with a scale for each position and head); None: f32 where most of the weights are F32, and for llama2.c's
    files, else f16. adapters: (tensor, layer, A, B) each, as in ("attn_q", 0, float32 [rank, cols], float32 [rows, rank]):
    the product with that tensor W becomes x W^T + (x A^T) B^T; several of one tensor add up. They are copied. Raises
    OSError, FormatError, UnsupportedError or ValueError.
    """

    cdef l2c_transformer *handle
    cdef readonly object path

    def __cinit__(self, path, *, isa=None, bint mmap=True, double rope_theta=0.0, kv_type=None, table=None, adapters=()):
        cdef l2c_error error
        cdef l2c_open_options options
        cdef bytes raw = encoded_path(path)
        cdef bytes level = encoded_isa(chosen_isa(isa))
        cdef bytes kind = None if kv_type is None else str(kv_type).encode()
        cdef const char *name = raw
        cdef Table described = None if table is None else Table(table)
        cdef const l2c_table *files = NULL if described is None else &described.c
        cdef int status
        options.isa = pointer(level)
        options.no_mmap = not mmap
        options.rope_theta = rope_theta
        options.kv_type = pointer(kind)
        cdef AdapterList items = AdapterList(adapters)
        options.adapters = items.items
        options.n_adapters = items.count
        with nogil:
            if files != NULL:
                status = l2c_transformer_open_table(&self.handle, files, &options, &error)
            else:
                status = l2c_transformer_open(&self.handle, name, &options, &error)
        check(status, &error, path)
        self.path = path

    def __dealloc__(self):
        l2c_transformer_free(&self.handle)

    @property
    def config(self):
        """The configuration as a dict: dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, context, ..."""
        return config_dict(l2c_transformer_config(self.handle))

    @property
    def isa(self):
        """Name of the instruction-set level in use."""
        return l2c_transformer_isa(self.handle).decode()

    @property
    def rope_frequencies(self):
        """Radians that each pair of a head turns from one position to the next, scaling included: head_dim / 2 numbers."""
        cdef const double *frequencies = l2c_transformer_frequencies(self.handle)
        return tuple([frequencies[i] for i in range(l2c_transformer_config(self.handle).head_dim // 2)])

    @property
    def weight_bytes(self):
        """Bytes of all weights, adapters included."""
        return l2c_transformer_weight_bytes(self.handle)

    @property
    def token_bytes(self):
        """Bytes of weights that one generated token reads."""
        return l2c_transformer_token_bytes(self.handle)

    @property
    def token_macs(self):
        """Multiply-adds with weights for one token."""
        return l2c_transformer_token_macs(self.handle)

    cdef tuple shape_of(self, bytes name, int32_t layer):
        cdef l2c_error error
        cdef int64_t rows = 0, cols = 0
        check(l2c_transformer_row(self.handle, name, layer, 0, NULL, &rows, &cols, &error), &error)
        return rows, cols

    def weight_shape(self, str tensor, int32_t layer=0):
        """(rows, cols) of a tensor, named as in GGUF: "token_embd", "attn_q", "ffn_down", "output", ..."""
        return self.shape_of(tensor.encode(), layer)

    def weight_row(self, str tensor, int32_t layer=0, int64_t row=0):
        """Row `row` of a tensor as float32 [cols], dequantised where it is quantised.

        Rows of attn_q and attn_k stand in GGUF's order, the two that RoPE turns side by side, whatever that of the file.
        """
        cdef l2c_error error
        cdef int64_t rows = 0, cols = 0
        cdef bytes name = tensor.encode()
        out = numpy().empty(self.shape_of(name, layer)[1], dtype=numpy().float32)
        cdef float[::1] view = out
        check(l2c_transformer_row(self.handle, name, layer, row, &view[0], &rows, &cols, &error), &error)
        return out

    def weight_rows(self, str tensor, int32_t layer=0, int64_t start=0, int64_t stop=0):
        """Rows [start, stop) of a tensor as float32 [stop - start, cols]; without the GIL."""
        cdef l2c_error error
        cdef int64_t rows = 0, cols = 0, row
        cdef bytes raw = tensor.encode()
        cdef const char *name = raw
        cdef int status = L2C_OK
        height, width = self.shape_of(raw, layer)
        if not 0 <= start <= stop <= height:
            raise ValueError(f"rows {start} to {stop} of {tensor}, which has {height}")
        out = numpy().empty((stop - start, width), dtype=numpy().float32)
        cdef float[:, ::1] view = out
        with nogil:
            for row in range(start, stop):
                status = l2c_transformer_row(self.handle, name, layer, row, &view[row - start, 0], &rows, &cols, &error)
                if status != L2C_OK:
                    break
        check(status, &error)
        return out


# Logits that score() holds at once: 16 MiB.
cdef Py_ssize_t SCORE_LOGITS = 1 << 22

# How long a step computes before signals are looked at, so that Ctrl-C never waits for the step's end.
cdef double SLICE_SECONDS = 0.1


cdef int finish_step(l2c_batch *batch, int status, l2c_error *error) except? -100:
    # Carries a paused step on to its end; a signal handler that raises gives it up.
    while status == L2C_PAUSED:
        try:
            PyErr_CheckSignals()
        except BaseException:
            l2c_batch_abandon(batch)
            raise
        with nogil:
            status = l2c_batch_resume(batch, error)
    return status


@cython.final
cdef class Pool:
    """Memory of keys and values for any number of sessions, in pages that they may share.

    Pool(transformer, *, pages=0)

    pages: most that its sessions may hold at once, 0 for any number; a step that needs more raises ExhaustedError. A page
    holds `page_positions` positions of one session, or of several that were forked. Memory is taken when a step first
    needs it; what a session gives back is kept for the next one, until the pool and all its sessions are gone. Any
    threads may use sessions of one pool.
    """

    cdef l2c_pool *handle
    cdef readonly Transformer transformer

    def __cinit__(self, Transformer transformer not None, *, size_t pages=0):
        cdef l2c_error error
        self.transformer = transformer
        check(l2c_pool_create(&self.handle, transformer.handle, pages, &error), &error)

    def __dealloc__(self):
        l2c_pool_free(&self.handle)

    cdef l2c_pool_stats stats(self):
        cdef l2c_pool_stats stats
        l2c_pool_stat(&stats, self.handle)
        return stats

    @property
    def pages(self):
        """Most pages that sessions may hold at once, 0 for any number."""
        return self.stats().limit

    @property
    def page_positions(self):
        """Positions of a page."""
        return self.stats().positions

    @property
    def page_bytes(self):
        """Bytes of a page: the keys and values of all layers for its positions."""
        return self.stats().page_bytes

    @property
    def used(self):
        """Pages that a session holds."""
        return self.stats().used

    @property
    def shared(self):
        """Of the pages in use those that several sessions hold."""
        return self.stats().shared


cdef object FORK = object()


@cython.final
cdef class Session:
    """One timeline of tokens with its keys and values.

    Session(transformer, *, context=0, threads=1, chunk=256, pool=None)

    context: positions it can hold; 0 means what the model was trained for. threads: for each step. chunk: prompt rows a
    step; it changes speed and memory, never the result. pool: where the memory of keys and values comes from; None: from
    one of its own, without a limit. One thread at a time: a second one gets BusyError.
    """

    cdef l2c_session *handle
    cdef l2c_batch *batch  # NULL until a step of its own, for a session that is meant for steps of a Batch
    cdef int32_t vocab_size, chunk
    cdef int threads
    cdef readonly Transformer transformer

    def __cinit__(
        self,
        Transformer transformer not None,
        *,
        int32_t context=0,
        int threads=1,
        int32_t chunk=256,
        Pool pool=None,
        object fork=None,
    ):
        cdef l2c_error error
        cdef const l2c_config *config = l2c_transformer_config(transformer.handle)
        self.transformer = transformer
        self.vocab_size = config.vocab_size
        self.threads = threads
        self.chunk = chunk
        if fork is FORK:  # which makes the handle itself
            return
        if fork is not None:
            raise TypeError("use Session.fork()")
        if context == 0:
            context = config.context
        if chunk > context > 0:
            self.chunk = context
        if pool is None:
            check(l2c_session_create(&self.handle, transformer.handle, context, &error), &error)
            self.need_batch()
        elif pool.transformer is not transformer:
            raise ValueError("the pool belongs to another transformer")
        else:
            check(l2c_session_create_in(&self.handle, pool.handle, context, &error), &error)

    def __dealloc__(self):
        l2c_batch_free(&self.batch)
        l2c_session_free(&self.handle)

    cdef int need_batch(self) except -1:
        cdef l2c_error error
        if self.batch == NULL:
            check(l2c_batch_create(&self.batch, self.transformer.handle, self.chunk, self.threads, &error), &error)
            l2c_batch_set_slice(self.batch, SLICE_SECONDS)
        return 0

    def fork(self, position=None):
        """A new session that has taken the same tokens, the first `position` of them (None: all), and goes on alone.

        It takes no time: both share the memory of these tokens, by pages, until one writes to the last page and copies
        it for that. Its settings and its pool are those of this one. Raises ValueError, BusyError, MemoryError.
        """
        cdef l2c_error error
        cdef Session out
        self.enter()
        try:
            out = Session(self.transformer, threads=self.threads, chunk=self.chunk, fork=FORK)
            at = l2c_session_position(self.handle) if position is None else position
            check(l2c_session_fork(&out.handle, self.handle, at, &error), &error)
        finally:
            l2c_session_leave(self.handle)
        return out

    @property
    def position(self):
        """Tokens taken so far."""
        return l2c_session_position(self.handle)

    @property
    def context(self):
        """Positions it can hold."""
        return l2c_session_context(self.handle)

    def rewind(self, int32_t position):
        """Forget all tokens from `position` on. Raises ValueError, BusyError."""
        cdef l2c_error error
        self.enter()
        try:
            check(l2c_session_rewind(self.handle, position, &error), &error)
        finally:
            l2c_session_leave(self.handle)

    def cancel(self):
        """Make the running step, or else the next one, raise CancelledError within a layer. Any thread may call."""
        l2c_session_cancel(self.handle)

    cdef int enter(self) except -1:
        if not l2c_session_enter(self.handle):
            raise BusyError("the session is in use by another thread")
        return 0

    cdef object take_prompt(self, object tokens, bint every_row):
        cdef object ids = token_array(tokens)
        self.enter()
        try:
            return self.take_ids(ids, every_row)
        finally:
            l2c_session_leave(self.handle)

    cdef object take_ids(self, object ids, bint every_row):
        # One step a chunk. A failure takes the whole prompt back.
        cdef l2c_error error, ignored
        cdef const int32_t[::1] view = ids
        cdef Py_ssize_t total = view.shape[0], done = 0
        cdef int32_t before = l2c_session_position(self.handle), part = 0, rows
        cdef l2c_span span
        cdef float *logits = NULL
        cdef int status = L2C_OK
        self.need_batch()
        rows = l2c_batch_rows(self.batch)
        if total == 0:
            raise ValueError("no tokens: expected at least 1")
        if total > l2c_session_context(self.handle) - before:
            raise ContextError(
                f"{total} tokens at position {before} do not fit into a context of "
                f"{l2c_session_context(self.handle)} positions"
            )
        out = numpy().empty((total if every_row else 1, self.vocab_size), dtype=numpy().float32)
        cdef float[:, ::1] result = out
        try:
            while done < total:
                part = <int32_t>min(<Py_ssize_t>rows, total - done)
                span.session = self.handle
                span.tokens = &view[done]
                span.count = part
                span.role = L2C_ROLE_PROMPT
                span.want = L2C_WANT_ALL if every_row else L2C_WANT_LAST if done + part == total else L2C_WANT_NONE
                logits = &result[done if every_row else 0, 0]
                with nogil:
                    status = l2c_batch_step(self.batch, &span, 1, logits, &error)
                check(finish_step(self.batch, status, &error), &error)
                done += part
                PyErr_CheckSignals()  # steps too short to pause
        except BaseException:
            l2c_session_rewind(self.handle, before, &ignored)
            raise
        return out

    def prefill(self, tokens):
        """Append prompt tokens; returns the logits after the last one, float32 [vocab_size].

        Raises ValueError, ContextError, BusyError, CancelledError; the session is then as before.
        """
        return self.take_prompt(tokens, False)[0]

    def prefill_all(self, tokens):
        """Append prompt tokens; returns the logits after each one, float32 [len(tokens), vocab_size]."""
        return self.take_prompt(tokens, True)

    def score(self, tokens, *, Py_ssize_t start=0):
        """Append prompt tokens; returns the log-probabilities of tokens[start + 1:], each given all before it, float64.

        Natural logarithms. At most 16 MiB of logits are held. Raises as prefill does.
        """
        cdef object ids = token_array(tokens)
        if not 0 <= start < max(len(ids), 1):
            raise ValueError(f"start is {start}, expected 0 to {len(ids) - 1}")
        self.enter()
        try:
            return self.score_ids(ids, start)
        finally:
            l2c_session_leave(self.handle)

    cdef object score_ids(self, object ids, Py_ssize_t start):
        cdef const int32_t[::1] view = ids
        cdef Py_ssize_t total = view.shape[0], from_ = start, row, rows = max(1, SCORE_LOGITS // self.vocab_size)
        cdef int32_t before = l2c_session_position(self.handle)
        cdef l2c_error ignored
        out = numpy().empty(max(total - start - 1, 0), dtype=numpy().float64)
        cdef double[::1] result = out
        cdef float[:, ::1] logits
        try:
            if start:
                self.take_ids(ids[:start], False)
            while from_ < total:
                kept = self.take_ids(ids[from_ : from_ + rows], True)
                logits = kept
                with nogil:
                    for row in range(logits.shape[0]):
                        if from_ + row + 1 < total:
                            result[from_ + row - start] = l2c_log_probability(
                                self.transformer.handle, &logits[row, 0], view[from_ + row + 1]
                            )
                from_ += rows
        except BaseException:
            l2c_session_rewind(self.handle, before, &ignored)
            raise
        return out

    cdef int take_token(self, int32_t token, float *logits) except -1:
        cdef l2c_error error
        cdef l2c_span span
        cdef int status
        self.enter()
        span.session = self.handle
        span.tokens = &token
        span.count = 1
        span.role = L2C_ROLE_GENERATED
        span.want = L2C_WANT_LAST
        try:
            self.need_batch()
            with nogil:
                status = l2c_batch_step(self.batch, &span, 1, logits, &error)
            return check(finish_step(self.batch, status, &error), &error)
        finally:
            l2c_session_leave(self.handle)

    def step(self, int32_t token):
        """Append a generated token; returns the logits after it, float32 [vocab_size]."""
        out = numpy().empty(self.vocab_size, dtype=numpy().float32)
        cdef float[::1] view = out
        self.take_token(token, &view[0])
        return out

    def step_sample(self, int32_t token, Sampler sampler not None):
        """Append a generated token and sample the one after it; returns its id. The inner step of generation."""
        if sampler.vocab_size != self.vocab_size:
            raise ValueError(f"a sampler of {sampler.vocab_size} tokens for a model of {self.vocab_size}")
        sampler.enter()
        try:
            self.take_token(token, l2c_sampler_logits(sampler.handle))
            return sampler.choose()
        finally:
            l2c_sampler_leave(sampler.handle)


@cython.final
cdef class Batch:
    """Work space for steps over several sessions at once.

    Batch(transformer, *, rows, threads=1)

    rows: most rows of a step. A row's logits are the same bits whatever its companions.
    """

    cdef l2c_batch *handle
    cdef int32_t vocab_size
    cdef readonly Transformer transformer

    def __cinit__(self, Transformer transformer not None, *, int32_t rows, int threads=1):
        cdef l2c_error error
        self.transformer = transformer
        self.vocab_size = l2c_transformer_config(transformer.handle).vocab_size
        check(l2c_batch_create(&self.handle, transformer.handle, rows, threads, &error), &error)
        l2c_batch_set_slice(self.handle, SLICE_SECONDS)

    def __dealloc__(self):
        l2c_batch_free(&self.handle)

    @property
    def rows(self):
        """Most rows of a step."""
        return l2c_batch_rows(self.handle)

    cdef list arrays_of(self, list items):
        # The ids of each span, and all that can be said of a span without its session's position.
        cdef list arrays = []
        for item in items:
            if not isinstance(item[0], Session):
                raise TypeError(f"a span begins with a {type(item[0]).__name__}, expected a Session")
            if item[2] not in (L2C_ROLE_PROMPT, L2C_ROLE_GENERATED):
                raise ValueError(f"role {item[2]!r}, expected ROLE_PROMPT or ROLE_GENERATED")
            array = token_array(item[1])
            if array.size == 0:
                raise ValueError("a span without tokens: expected at least 1")
            if array.size > l2c_batch_rows(self.handle):
                raise ValueError(f"a span of {array.size} rows in a batch of {l2c_batch_rows(self.handle)}")
            arrays.append(array)
        return arrays

    cdef int run(
        self, list items, list arrays, list wants, float *logits, l2c_sampler **samplers, int32_t *tokens
    ) except -1:
        # With samplers [len(items)], tokens are sampled; else the logits are the result.
        cdef l2c_error error
        cdef size_t n = len(items), i, entered = 0
        cdef Session session
        cdef const int32_t[::1] view
        cdef int status
        cdef l2c_span *spans = <l2c_span *>malloc((n + 1) * sizeof(l2c_span))
        if spans == NULL:
            raise MemoryError(f"no memory for {n} spans")
        try:
            for i in range(n):
                session = items[i][0]
                view = arrays[i]
                spans[i].session = session.handle
                spans[i].tokens = &view[0]
                spans[i].count = <int32_t>view.shape[0]
                spans[i].role = items[i][2]
                spans[i].want = wants[i]
            while entered < n:
                if not l2c_session_enter(spans[entered].session):
                    raise BusyError(f"span {entered}: the session is in use by another thread, or twice in this step")
                entered += 1
            with nogil:
                if samplers == NULL:
                    status = l2c_batch_step(self.handle, spans, n, logits, &error)
                else:
                    status = l2c_batch_step_sample(self.handle, tokens, spans, samplers, n, &error)
            return check(finish_step(self.handle, status, &error), &error)
        finally:
            while entered > 0:
                entered -= 1
                l2c_session_leave(spans[entered].session)
            free(spans)

    def step(self, spans):
        """One forward over `spans`: (session, token ids, role, every_row) each.

        role: ROLE_PROMPT or ROLE_GENERATED; prompt spans come first. every_row: logits of all rows of the span, else of
        its last. Returns float32 [wanted rows, vocab_size] in the order of the spans. On an error no session has moved.
        """
        cdef list items = [tuple(item) for item in spans]
        cdef list arrays = self.arrays_of(items)
        cdef list wants = [L2C_WANT_ALL if item[3] else L2C_WANT_LAST for item in items]
        cdef Py_ssize_t wanted = sum([array.size if item[3] else 1 for item, array in zip(items, arrays, strict=True)])
        out = numpy().empty((wanted, self.vocab_size), dtype=numpy().float32)
        cdef float[:, ::1] result = out
        self.run(items, arrays, wants, &result[0, 0] if wanted else NULL, NULL, NULL)
        return out

    def step_sample(self, spans, samplers, *, list out=None):
        """One forward over `spans`, (session, token ids, role) each, and a token sampled after each that has a sampler.

        samplers: one a span, None where no token is wanted; each once. Returns a list with an item a span: the token's
        id, None where none was wanted, -1 where the logits are no distribution (NaN or +infinity among them, or nothing
        but -infinity). The inner step of many generations at once. On an error no session and no sampler has moved.

        out: the list to fill, which must be empty. It is filled before any signal's handler can run: after an interrupt
        it tells whether the step was made.
        """
        cdef list items = [tuple(item) for item in spans], chosen = list(samplers), made = []
        cdef list arrays = self.arrays_of(items)
        cdef Py_ssize_t n = len(items), i, entered = 0
        cdef Sampler sampler
        cdef l2c_sampler **handles = NULL
        cdef int32_t *tokens = NULL
        if len(chosen) != n:
            raise ValueError(f"{len(chosen)} samplers for {n} spans, expected one each, or None")
        if out:
            raise ValueError(f"out has {len(out)} items, expected none")
        for item in chosen:
            if item is not None and not isinstance(item, Sampler):
                raise TypeError(f"a sampler is a {type(item).__name__}, expected Sampler or None")
            if item is not None and (<Sampler>item).vocab_size != self.vocab_size:
                raise ValueError(f"a sampler of {(<Sampler>item).vocab_size} tokens for a model of {self.vocab_size}")
        handles = <l2c_sampler **>malloc((n + 1) * sizeof(l2c_sampler *))
        tokens = <int32_t *>malloc((n + 1) * sizeof(int32_t))
        try:
            if handles == NULL or tokens == NULL:
                raise MemoryError(f"no memory for {n} samplers")
            while entered < n:
                handles[entered] = NULL
                if chosen[entered] is not None:
                    sampler = chosen[entered]
                    sampler.enter()
                    handles[entered] = sampler.handle
                entered += 1
            self.run(items, arrays, [L2C_WANT_NONE] * n, NULL, handles, tokens)
            for i in range(n):
                made.append(tokens[i] if handles[i] != NULL else None)
            if out is None:
                return made
            out.extend(made)
            return out
        finally:
            while entered > 0:
                entered -= 1
                if handles[entered] != NULL:
                    l2c_sampler_leave(handles[entered])
            free(handles)
            free(tokens)


@cython.final
cdef class Sampler:
    """Chooses the next token: temperature, nucleus (top-p, Holtzman et al., 2019), xorshift64* random numbers.

    Sampler(vocab_size, *, temperature=1.0, top_p=0.9, seed=0, isa=None)

    temperature 0 (or below 3e-39, whose inverse no float holds) takes the most probable token. top_p outside (0, 1) means the whole distribution. The same seed gives the
    same choices as in llama2.c; seed 0 stands for 1, because xorshift never leaves 0.
    """

    cdef l2c_sampler *handle
    cdef readonly int32_t vocab_size

    def __cinit__(
        self, int32_t vocab_size, *, float temperature=1.0, float top_p=0.9, uint64_t seed=0, isa=None
    ):
        cdef l2c_error error
        cdef bytes level = encoded_isa(isa)
        check(
            l2c_sampler_create(&self.handle, vocab_size, temperature, top_p, seed or 1, pointer(level), &error), &error
        )
        self.vocab_size = vocab_size

    def __dealloc__(self):
        l2c_sampler_free(&self.handle)

    cdef int enter(self) except -1:
        if not l2c_sampler_enter(self.handle):
            raise BusyError("the sampler is in use by another thread")
        return 0

    cdef int32_t choose(self) except -1:
        cdef int32_t token
        with nogil:
            token = l2c_sampler_sample(self.handle)
        if token < 0:
            raise ValueError("the logits are no distribution: NaN or +infinity among them, or nothing but -infinity")
        return token

    @property
    def state(self):
        """State of the random numbers; assign it to continue from there."""
        return l2c_sampler_state(self.handle)

    @state.setter
    def state(self, uint64_t state):
        if state == 0:
            raise ValueError("a state of 0, from which xorshift64* never leaves")
        self.enter()
        l2c_sampler_set_state(self.handle, state)
        l2c_sampler_leave(self.handle)

    def sample(self, logits):
        """The next token's id from logits, float32 [vocab_size], which are left as they are.

        -infinity excludes a token. Raises ValueError for NaN or +infinity, or when every token is excluded.
        """
        cdef const float[::1] view = numpy().ascontiguousarray(logits, dtype=numpy().float32)
        if view.shape[0] != self.vocab_size:
            raise ValueError(f"{view.shape[0]} logits, expected {self.vocab_size}")
        self.enter()
        try:
            memcpy(l2c_sampler_logits(self.handle), &view[0], <size_t>self.vocab_size * sizeof(float))
            return self.choose()
        finally:
            l2c_sampler_leave(self.handle)

    def skip(self, int32_t count):
        """Draw and drop `count` random numbers (none at temperature 0)."""
        if count < 0:
            raise ValueError(f"{count} random numbers, expected at least 0")
        self.enter()
        with nogil:
            l2c_sampler_skip(self.handle, count)
            l2c_sampler_leave(self.handle)


cdef object MAKER = object()


cdef const char **pointers_to(list texts, int32_t[::1] lengths, str what) except NULL:
    # Of bytes objects, which the list keeps alive; the caller frees. lengths: [len(texts)] or more, is filled.
    cdef Py_ssize_t n = len(texts), i
    cdef const char **pointers = <const char **>malloc((n + 1) * sizeof(char *))
    cdef object text
    if pointers == NULL:
        raise MemoryError(f"no memory for {n} {what}s")
    try:
        for i in range(n):
            text = texts[i]
            if not isinstance(text, bytes):
                raise TypeError(f"a {what} is {type(text).__name__}, expected bytes")
            if len(<bytes>text) > 0x7FFFFFFF:
                raise ValueError(f"{what} {i} has {len(<bytes>text)} bytes")
            pointers[i] = <const char *><bytes>text
            lengths[i] = <int32_t>len(<bytes>text)
    except BaseException:
        free(pointers)
        raise
    return pointers


@cython.final
cdef class Tokenizer:
    """A BPE vocabulary, SentencePiece's kind (with byte fallback) or byte-level: text to token ids and back.

    Made by Tokenizer.from_bin (llama2.c's tokenizer.bin), from_table, from_bpe (byte-level) or from_gguf;
    llama2c.load_tokenizer opens files.
    """

    cdef l2c_tokenizer *handle

    def __cinit__(self, *, object made_by=None):
        # no Tokenizer without a vocabulary, not even by Tokenizer.__new__
        if made_by is not MAKER:
            raise TypeError("use Tokenizer.from_bin, from_table, from_bpe or llama2c.load_tokenizer")

    def __dealloc__(self):
        l2c_tokenizer_free(&self.handle)

    @staticmethod
    def from_bin(const uint8_t[::1] data not None):
        """From the bytes of a llama2.c tokenizer.bin. Raises FormatError, or UnsupportedError for its older layouts."""
        cdef l2c_error error
        cdef Tokenizer self = Tokenizer(made_by=MAKER)
        cdef size_t size = data.shape[0]
        cdef const uint8_t *bytes_at = &data[0] if size else <const uint8_t *>b""
        check(l2c_tokenizer_read_bin(&self.handle, bytes_at, size, &error), &error)
        return self

    @staticmethod
    def from_gguf(path):
        """From the metadata of a GGUF file. Raises OSError, FormatError or UnsupportedError, which name the file."""
        cdef l2c_error error
        cdef l2c_file file
        cdef Tokenizer self = Tokenizer(made_by=MAKER)
        cdef bytes raw = encoded_path(path)
        cdef const char *name = raw
        cdef int status
        with nogil:
            status = l2c_file_open(&file, name, True, 0, &error)
            if status == L2C_OK:
                status = l2c_tokenizer_read_gguf(&self.handle, file.bytes, file.size, &error)
                l2c_file_close(&file)
        check(status, &error, path)
        return self

    @staticmethod
    def from_table(pieces, scores, types, *, int32_t unk, int32_t bos, int32_t eos, bint add_space_prefix=True):
        """From the vocabulary itself: pieces (bytes, spaces as spaces), scores and SentencePiece types, one a token."""
        cdef l2c_error error
        cdef l2c_token_table table
        cdef Tokenizer self = Tokenizer(made_by=MAKER)
        cdef list kept = list(pieces)
        cdef Py_ssize_t n = len(kept)
        cdef const float[::1] score_view = numpy().ascontiguousarray(scores, dtype=numpy().float32)
        cdef const uint8_t[::1] type_view = numpy().ascontiguousarray(types, dtype=numpy().uint8)
        cdef int32_t[::1] lengths = numpy().empty(n + 1, dtype=numpy().int32)
        cdef const char **pointers = NULL
        if n == 0 or score_view.shape[0] != n or type_view.shape[0] != n or n > 0x7FFFFFFF:
            raise ValueError(
                f"{n} pieces, {score_view.shape[0]} scores, {type_view.shape[0]} types: expected the same number, not 0"
            )
        pointers = pointers_to(kept, lengths, "piece")
        try:
            table.count = <int32_t>n
            table.pieces = pointers
            table.lengths = &lengths[0]
            table.scores = &score_view[0]
            table.types = &type_view[0]
            table.unk = unk
            table.bos = bos
            table.eos = eos
            table.add_space_prefix = add_space_prefix
            check(l2c_tokenizer_create(&self.handle, &table, &error), &error)
        finally:
            free(pointers)
        return self

    @staticmethod
    def from_bpe(pieces, types, merges, *, str pre not None, int32_t bos, int32_t eos, bint ignore_merges=False):
        """From a byte-level vocabulary, as GPT-2 and Llama 3 have them.

        pieces, merges: bytes, as GGUF's tokenizer.ggml.tokens and .merges have them: in GPT-2's alphabet, where U+0120
        is the space; a merge is two pieces with a space between, the first merge goes first. merges=None, as in
        tiktoken's files: pieces are the bytes themselves, and what joins to the lowest id goes first. types:
        SentencePiece's, one a piece; only normal pieces (1) are spelt in that alphabet. pre: the rule that cuts text
        before any merge, "gpt-2", "llama-bpe" (also "llama3"), "qwen2" or "smollm". ignore_merges: what such a cut
        gives is looked up as a whole first. Raises FormatError, or UnsupportedError for another `pre`.
        """
        cdef l2c_error error
        cdef l2c_bpe_table table
        cdef Tokenizer self = Tokenizer(made_by=MAKER)
        cdef list kept = list(pieces), kept_merges = [] if merges is None else list(merges)
        cdef Py_ssize_t n = len(kept), n_merges = len(kept_merges)
        cdef const uint8_t[::1] type_view = numpy().ascontiguousarray(types, dtype=numpy().uint8)
        cdef int32_t[::1] lengths = numpy().empty(n + 1, dtype=numpy().int32)
        cdef int32_t[::1] merge_lengths = numpy().empty(n_merges + 1, dtype=numpy().int32)
        cdef const char **pointers = NULL
        cdef const char **merge_pointers = NULL
        cdef bytes name = pre.encode("utf-8", "replace").replace(b"\0", b"?")
        if n == 0 or type_view.shape[0] != n or n > 0x7FFFFFFF or n_merges > 0x7FFFFFFF:
            raise ValueError(f"{n} pieces, {type_view.shape[0]} types: expected the same number, not 0")
        try:
            pointers = pointers_to(kept, lengths, "piece")
            merge_pointers = pointers_to(kept_merges, merge_lengths, "merge")
            table.count = <int32_t>n
            table.pieces = pointers
            table.lengths = &lengths[0]
            table.types = &type_view[0]
            table.n_merges = <int32_t>n_merges
            table.merges = NULL if merges is None else merge_pointers
            table.merge_lengths = &merge_lengths[0]
            table.pre = name
            table.bos = bos
            table.eos = eos
            table.ignore_merges = ignore_merges
            check(l2c_tokenizer_create_bpe(&self.handle, &table, &error), &error)
        finally:
            free(pointers)
            free(merge_pointers)
        return self

    def __len__(self):
        return l2c_tokenizer_count(self.handle)

    @property
    def unk(self):
        """Id of the unknown token, -1 if there is none."""
        return l2c_tokenizer_unk(self.handle)

    @property
    def bos(self):
        """Id that begins a text, -1 if there is none."""
        return l2c_tokenizer_bos(self.handle)

    @property
    def eos(self):
        """Id that ends a text, -1 if there is none."""
        return l2c_tokenizer_eos(self.handle)

    @property
    def add_space_prefix(self):
        """Whether a space is put before a text, as SentencePiece's add_dummy_prefix has it."""
        return l2c_tokenizer_add_space_prefix(self.handle)

    @property
    def add_bos(self):
        """Whether BOS begins a text unless encode() is told otherwise."""
        return l2c_tokenizer_add_bos(self.handle)

    @property
    def add_eos(self):
        """Whether EOS ends a text unless encode() is told otherwise."""
        return l2c_tokenizer_add_eos(self.handle)

    def encode(self, text, *, bos=None, eos=None, bint special=False):
        """Ids of a text (str, or bytes of UTF-8), with BOS before and EOS after it as asked; None: as the file has it.

        special: where the text spells a control token, such as "<|eot_id|>", that token is meant, and what follows
        begins anew (with its space, if the vocabulary puts one before a text); else it is text like any other, which
        is right for all that users write. A user-defined token is always found.

        Lone surrogates of a str are the bytes that they stand for in os.fsdecode's results, else go as they are.
        """
        cdef l2c_error error
        cdef bytes raw
        cdef int32_t *ids = NULL
        cdef size_t count = 0, size, i
        cdef const char *data
        cdef int status
        if isinstance(text, str):
            try:
                raw = (<str>text).encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raw = (<str>text).encode("utf-8", "surrogatepass")
        elif isinstance(text, bytes):
            raw = text
        else:
            raise TypeError(f"text is {type(text).__name__}, expected str or bytes")
        data = raw
        size = len(raw)
        with nogil:
            status = l2c_tokenizer_encode(self.handle, &ids, &count, data, size, special, &error)
        check(status, &error)
        try:
            out = [ids[i] for i in range(count)]
        finally:
            l2c_ids_free(&ids)
        if (self.add_bos if bos is None else bos) and self.bos >= 0:
            out.insert(0, self.bos)
        if (self.add_eos if eos is None else eos) and self.eos >= 0:
            out.append(self.eos)
        return out

    def decode(self, tokens):
        """The text of ids: control tokens give nothing, the space put before a text is taken off, bytes that are no
        UTF-8 become U+FFFD."""
        raw = b"".join([self.token_bytes(token) for token in tokens])
        text = raw.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.add_space_prefix else text

    def token_bytes(self, int32_t token):
        """The bytes that a token stands for; none for a control token or an id out of range."""
        cdef size_t size = 0
        cdef const char *data = l2c_tokenizer_bytes(self.handle, token, &size)
        return data[:size] if size else b""

    def piece(self, int32_t token):
        """(piece, score, type) of a token as the vocabulary has it, a byte-level piece as bytes. Raises IndexError."""
        cdef size_t size = 0
        cdef float score = 0
        cdef l2c_token_type kind = L2C_TOKEN_NORMAL
        cdef const char *data = l2c_tokenizer_piece(self.handle, token, &size, &score, &kind)
        if data == NULL:
            raise IndexError(f"token {token}, expected 0 to {len(self) - 1}")
        return data[:size], score, <int>kind

    def find(self, bytes piece not None):
        """Id of a piece exactly as spelt, of any type; -1 if there is none."""
        return l2c_tokenizer_find(self.handle, piece, len(piece))
