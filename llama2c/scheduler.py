"""Which sequences an engine runs, with which pages, and which rows of theirs a step computes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama2c._core import Pool, Sampler, Session
from llama2c.prefixes import PrefixCache, page_keys
from llama2c.sequence import Sequence

if TYPE_CHECKING:
    from llama2c.model import Llama


@dataclass(frozen=True)
class Rows:
    """The rows of one sequence in a step."""

    sequence: Sequence
    session: Session
    tokens: list[int]
    prompt: bool  # else one generated token
    sampler: Sampler | None  # of the last row; None: the prompt goes on


class Scheduler:
    """The running sequences and the pages that they have and may still need. For one thread at a time."""

    def __init__(self, llm: "Llama", pool: Pool, cache: PrefixCache | None, *, chunk: int) -> None:
        self.transformer = llm.transformer
        self.context = llm.context
        self.vocab_size = llm.config.vocab_size
        self.pool = pool
        self.cache = cache
        self.chunk = chunk  # prompt rows of a step
        self.running: list[Sequence] = []  # in the order of admission
        self.reused = 0  # prompt tokens taken over from the cache
        self.steps = 0  # done
        self._page_size = pool.page_positions

    def pages(self, positions: int) -> int:
        """Pages that hold so many positions."""
        return -(-positions // self._page_size)

    def _growth(self, sequence: Sequence) -> int:
        """Pages that a sequence may still take."""
        return self.pages(sequence._positions) - self.pages(sequence._position)

    def _reusable(self, sequence: Sequence) -> list[bytes]:
        # All whole pages but for the last token, whose row gives the logits that the first sample is from.
        return sequence._keys[: (len(sequence.prompt_tokens) - 1) // self._page_size]

    def _next_key(self, sequence: Sequence) -> bytes | None:
        """The key of the page that its next prompt row belongs to; None for one that will not be kept."""
        page = sequence._position // self._page_size
        return sequence._keys[page] if page < len(sequence._keys) else None

    def keep(self, sequence: Sequence) -> None:
        """Keep the whole pages of its prompt that are computed: all by prompt rows, as a later prompt would."""
        if self.cache is not None and sequence._session is not None:
            count = min(sequence._position, len(sequence.prompt_tokens)) // self._page_size
            if count:
                sequence._kept = self.cache.add(sequence._kept, sequence._session, sequence._keys, count)

    def adopt(self) -> None:
        """Sequences whose next page another has computed meanwhile go on behind it."""
        if self.cache is None:
            return
        for sequence in self.running:
            old, keys = sequence._session, self._reusable(sequence)
            if old is None or old.position % self._page_size or old.position >= len(keys) * self._page_size:
                continue
            count = self.cache.find(keys)
            if count * self._page_size > old.position:
                self.reused += count * self._page_size - old.position
                sequence._session = self.cache.fork(keys, count)
                old.rewind(0)

    def admit(self, sequence: Sequence) -> bool:
        """Let a sequence run if there are pages for all that it may become and all that the running ones may."""
        if sequence._session is None:  # else it keeps the pages that it has found, and only waits for more
            if self.cache is not None:
                sequence._keys = page_keys(sequence.prompt_tokens, self._page_size)
                keys = self._reusable(sequence)
                count = self.cache.find(keys)
                if count:
                    sequence._session = self.cache.fork(keys, count)
            if sequence._session is None:
                sequence._session = Session(self.transformer, context=self.context, pool=self.pool)
        need = self._growth(sequence) + sum(self._growth(other) for other in self.running)
        while self.pool.pages - self.pool.used < need:
            if self.cache is None or not self.cache.evict():
                return False
        sequence._begin(self.vocab_size, self.transformer.isa)
        self.reused += sequence._session.position
        sequence._served = self.steps  # behind all that wait for a row
        self.running.append(sequence)
        return True

    def rows(self) -> list[Rows]:
        """The rows of the next step, prompts first."""
        ready: list[Sequence] = []
        prefilling = [sequence for sequence in self.running if sequence._prefilling]
        computing = {self._next_key(sequence) for sequence in prefilling if sequence._position % self._page_size}
        for sequence in prefilling:
            key = self._next_key(sequence)
            begun, last = sequence._position % self._page_size, key not in self._reusable(sequence)
            if begun or last or key not in computing:  # else another computes this page now: adopt it then
                ready.append(sequence)
                computing.add(key)
        rows = []
        for sequence, count in self._shares(ready):
            assert sequence._session is not None
            at, prompt = sequence._session.position, sequence.prompt_tokens
            sampler = sequence._sampler if at + count == len(prompt) else None
            rows.append(Rows(sequence, sequence._session, prompt[at : at + count], True, sampler))
        for sequence in self.running:
            if not sequence._prefilling:
                assert sequence._session is not None
                rows.append(Rows(sequence, sequence._session, sequence._tokens[-1:], False, sequence._sampler))
        return rows

    def _shares(self, ready: list[Sequence]) -> list[tuple[Sequence, int]]:
        # Half of the chunk evenly, at least a row each, who waited longest first; what is left to the oldest.
        served = sorted(ready, key=lambda sequence: sequence._served)[: self.chunk]
        even = max(1, self.chunk // (2 * max(1, len(served))))
        wanted = {sequence: len(sequence.prompt_tokens) - sequence._position for sequence in served}
        counts = {sequence: min(even, wanted[sequence]) for sequence in served}
        left = self.chunk - sum(counts.values())
        shares = []
        for sequence in ready:
            if sequence in counts:
                more = min(left, wanted[sequence] - counts[sequence])
                left -= more
                shares.append((sequence, counts[sequence] + more))
        return shares
