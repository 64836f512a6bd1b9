# Weights: Transformer, and what it can be made of besides a path.

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
