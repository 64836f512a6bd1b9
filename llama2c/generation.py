"""The generation loop: Python holds the loop, one call into the core a token."""

import operator
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast, overload

from llama2c._core import ContextError, Sampler, Tokenizer
from llama2c.text import ReplyText, ends_of, stops_of

if TYPE_CHECKING:
    import hashlib

    import numpy as np
    from numpy.typing import NDArray

    from llama2c.model import Llama
    from llama2c.tokenizers import StrPath

Prompt: TypeAlias = "str | Sequence[int] | NDArray[np.integer]"
Prompts: TypeAlias = "Sequence[Prompt]"


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds."""

    prompt_tokens: int
    prompt_seconds: float  # until the first token was sampled
    tokens: int  # generated
    generate_seconds: float  # from the first token to the last

    @property
    def prompt_tokens_per_second(self) -> float:
        """Rate of the prompt."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Rate of the tokens after the first, which belongs to the prompt's step."""
        return (self.tokens - 1) / self.generate_seconds if self.generate_seconds else 0.0


@dataclass(frozen=True)
class Generation:
    """What was generated. str() of it is the text."""

    text: str  # without the prompt
    tokens: list[int]  # generated ids, the end-of-text token not among them
    prompt_tokens: list[int]
    # "stop": an end-of-text token or a stop string; "length": max_tokens or the context's end; of an Engine's sequences
    # also "cancelled"
    finish_reason: str
    seed: int  # gives the same text again
    timings: Timings

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Piece:
    """One token of a stream with the characters that it completed."""

    text: str  # may be empty: half a character, or a possible beginning of a stop string
    token: int | None  # None: text that was held back until the end
    finish_reason: str | None  # of the last piece, else None
    seed: int


def random_seed() -> int:
    """A seed from the system's random numbers, 1 to 2**63 - 1."""
    return int.from_bytes(os.urandom(8), "little") >> 1 or 1


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The ids of a prompt: a text gets BOS in front, where the tokenizer has it so; ids are taken as they are."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, (str, bytes)) else [operator.index(token) for token in prompt]
    if not ids:
        raise ValueError("the prompt has no tokens: expected at least 1")
    return ids


class Run:
    """One generation in progress: iterate it for the ids; `finish_reason` and `timings` tell the rest.

    digest: takes the bytes of all logits that are sampled from, for records.
    """

    def __init__(
        self,
        llm: "Llama",
        prompt: Prompt,
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
        digest: "hashlib._Hash | None" = None,
    ) -> None:
        if max_tokens < 0:
            raise ValueError(f"max_tokens is {max_tokens}, expected 0 or more")
        self.ids = prompt_ids(llm.tokenizer, prompt)
        self.seed = random_seed() if seed is None else seed
        self.sampler = Sampler(llm.config.vocab_size, temperature=temperature, top_p=top_p, seed=self.seed, isa=llm.isa)
        self.room = llm.context - len(self.ids)  # tokens that can still be taken
        if self.room < 0:
            raise ContextError(f"the prompt has {len(self.ids)} tokens, but the context {llm.context} positions")
        # The last token is sampled, not taken: it needs no position.
        self.session = llm.session(context=min(llm.context, len(self.ids) + max(max_tokens, 1)))
        self.max_tokens = max_tokens
        self.temperature, self.top_p = temperature, top_p
        self.digest = digest
        self.finish_reason = "length"
        self.count = 0
        self.start = self.first = self.last = time.perf_counter()

    def tokens(self, ends: Collection[int]) -> Iterator[int]:
        """Ids until one of `ends`, which is not given out, or until there is no more room."""
        if self.max_tokens == 0:
            return
        sampler = self.sampler
        logits = self.session.prefill(self.ids)
        if self.digest is not None:
            self.digest.update(logits.data)
        token = sampler.sample(logits)
        self.first = self.last = time.perf_counter()
        step_sample = self.session.step_sample if self.digest is None else self._step_digest_sample
        while token not in ends:
            self.count += 1
            self.last = time.perf_counter()
            yield token
            if self.count >= self.max_tokens or self.count > self.room:
                return
            token = step_sample(token, sampler)
        self.finish_reason = "stop"

    def _step_digest_sample(self, token: int, sampler: Sampler) -> int:
        logits = self.session.step(token)
        if self.digest is not None:
            self.digest.update(logits.data)
        return sampler.sample(logits)

    def timings(self) -> Timings:
        return Timings(len(self.ids), self.first - self.start, self.count, self.last - self.first)


def pieces_of(run: Run, reply: ReplyText) -> Iterator[Piece]:
    """The pieces of a run, up to one of the reply's ends or a stop string."""
    for token in run.tokens(reply.ends):
        text, stopped = reply.feed(token)
        if stopped:
            run.finish_reason = "stop"
            yield Piece(text, token, "stop", run.seed)
            return
        yield Piece(text, token, None, run.seed)
    text, stopped = reply.flush()
    if stopped:
        run.finish_reason = "stop"
    yield Piece(text, None, run.finish_reason, run.seed)


def stream(
    llm: "Llama",
    prompt: Prompt = "",
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
) -> Iterator[Piece]:
    """Generate piece by piece. The arguments are checked now, the work begins with the first piece."""
    ends = ends_of(llm.tokenizer, ignore_eos=ignore_eos)
    run = Run(llm, prompt, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    return pieces_of(run, ReplyText(llm.tokenizer, run.ids, stop=stops_of(stop), ends=ends))


def generate(
    llm: "Llama",
    prompt: "Prompt | Prompts",
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | Sequence[int] | None,
    stop: str | Sequence[str],
    ignore_eos: bool,
    throughput: bool,
) -> Generation | list[Generation]:
    """Generate to the end: one prompt, or each of a list of them."""
    if isinstance(prompt, (list, tuple)) and all(hasattr(item, "__len__") for item in prompt):
        return _generate_all(
            llm,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            ignore_eos=ignore_eos,
            throughput=throughput,
        )
    if hasattr(seed, "__len__"):
        raise TypeError("a list of seeds for one prompt, expected an int or None")
    one, one_seed = cast("Prompt", prompt), seed
    run = Run(llm, one, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=one_seed)
    ends = ends_of(llm.tokenizer, ignore_eos=ignore_eos)
    pieces = list(pieces_of(run, ReplyText(llm.tokenizer, run.ids, stop=stops_of(stop), ends=ends)))
    return Generation(
        text="".join(piece.text for piece in pieces),
        tokens=[piece.token for piece in pieces if piece.token is not None],
        prompt_tokens=run.ids,
        finish_reason=run.finish_reason,
        seed=run.seed,
        timings=run.timings(),
    )


def _generate_all(
    llm: "Llama",
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | Sequence[int] | None,
    stop: str | Sequence[str],
    ignore_eos: bool,
    throughput: bool,
) -> list[Generation]:
    from llama2c.engine import Engine

    seeds = list(cast("Sequence[int]", seed)) if hasattr(seed, "__len__") else [seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts, expected one each")
    if not prompts:
        return []
    chunk = 256
    with Engine(llm, max_rows=chunk + min(len(prompts), 64), chunk=chunk, throughput=throughput) as engine:
        sequences = [
            engine.submit(
                prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=own,
                stop=stop,
                ignore_eos=ignore_eos,
            )
            for prompt, own in zip(prompts, seeds, strict=True)
        ]
        engine.run()
        return [sequence.result() for sequence in sequences]


_cached: "tuple[tuple[object, ...], Llama] | None" = None
_cache_lock = threading.Lock()


def _fresh_lock() -> None:
    # A child forked while another thread loads a model would wait for that thread for ever.
    global _cache_lock
    _cache_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


def _cached_model(path: str, tokenizer: "StrPath | Tokenizer | None") -> "Llama":
    # The last model stays open; a file that changed on disk is another model.
    global _cached
    from llama2c.formats.hf import is_hf
    from llama2c.model import Llama
    from llama2c.weights import model_paths

    files = map(os.stat, model_paths(path) if is_hf(path) else [path])
    key = (path, tokenizer, *((info.st_ino, info.st_size, info.st_mtime_ns) for info in files))
    with _cache_lock:
        if _cached is None or _cached[0] != key:
            _cached = (key, Llama(path, tokenizer=tokenizer))
        return _cached[1]


@overload
def generate_once(  # type: ignore[overload-overlap]  # a str is a sequence of str, and one prompt
    prompt: Prompt = ...,
    *,
    model: "StrPath | Llama | None" = ...,
    tokenizer: "StrPath | Tokenizer | None" = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] = ...,
    ignore_eos: bool = ...,
) -> Generation: ...


@overload
def generate_once(
    prompt: Prompts,
    *,
    model: "StrPath | Llama | None" = ...,
    tokenizer: "StrPath | Tokenizer | None" = ...,
    max_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int | Sequence[int] | None = ...,
    stop: str | Sequence[str] = ...,
    ignore_eos: bool = ...,
    throughput: bool = ...,
) -> list[Generation]: ...


def generate_once(
    prompt: "Prompt | Prompts" = "",
    *,
    model: "StrPath | Llama | None" = None,
    tokenizer: "StrPath | Tokenizer | None" = None,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int | Sequence[int] | None = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    throughput: bool = False,
) -> Generation | list[Generation]:
    """Continue a prompt in one call; the last model stays loaded for the next.

    prompt: a text, which gets BOS in front, or token ids. A list of prompts (texts or lists of ids) gives a list of
        generations, each what its prompt alone would give, computed together; see Engine.
    model: a checkpoint's path, or what `llama2c.load` gave; None: the packaged model.
    tokenizer: as in `load`, for a path; a loaded model has its own.
    max_tokens: most tokens to generate.
    temperature: 0 takes the most probable token every time; 1 the model's own distribution.
    top_p: sample from the most probable tokens that together exceed this probability; 0 or 1: from all.
    seed: the same seed gives the same text, on any number of threads; None: a random one, told in the result. Of a
        list of prompts each gets this seed, or its own from a list of them.
    stop: text that ends the generation and is not part of it.
    ignore_eos: go on after BOS and EOS, which otherwise end the text.
    throughput: of a list of prompts: whatever products are fastest, though another text may come out; see Engine.

    Raises ContextError if the prompt does not fit, and what `load` raises.
    """
    from llama2c.model import Llama
    from llama2c.packaged import packaged_model

    if isinstance(model, Llama):
        if tokenizer is not None:
            raise TypeError("tokenizer= beside a loaded model, which has its own: give it to llama2c.load")
        llm = model
    else:
        llm = _cached_model(packaged_model() if model is None else os.fspath(model), tokenizer)
    return generate(
        llm,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
        throughput=throughput,
    )
