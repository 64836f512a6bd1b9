"""TextDecoder and StopMatcher against their definitions on the whole text."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama2c.text import StopMatcher, TextDecoder


def portions(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# Bytes near the borders of UTF-8's ranges, so that broken and overlong characters are frequent.
utf8_like = st.lists(
    st.sampled_from([b" ", b"a", "é".encode(), "▁".encode(), "日".encode(), "🦙".encode()])
    | st.sampled_from([bytes([b]) for b in b"\x00\x7f\x80\x9f\xa0\xbf\xc0\xc2\xe0\xed\xf0\xf4\xff"])
).map(b"".join)
cut_lists = st.lists(st.integers(0, 1 << 16), max_size=20)


@settings(deadline=None)
@given(data=utf8_like | st.binary(), cuts=cut_lists, strip=st.booleans())
def test_decoder_equals_decoding_at_once(data: bytes, cuts: list[int], strip: bool) -> None:
    decoder = TextDecoder(strip_space=strip)
    whole = data[1:] if strip and data[:1] == b" " else data
    for _ in range(2):  # after flush the decoder is as new
        text = "".join(decoder.feed(portion) for portion in portions(data, cuts))
        assert text + decoder.flush() == whole.decode("utf-8", "replace")


@settings(deadline=None)
@given(text=st.text())
def test_decoder_gives_a_character_as_soon_as_it_is_complete(text: str) -> None:
    decoder = TextDecoder(strip_space=False)
    for character in text:
        *begin, last = character.encode()
        assert "".join(decoder.feed(bytes([byte])) for byte in begin) == ""
        assert decoder.feed(bytes([last])) == character
    assert decoder.flush() == ""


def test_decoder_drops_one_leading_space_only() -> None:
    decoder = TextDecoder(strip_space=True)
    assert [decoder.feed(b) for b in (b"", b" ", b" a", b" b")] == ["", "", " a", " b"]
    assert TextDecoder(strip_space=False).feed(b" a") == " a"


def test_decoder_flushes_half_a_character_as_replacement() -> None:
    decoder = TextDecoder(strip_space=True)
    assert decoder.feed("🦙".encode()[:3]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def cut_before_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read character by character until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


letters = st.text(alphabet="ab\n", max_size=30)


@settings(deadline=None)
@given(
    chunks=st.lists(letters, max_size=8),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4),
)
@example(chunks=["abcd"], stops=["abcd", "bc"])
@example(chunks=["xaa", "ab"], stops=["aab"])
def test_stop_matcher_equals_definition(chunks: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    expected, expected_stop = cut_before_stop("".join(chunks), stops)
    fed = given_out = ""
    stopped = False
    for chunk in chunks:
        out, stopped = matcher.feed(chunk)
        fed += chunk
        given_out += out
        before, stop_now = cut_before_stop(fed, stops)
        assert stopped == stop_now
        if not stopped:
            # Held back is the longest end that a stop string begins with, and nothing more.
            beginnings = {stop[:i] for stop in stops for i in range(len(stop))} | {""}
            held = max((b for b in beginnings if fed.endswith(b)), key=len)
            assert given_out + held == before
    assert (given_out + matcher.flush(), stopped) == (expected, expected_stop)


def test_stop_matcher_is_silent_after_the_stop() -> None:
    matcher = StopMatcher(["\n\n", "User:"])
    assert matcher.feed("Hello Us") == ("Hello ", False)
    assert matcher.feed("er: hi") == ("", True)
    assert matcher.feed("more") == ("", True)
    assert matcher.flush() == ""


def test_stop_matcher_without_stops_passes_everything() -> None:
    matcher = StopMatcher([])
    assert matcher.feed("abc") == ("abc", False)
    assert matcher.flush() == ""


def test_stop_matcher_refuses_bad_stops() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
    with pytest.raises(TypeError, match="sequence"):
        StopMatcher("abc")
