# From text to tokens and back.

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
