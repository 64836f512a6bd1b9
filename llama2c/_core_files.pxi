# What model files are, without a Transformer: configuration, GGUF's tables, blocks of weights; and the machine's limits.

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

    All give the same bits, but for the prompts of two, which take them more exactly: "avx512vnni" those of GGUF's quantised
    types, "amx" (by tiles of bf16) those of all types but F32 and llama2.c's int8.
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
