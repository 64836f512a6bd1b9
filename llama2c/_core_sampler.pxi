# From logits to a token.

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
