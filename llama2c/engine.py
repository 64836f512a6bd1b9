"""Many generations at once: each step is one forward over the next rows of every sequence (continuous batching).

    submit -> waiting (FIFO) -> running: prompt rows, then a generated row a step -> finished

What a sequence gives depends on its prompt, settings and seed alone: never on what runs beside it.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from llama2c._core import ROLE_GENERATED, ROLE_PROMPT, Batch, BusyError, ContextError, ExhaustedError, Pool
from llama2c.generation import Piece, Prompt, prompt_ids, random_seed
from llama2c.prefixes import PrefixCache
from llama2c.scheduler import Rows, Scheduler
from llama2c.sequence import OnPiece, Sequence
from llama2c.text import ReplyText, ends_of, stops_of

if TYPE_CHECKING:
    from llama2c.model import Llama


T = TypeVar("T")


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds now, and what it has done so far."""

    waiting: int  # sequences that are not admitted yet
    running: int
    page_bytes: int  # a page: keys and values of all layers for page_positions positions
    page_positions: int
    pages_used: int  # by running sequences and kept prefixes
    pages_free: int  # of kv_bytes; memory is taken from the system only when a page is first used
    pages_shared: int  # of those used, by several sequences or by a kept prefix and a sequence
    pages_cached: int  # prefixes kept for later prompts
    steps: int
    prompt_tokens: int  # computed
    reused_prompt_tokens: int  # taken over from pages that another sequence had computed
    generated_tokens: int
    seconds: float  # in steps


@dataclass
class _Step:
    """The rows of a step and, when the core has computed it, a token (or None) for each sequence in it."""

    rows: list[Rows]
    tokens: list[int | None] = field(default_factory=list)
    done: int = 0  # sequences that have got their tokens


def _default_bytes() -> int:
    """A quarter of the machine's memory; 2 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, OSError, ValueError):
        return 2 << 30


class Engine:
    """Computes any number of generations at once, on one model.

    llm: what llama2c.load gave; its threads and context are the engine's.
    max_rows: rows of a step at most. max_rows - chunk sequences run at once.
    chunk: prompt rows of a step at most. Every sequence past its prompt has a row in every step; every other one has a
        row, or has a page computed for it by another, at least once in ceil(running / chunk) steps. The oldest prompt
        gets the most.
    kv_bytes: memory for keys and values, in bytes, all prefixes that are kept included. A sequence is admitted when its
        pages are sure to suffice to its end; until then it waits, first come, first served. None: a quarter of the
        machine's memory, and at least one full context.
    prefix_cache: keep the pages of prompts for later prompts that begin with the same tokens, until others need them.

    throughput: take whatever products are fastest. A step of many generated rows, sixteen with float weights and
        forty-eight with quantised ones at level amx, takes them as prompts: what a sequence gives then depends on how
        many run beside it. At other levels prompts meet integer weights in bytes, with an error like llama.cpp's, as
        levels without 16-bit products always do: another text, but the same in any company.

    None of these but throughput changes what is generated. Any thread may submit, cancel, wait for results and make
    steps, which are made one after another, in the thread that asks for them. Ctrl-C ends a step without effect; it can
    end the one sequence that is just given its token. An engine does not work in a process forked after it was made.
    `close`, or the end of a `with`, cancels what is left and frees the memory.
    """

    def __init__(
        self,
        llm: "Llama",
        *,
        max_rows: int = 320,
        chunk: int = 256,
        kv_bytes: int | None = None,
        prefix_cache: bool = True,
        throughput: bool = False,
    ) -> None:
        if not 1 <= chunk < max_rows:
            raise ValueError(f"chunk is {chunk}, expected 1 to max_rows - 1, which is {max_rows - 1}")
        self.llm = llm
        self.chunk = chunk
        self.max_running = max_rows - chunk
        transformer = llm.transformer
        page = Pool(transformer)  # only to look at
        whole = -(-llm.context // page.page_positions)
        if kv_bytes is None:
            pages = max(whole, min(_default_bytes() // page.page_bytes, whole * self.max_running))
        else:
            pages = kv_bytes // page.page_bytes
        if pages < 1:
            raise ValueError(f"kv_bytes is {kv_bytes}, expected at least {page.page_bytes}, one page")
        self._pool = Pool(transformer, pages=pages)
        self._batch = Batch(transformer, rows=max_rows, threads=llm.threads, throughput=throughput)
        self._cache = PrefixCache(page.page_positions) if prefix_cache else None
        self._scheduler = Scheduler(llm, self._pool, self._cache, chunk=chunk)
        self.throughput = throughput
        self._process = os.getpid()
        self._lock = threading.Lock()  # of _closed and the end of _waiting: nothing is queued in a closed engine
        self._closed = False
        self._waiting: deque[Sequence] = deque()  # those that ended here leave when they are the first
        self._cancels: deque[Sequence] = deque()  # for the thread that makes steps
        self._driving = threading.Lock()  # held by the thread that makes a step
        self._driver: int | None = None
        self._step: _Step | None = None
        self._pieces: list[tuple[Sequence, Piece]] = []
        self._prompt_tokens = self._generated = 0
        self._seconds = 0.0

    # ---- For any thread ----

    def submit(
        self,
        prompt: Prompt = "",
        *,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        stop: str | ManyOf[str] = (),
        ignore_eos: bool = False,
        on_piece: "OnPiece | None" = None,
    ) -> Sequence:
        """Queue a prompt; the options are those of llama2c.generate.

        on_piece: called with the sequence and each piece of it, in the thread that makes the step; what it raises ends
        this sequence. It may submit and cancel, but not make steps. Raises ContextError for a prompt that does not fit,
        ExhaustedError for a sequence that would not fit into kv_bytes alone, ValueError.
        """
        if max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}, expected 0 or more")
        ids, vocab_size = prompt_ids(self.llm.tokenizer, prompt), self.llm.config.vocab_size
        for i, token in enumerate(ids):
            if not 0 <= token < vocab_size:
                raise ValueError(f"token {i} is {token}, expected 0 to {vocab_size - 1}")
        if len(ids) > self.llm.context:
            raise ContextError(f"the prompt has {len(ids)} tokens, but the context {self.llm.context} positions")
        ends = ends_of(self.llm.tokenizer, ignore_eos=ignore_eos)
        sequence = Sequence(
            self,
            ids,
            ReplyText(self.llm.tokenizer, ids, stop=stops_of(stop), ends=ends),
            max_tokens=max_tokens,
            room=self.llm.context - len(ids),
            temperature=temperature,
            top_p=top_p,
            seed=random_seed() if seed is None else seed,
            on_piece=on_piece,
        )
        need = self._scheduler.pages(sequence._positions)
        if need > self._pool.pages:
            raise ExhaustedError(
                f"{len(ids)} tokens and up to {max_tokens} more need {need * self._pool.page_bytes} bytes of keys and "
                f"values, but the engine has {self._pool.pages * self._pool.page_bytes}"
            )
        self._check_process()
        with self._lock:
            if self._closed:
                raise ValueError("the engine is closed")
            self._waiting.append(sequence)
        return sequence

    @property
    def pending(self) -> bool:
        """Whether a sequence is not finished."""
        return bool(self._scheduler.running or self._waiting)

    def stats(self) -> EngineStats:
        """What the engine holds and has done."""
        used = self._pool.used
        return EngineStats(
            waiting=sum(sequence._reason is None for sequence in list(self._waiting)),
            running=len(self._scheduler.running),
            page_bytes=self._pool.page_bytes,
            page_positions=self._pool.page_positions,
            pages_used=used,
            pages_free=self._pool.pages - used,
            pages_shared=self._pool.shared,
            pages_cached=len(self._cache) if self._cache is not None else 0,
            steps=self._scheduler.steps,
            prompt_tokens=self._prompt_tokens,
            reused_prompt_tokens=self._scheduler.reused,
            generated_tokens=self._generated,
            seconds=self._seconds,
        )

    def step(self) -> list[tuple[Sequence, Piece]]:
        """Make one step; waits while another thread makes one. Returns the pieces that it gave, and those of a step
        that was interrupted. Without anything to do it returns at once.

        Raises MemoryError, KeyboardInterrupt or what else a signal's handler raises; the next step goes on from there.
        """
        self._check_driver()
        with self._driving:
            return self._driven(self._make_step)

    def run(self) -> None:
        """Make steps until every sequence is finished."""
        while self.pending:
            self.step()

    def stream(self) -> Iterator[tuple[Sequence, Piece]]:
        """Make steps until every sequence is finished, and give out the pieces as they come."""
        while self.pending:
            yield from self.step()

    def close(self) -> None:
        """Cancel what is not finished and free all memory. An engine may be closed twice."""
        if self._process != os.getpid():
            return
        self._check_driver()
        with self._driving:
            self._driven(self._close)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._scheduler.running)} running, {len(self._waiting)} waiting"
        return f"<Engine of {self.llm.path!r}, {state}>"

    # ---- The thread that makes steps ----

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError("the engine belongs to the process that made it: make another one after a fork")

    def _check_driver(self) -> None:
        self._check_process()
        if self._driver == threading.get_ident():
            raise BusyError("the engine is inside a step of this thread, which a callback cannot make another one of")

    def _driven(self, work: Callable[[], T]) -> T:
        self._driver = threading.get_ident()
        try:
            return work()
        finally:
            self._driver = None

    def _if_free(self, work: Callable[[], object]) -> bool:
        """Do it unless a thread is inside a step."""
        self._check_process()
        taken: list[bool] = []
        try:
            # By one call that also notes it: an interrupt between the two would leave the lock taken for ever.
            taken.extend(map(self._driving.acquire, (False,)))
            if taken[0]:
                self._driven(work)
        finally:
            if taken and taken[0]:
                self._driving.release()
        return taken[0]

    def _cancel(self, sequence: Sequence) -> None:
        self._cancels.append(sequence)
        self._if_free(self._sweep)

    def _step_if_free(self) -> bool:
        self._check_driver()
        return self._if_free(self._make_step)

    def _close(self) -> None:
        with self._lock:
            self._closed = True
        self._step = None
        self._cancels.extend(self._scheduler.running)
        self._cancels.extend(self._waiting)
        self._sweep()
        self._waiting.clear()
        self._pieces.clear()
        if self._cache is not None:
            self._cache.clear()

    def _make_step(self) -> list[tuple[Sequence, Piece]]:
        # An interrupt may strike between any two lines: what each of these does holds when it begins anew.
        start = time.perf_counter()
        self._hand_over()
        self._sweep()
        self._scheduler.adopt()
        self._admit()
        rows = self._scheduler.rows()
        if rows:
            self._step = _Step(rows)
            spans = [(row.session, row.tokens, ROLE_PROMPT if row.prompt else ROLE_GENERATED) for row in rows]
            self._batch.step_sample(spans, [row.sampler for row in rows], out=self._step.tokens)
            self._scheduler.steps += 1
            self._hand_over()
            self._sweep()
        self._seconds += time.perf_counter() - start
        pieces, self._pieces = self._pieces, []
        return pieces

    def _hand_over(self) -> None:
        """Give each sequence what the step computed for it; of an interrupted step, what is left, or nothing."""
        step = self._step
        while step is not None and step.done < len(step.tokens):
            row = step.rows[step.done]
            sequence = row.sequence
            try:
                if sequence._reason is None:
                    self._advance(row, step.tokens[step.done])
            except Exception as error:
                sequence._end("error", error)
            except BaseException as error:
                sequence._end("error", error)
                raise
            step.done += 1
        self._step = None

    def _advance(self, row: Rows, token: int | None) -> None:
        sequence = row.sequence
        sequence._served = self._scheduler.steps
        if row.prompt:
            self._prompt_tokens += len(row.tokens)
            self._scheduler.keep(sequence)
        if token is None:
            return
        if token < 0:
            raise ValueError("the logits are no distribution: NaN or +infinity among them, or nothing but -infinity")
        piece = sequence._take(token)
        if piece is not None:
            self._generated += 1
            self._emit(sequence, piece)

    def _emit(self, sequence: Sequence, piece: Piece) -> None:
        self._pieces.append((sequence, piece))
        if sequence._on_piece is not None:
            sequence._on_piece(sequence, piece)

    def _sweep(self) -> None:
        """Free what has ended."""
        running = self._scheduler.running
        while self._cancels:
            sequence = self._cancels[0]
            sequence._end("cancelled")
            if sequence not in running:
                self._retire(sequence)
            self._cancels.popleft()
        ended = [sequence for sequence in running if sequence._reason is not None]
        for sequence in ended:
            self._retire(sequence)
        if ended:
            self._scheduler.running = [sequence for sequence in running if sequence._reason is None]
        while self._waiting and self._waiting[0]._over:
            self._waiting.popleft()

    def _retire(self, sequence: Sequence) -> None:
        sequence._release()
        try:
            piece = sequence._finish()
            if piece is not None:
                self._emit(sequence, piece)
        except Exception as error:
            sequence._end("error", error)
        except BaseException as error:
            sequence._end("error", error)
            raise
        finally:
            sequence._close()

    def _admit(self) -> None:
        running = self._scheduler.running
        while self._waiting:
            sequence = self._waiting[0]
            if sequence._reason is None and sequence not in running:
                if sequence._max_tokens == 0:
                    sequence._end("length")
                elif len(running) == self.max_running or not self._scheduler.admit(sequence):
                    return
            if sequence._reason is not None:
                self._retire(sequence)
            self._waiting.popleft()
