# Timelines of keys and values: Pool and Session.

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
