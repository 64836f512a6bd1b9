"""One generation among many: the handle that Engine.submit gives, and its state."""

import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from llama2c._core import Sampler, Session
from llama2c.generation import Generation, Piece, Timings
from llama2c.text import ReplyText

if TYPE_CHECKING:
    from llama2c.engine import Engine

OnPiece: TypeAlias = "Callable[[Sequence, Piece], object]"


class Sequence:
    """One prompt and what is generated after it. Any thread may look, wait and cancel.

    Made by Engine.submit.
    """

    def __init__(
        self,
        engine: "Engine",
        ids: list[int],
        reply: ReplyText,
        *,
        max_tokens: int,
        room: int,
        temperature: float,
        top_p: float,
        seed: int,
        on_piece: "OnPiece | None",
    ) -> None:
        # checks the settings; the sampler itself comes with the first step, as it takes memory for the whole vocabulary
        Sampler(1, temperature=temperature, top_p=top_p, seed=seed)
        self.seed = seed
        self.prompt_tokens = ids
        self._engine = engine
        self._reply = reply
        self._max_tokens = max_tokens
        self._room = room  # tokens that can be taken after the prompt
        self._settings = (temperature, top_p)
        self._on_piece = on_piece
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._reason: str | None = None
        self._exception: BaseException | None = None
        self._flushed = False
        # An Event would do, but an interrupt may leave the lock inside taken.
        self._over = False
        self._gate = threading.Lock()  # taken until it is over
        self._gate.acquire()
        self._start = self._first = self._last = time.perf_counter()
        # of the engine
        self._admitted = False
        self._session: Session | None = None
        self._sampler: Sampler | None = None
        self._keys: list[bytes] = []  # of the prompt's whole pages
        self._kept: object = None
        self._served = 0  # the last step that had a row of it

    @property
    def status(self) -> str:
        """One of "waiting", "running", "finished"."""
        if self._over:
            return "finished"
        return "running" if self._admitted else "waiting"

    @property
    def tokens(self) -> list[int]:
        """Ids generated so far, the end-of-text token not among them."""
        return list(self._tokens)

    @property
    def text(self) -> str:
        """Text generated so far, less what may become a stop string."""
        return "".join(self._text)

    @property
    def finish_reason(self) -> str | None:
        """None until the sequence is finished; then "stop", "length", "cancelled" or "error"."""
        return self._reason if self._over else None

    @property
    def exception(self) -> BaseException | None:
        """What ended a sequence whose finish_reason is "error"."""
        return self._exception

    def cancel(self) -> None:
        """End it, with what it has, and free its memory: now, or with the step that is running."""
        self._engine._cancel(self)

    def result(self) -> Generation:
        """Wait for the end, and make the engine's steps meanwhile unless another thread does.

        Pieces of those steps go to on_piece alone. A cancelled sequence has its text up to there. Raises the exception
        of one that ended by an error, and what Engine.step raises.
        """
        while not self._over:
            # a limit, to look again whether someone still makes steps
            if not self._engine._step_if_free() and self._gate.acquire(timeout=0.02):
                self._gate.release()
        if self._exception is not None:
            raise self._exception
        assert self._reason is not None
        timings = Timings(
            len(self.prompt_tokens), self._first - self._start, len(self._tokens), self._last - self._first
        )
        return Generation(
            text=self.text,
            tokens=self.tokens,
            prompt_tokens=self.prompt_tokens,
            finish_reason=self._reason,
            seed=self.seed,
            timings=timings,
        )

    def __repr__(self) -> str:
        state = self.finish_reason or self.status
        return f"<Sequence {state}, {len(self.prompt_tokens)} + {len(self._tokens)} tokens, seed={self.seed}>"

    # ---- For the engine's thread ----

    @property
    def _positions(self) -> int:
        # Most that it can take: the last token is sampled, not taken.
        return len(self.prompt_tokens) + min(self._room, max(self._max_tokens, 1) - 1)

    @property
    def _position(self) -> int:
        return 0 if self._session is None else self._session.position

    @property
    def _prefilling(self) -> bool:
        return self._position < len(self.prompt_tokens)

    def _begin(self, vocab_size: int, isa: str) -> None:
        temperature, top_p = self._settings
        self._sampler = Sampler(vocab_size, temperature=temperature, top_p=top_p, seed=self.seed, isa=isa)
        self._admitted = True

    def _end(self, reason: str, exception: BaseException | None = None) -> None:
        # The first reason counts, but for an error while the last piece is handed out.
        if self._reason is None or (exception is not None and not self._over):
            if exception is not None:
                traceback.clear_frames(exception.__traceback__)  # whose locals may hold pages
            self._exception = exception
            self._reason = reason

    def _take(self, token: int) -> Piece | None:
        """What a sampled token adds; None for an end-of-text token."""
        self._last = time.perf_counter()
        if not self._tokens:
            self._first = self._last
        if token in self._reply.ends:
            self._end("stop")
            return None
        self._tokens.append(token)
        text, stopped = self._reply.feed(token)
        self._text.append(text)
        if stopped:
            self._flushed = True
            self._end("stop")
        elif len(self._tokens) >= self._max_tokens or len(self._tokens) > self._room:
            self._end("length")
        return Piece(text, token, "stop" if stopped else None, self.seed)

    def _finish(self) -> Piece | None:
        """The last piece of one that has ended, if it has not been handed out with a token."""
        if self._flushed:
            return None
        self._flushed = True
        text, stopped = self._reply.flush()
        self._text.append(text)
        if stopped and self._reason == "length":
            self._reason = "stop"
        return Piece(text, None, self._reason, self.seed)

    def _close(self) -> None:
        if not self._over:
            self._over = True
            self._gate.release()

    def _release(self) -> None:
        if self._session is not None:
            self._session.rewind(0)  # the memory is free now, whoever else still knows the session
        self._session = self._sampler = self._kept = None
