# Steps of several sessions.

@cython.final
cdef class Batch:
    """Work space for steps over several sessions at once.

    Batch(transformer, *, rows, threads=1, throughput=False)

    rows: most rows of a step. A row's logits are the same bits whatever its companions.
    throughput: take whatever products are fastest, see llama2c.Engine; this gives up what the line above says.
    """

    cdef l2c_batch *handle
    cdef int32_t vocab_size
    cdef readonly Transformer transformer

    def __cinit__(self, Transformer transformer not None, *, int32_t rows, int threads=1, bint throughput=False):
        cdef l2c_error error
        self.transformer = transformer
        self.vocab_size = l2c_transformer_config(transformer.handle).vocab_size
        check(l2c_batch_create(&self.handle, transformer.handle, rows, threads, &error), &error)
        l2c_batch_set_slice(self.handle, SLICE_SECONDS)
        l2c_batch_set_throughput(self.handle, throughput)

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
