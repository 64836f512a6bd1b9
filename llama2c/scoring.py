"""How well a model predicts a text: log-probabilities, and perplexity over windows as llama.cpp has it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama2c.model import Llama


@dataclass(frozen=True)
class Score:
    """Natural logarithms of the probability of each token after the first, given all before it."""

    tokens: list[int]
    log_probabilities: list[float]  # of tokens[1:]

    @property
    def total(self) -> float:
        """Log-probability of all tokens after the first."""
        return math.fsum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN when there is only one token."""
        count = len(self.log_probabilities)
        return math.exp(-self.total / count) if count else math.nan


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of the windows so far."""

    windows: int  # done
    of: int  # windows of the text
    tokens: int  # scored
    nats: float  # negative log-probability of all of them
    nats_squared: float  # sum of the squares of the tokens'
    bytes: int  # of UTF-8 that they stand for
    characters: int  # the same as characters

    @property
    def value(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(self.nats / self.tokens)

    @property
    def error(self) -> float:
        """Standard error of the value, as llama.cpp gives it; NaN for a single token."""
        mean = self.nats / self.tokens
        variance = self.nats_squared / self.tokens - mean * mean
        return math.sqrt(max(variance, 0) / (self.tokens - 1)) * self.value if self.tokens > 1 else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model needs for a byte of the text; NaN when the tokens stand for none."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def nats_per_character(self) -> float:
        """Mean negative log-probability of a character; NaN when there is none."""
        return self.nats / self.characters if self.characters else math.nan


def perplexity(
    llm: "Llama", text: str | bytes, *, context: int = 512, windows: int | None = None, stride: int | None = None
) -> Iterator[Perplexity]:
    """Perplexity of a text, after each window of `context` tokens.

    As llama.cpp computes it: the tokens are cut into windows; in each, where the tokenizer begins a text with BOS,
    the first token becomes BOS, and the tokens of the second half are scored. `windows`: no more than so many.
    With a stride every token of the text is scored once: windows begin so many tokens apart, and each scores those that
    the one before has not seen.
    The arguments are checked now. Raises ValueError if the text is shorter than two windows (with a stride: empty).
    """
    if not 4 <= context <= llm.context:
        raise ValueError(f"context is {context}, expected 4 to {llm.context}")
    if windows is not None and windows < 1:
        raise ValueError(f"windows is {windows}, expected at least 1")
    if stride is not None and not 1 <= stride < context:
        raise ValueError(f"stride is {stride}, expected 1 to {context - 1}, less than the context")
    ids = llm.tokenizer.encode(text)
    if stride is None:
        count = len(ids) // context
        if count < 2:
            raise ValueError(
                f"the text has {len(ids)} tokens, expected at least {2 * context}, two windows of {context}"
            )
        places = [(i * context, i * context + context // 2 + 1, (i + 1) * context) for i in range(count)]
    else:
        places = list(_strided(len(ids), context, stride))
        if not places:
            raise ValueError(f"the text has {len(ids)} tokens, expected at least 2")
    return _windows(llm, ids, context, places[:windows])


def _strided(count: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Begin, first scored token and end of windows that score all tokens but the first, which is BOS."""
    scored = 1
    for begin in range(0, count, stride):
        end = min(begin + context, count)
        if end > scored:
            yield begin, scored, end
        scored = max(scored, end)


def _windows(llm: "Llama", ids: list[int], context: int, places: list[tuple[int, int, int]]) -> Iterator[Perplexity]:
    tokenizer, session = llm.tokenizer, llm.session(context=context)
    nats = nats_squared = 0.0
    count = size = characters = 0
    for window, (begin, first, end) in enumerate(places, 1):
        tokens = ids[begin:end]
        if tokenizer.add_bos and tokenizer.bos >= 0:
            tokens[0] = tokenizer.bos
        session.rewind(0)
        scores = session.score(tokens, start=first - begin - 1)
        nats -= float(scores.sum())
        nats_squared += float((scores * scores).sum())
        text = b"".join(map(tokenizer.token_bytes, tokens[first - begin :]))
        count += end - first
        size += len(text)
        characters += sum(byte & 0xC0 != 0x80 for byte in text)  # all but continuation bytes
        yield Perplexity(window, len(places), count, nats, nats_squared, size, characters)
