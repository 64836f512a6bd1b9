"""Text as it streams: bytes of tokens to characters, and stop strings that end it."""

import codecs
from collections.abc import Collection, Sequence

from llama2c._core import Tokenizer


class TextDecoder:
    """Turns the bytes of token after token into text, never handing out half a character.

    Bytes that are no UTF-8 become U+FFFD. With `strip_space` one space at the very beginning is
    dropped: right after BOS it is not of the text but what the tokenizer puts in front of one.
    """

    def __init__(self, *, strip_space: bool) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = strip_space
        self._at_start = True

    def feed(self, data: bytes) -> str:
        """The characters that `data` completes; "" while one is still incomplete."""
        if self._at_start and data:
            self._at_start = False
            if self._strip_space and data[:1] == b" ":
                data = data[1:]
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character. A new text may follow."""
        self._at_start = True
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Cuts streamed text before the first stop string, holding back only what may become one.

    The stop string that is complete first counts, and of those complete at the same character the
    longest: so the result does not depend on the portions in which the text arrives. Raises
    ValueError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise TypeError("stops is a str, expected a sequence of them")
        if not all(stops):
            raise ValueError("a stop string is empty, expected at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show now, and whether a stop string was met: nothing follows one."""
        if self._stopped:
            return "", True
        text = self._held + text
        starts = [(stop, text.find(stop)) for stop in self._stops]
        found = [(start + len(stop), start) for stop, start in starts if start >= 0]
        if found:
            self._stopped = True
            self._held = ""
            return text[: min(found)[1]], True
        safe = len(text) - self._longest_beginning(text)
        self._held = text[safe:]
        return text[:safe], False

    def flush(self) -> str:
        """The text held back, at the end of all text."""
        held, self._held = self._held, ""
        return held

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


def stops_of(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


def ends_of(tokenizer: Tokenizer, *, ignore_eos: bool = False) -> tuple[int, ...]:
    """The ids that end a text: BOS and EOS, where the tokenizer has them."""
    return () if ignore_eos else tuple(end for end in (tokenizer.bos, tokenizer.eos) if end >= 0)


class ReplyText:
    """The text of generated tokens: what each one completes, until a token of `ends` or a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop: Sequence[str] = (),
        ends: Collection[int] = (),
    ) -> None:
        self.ends = ends
        self._tokenizer = tokenizer
        self._matcher = StopMatcher(stop)
        # The space before a text belongs to its beginning only.
        at_start = len(prompt) == 1 and prompt[0] == tokenizer.bos
        self._decoder = TextDecoder(strip_space=at_start and tokenizer.add_space_prefix)

    def feed(self, token: int) -> tuple[str, bool]:
        """Text that a token completes, and whether a stop string ends it."""
        return self._matcher.feed(self._decoder.feed(self._tokenizer.token_bytes(token)))

    def flush(self) -> tuple[str, bool]:
        """The text held back, after the last token, and whether a stop string ends it."""
        text, stopped = self._matcher.feed(self._decoder.flush())
        return (text, True) if stopped else (text + self._matcher.flush(), False)
