"""Byte-level BPE against tiktoken, its pre-tokenizers against their regular expressions, and hostile vocabularies."""

import base64
import functools
import itertools
import random
import struct
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import llama2c
from llama2c._core import FormatError, Tokenizer, UnsupportedError
from llama2c.text import TextDecoder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KINDS = ["gguf", "model"]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt-2": GPT2, "llama-bpe": LLAMA3, "llama3": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}


def cut(pre: str, text: str) -> list[str]:
    """Pre-tokens by the regular expressions."""
    if pre == "smollm":
        return [word for part in regex.split(r"(\p{N})", text) for word in regex.findall(GPT2, part)]
    return regex.findall(PATTERNS[pre], text)


# ---- GPT-2's alphabet ----

VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
HIDDEN = [value for value in range(256) if value not in VISIBLE]
ALPHABET = {value: chr(value) for value in VISIBLE} | {value: chr(256 + i) for i, value in enumerate(HIDDEN)}
SINGLES = [bytes([value]) for value in range(256)]


def spell(piece: bytes) -> bytes:
    return "".join(ALPHABET[value] for value in piece).encode()


def from_bpe(
    pieces: Sequence[bytes],
    merges: Sequence[bytes] | None = (),
    types: Sequence[int] | None = None,
    **options: Any,
) -> Tokenizer:
    settings = {"pre": "gpt-2", "bos": -1, "eos": -1} | options
    return Tokenizer.from_bpe(pieces, types or [NORMAL] * len(pieces), merges, **settings)


def joined(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, tokens))


# ---- Llama 3's vocabulary, from both of its files ----


def read_gguf(data: bytes) -> dict[str, Any]:
    """The metadata, strings as bytes."""
    numbers = dict(zip(range(13), "BbHhIif?__Qqd", strict=True))
    at = 24

    def take(kind: int) -> Any:
        nonlocal at
        if kind == 9:
            inner, count = take(4), take(10)
            return [take(inner) for _ in range(count)]
        code = numbers[kind] if kind != 8 else f"{take(10)}s"
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value

    assert data[:4] == b"GGUF"
    return {take(8).decode(): take(take(4)) for _ in range(struct.unpack_from("<Q", data, 16)[0])}


@functools.cache
def gguf_vocabulary(data: Path) -> dict[str, Any]:
    return read_gguf((data / "tokenizers" / "ggml-vocab-llama-bpe.gguf").read_bytes())


@functools.cache
def llama3(data: Path, kind: str) -> Tokenizer:
    if kind == "model":
        return llama2c.load_tokenizer(data / "tokenizers" / "llama3" / "tokenizer.model")
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in gguf_vocabulary(data).items()}
    return Tokenizer.from_bpe(
        found["tokens"],
        found["token_type"],
        found["merges"],
        pre=found["pre"].decode(),
        bos=found["bos_token_id"],
        eos=found["eos_token_id"],
        ignore_merges=True,
    )


@functools.cache
def library(data: Path) -> tiktoken.Encoding:
    lines = (data / "tokenizers" / "llama3" / "tokenizer.model").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    return tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def characters() -> list[str]:
    """Those that all versions of Unicode agree on: unassigned ones become letters in a later version."""
    return [
        character
        for character in map(chr, range(0x110000))
        if unicodedata.category(character) not in ("Cn", "Cs")
        and bool(regex.match(r"[\p{L}\p{N}]", character)) == (unicodedata.category(character)[0] in "LN")
    ]


@functools.cache
def marks() -> list[str]:
    return [character for character in characters() if unicodedata.category(character)[0] == "M"]


WORDS = (
    "the of Once upon time, Lily's dog. don't WE'LL I'D they'RE you've 's 'S 't 'ſ 'x ' '' 'l 'v 12 345 1234567 6.78 "
    "0x1F C++ url://a.b/c?d=e <|eot_id|> <|begin_of_text|> </s> naïve Straße Ελλάδα русский العربية עברית हिन्दी "
    "ภาษาไทย 日本語 中文字符 한국어 ひらがな 🦙 👩\u200d👩\u200d👧 🇫🇷 ✅ e\u0301 a\u0308\u0323 "
    "ﬁ ½ ㎏ Ⅳ ٣ ²³ \u200b \u00ad \ufeff \0 \x7f \x1c"
).split(" ")
SPACES = [" ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x0b", " \n ", "\n\n\n"]


def random_text(rng: random.Random, longest: int = 12) -> str:
    def part() -> str:
        kind = rng.randrange(8)
        if kind < 3:
            return rng.choice(WORDS)
        if kind == 3:
            return "".join(rng.choices(SPACES, k=rng.randrange(5)))
        if kind == 4:
            return "".join(chr(rng.randrange(128)) for _ in range(rng.randrange(8)))
        if kind == 5:
            return rng.choice("a.=-\n 0é日'") * rng.randrange(20)
        if kind == 6:
            return "e" + rng.choice(marks()) + rng.choice("1 a.")
        return "".join(rng.choices(characters(), k=rng.randrange(6)))

    return rng.choice(["", " "]).join(part() for _ in range(rng.randrange(longest)))


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_vectors(data: Path, kind: str) -> None:
    stem = data / "tokenizers" / "ggml-vocab-llama-bpe.gguf"
    texts = Path(f"{stem}.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    lines = Path(f"{stem}.out").read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert llama3(data, kind).encode(text, bos=False) == [int(x) for x in line.split()], text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_random_texts_equal_tiktoken(data: Path, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    ours, theirs = llama3(data, kind), library(data)
    for _ in range(1500):
        text = random_text(rng)
        tokens = ours.encode(text, bos=False)
        assert tokens == theirs.encode_ordinary(text), (seed, text)
        assert ours.decode(tokens) == text, (seed, text)


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_equals_tiktoken(data: Path, kind: str) -> None:
    text = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert llama3(data, kind).encode(text, bos=False) == library(data).encode_ordinary(text)


def test_both_files_of_llama3_are_the_same_vocabulary(data: Path) -> None:
    ours, theirs = (llama3(data, kind) for kind in KINDS)
    assert len(ours) == len(theirs) == 128_256
    for tokenizer in ours, theirs:
        assert (tokenizer.unk, tokenizer.bos, tokenizer.eos) == (-1, 128_000, 128_001)
        assert not tokenizer.add_space_prefix
    for token in range(len(ours)):
        assert ours.piece(token) == theirs.piece(token)
        assert ours.token_bytes(token) == theirs.token_bytes(token)
        assert ours.find(ours.piece(token)[0]) == token
    assert ours.piece(128_009) == (b"<|eot_id|>", 0.0, CONTROL)
    assert ours.token_bytes(128_009) == b""


def test_text_is_streamed_by_bytes(data: Path) -> None:
    ours, decoder = llama3(data, "gguf"), TextDecoder(strip_space=False)
    text = " 🦙 żółć e\u0301"
    tokens = ours.encode(text, bos=False)
    pieces = [decoder.feed(ours.token_bytes(token)) for token in tokens]
    assert "".join(pieces) == text
    assert "" in pieces  # a token that ends inside a character


# ---- Pre-tokenizers ----


def pre_tokens(pre: str, text: str, longest: int) -> list[str]:
    """As the tokenizer cuts: every part of the text is a piece, and a pre-token that is a piece becomes it."""
    data = text.encode()
    parts = {data[at : at + size] for at in range(len(data)) for size in range(1, longest + 1)}
    ours = from_bpe(sorted(parts), None, pre=pre, ignore_merges=True)
    return [ours.token_bytes(token).decode() for token in ours.encode(data, bos=False)]


@pytest.mark.parametrize("pre", [*PATTERNS, "smollm"])
def test_pre_tokenizers_equal_their_patterns(pre: str) -> None:
    rng = random.Random(pre)
    for _ in range(3000):
        text = random_text(rng, 10)[:80] or " "
        assert pre_tokens(pre, text, len(text.encode())) == cut(pre, text), text


def test_short_texts_are_all_cut_alike() -> None:
    """Every text of up to 4 of these characters."""
    texts = ["".join(text) for size in range(5) for text in itertools.product("' \n\tsR1a.é", repeat=size)]
    for pre in [*PATTERNS, "smollm"]:
        parts = sorted({text.encode() for text in texts if text})
        ours = from_bpe([*parts], None, pre=pre, ignore_merges=True)
        for text in texts:
            cuts = [ours.token_bytes(token).decode() for token in ours.encode(text, bos=False)]
            assert cuts == cut(pre, text), (pre, text)


def test_classes_of_all_characters() -> None:
    """At the first and the last character of every run of one class; the pattern takes the runs apart."""

    def name(character: str) -> str:
        category = unicodedata.category(character)[0]
        white = category == "Z" or character in "\t\n\v\f\r\x85"
        return "S" if white else category if category in "LN" else "O"

    known = characters()
    ends = [pair for pair in itertools.pairwise(known) if name(pair[0]) != name(pair[1])]
    assert len(ends) > 500
    for pair in ends:
        text = "x".join(["", *pair, *pair, ""])
        assert pre_tokens("gpt-2", text, 30) == cut("gpt-2", text), pair


@pytest.mark.parametrize("pre", ["gpt2", "default", "", "llama3\n", "x" * 1000, "gpt-2\0"])
def test_an_unknown_pre_tokenizer_is_refused_by_name(pre: str) -> None:
    with pytest.raises(UnsupportedError, match="expected one of gpt-2, llama-bpe, llama3, qwen2, smollm") as caught:
        from_bpe(SINGLES, None, pre=pre)
    assert f'is "{pre[:80].translate({0: "?", 10: "?"})}"' in str(caught.value)


# ---- Merging ----


def merge_naively(pieces: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], word: bytes) -> list[bytes]:
    """The definition: while there are pairs in the list, join the leftmost of the first of them."""
    symbols = [bytes([value]) for value in word]
    while True:
        pairs = [merges.index(pair) for pair in itertools.pairwise(symbols) if pair in merges]
        if not pairs:
            return symbols
        at = list(itertools.pairwise(symbols)).index(merges[min(pairs)])
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


@pytest.mark.parametrize("seed", range(4))
def test_random_merges_follow_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    for trial in range(60):
        pieces = SINGLES.copy()
        merges: list[tuple[bytes, bytes]] = []
        while len(merges) < rng.randrange(1, 25):
            left, right = (rng.choice([b"a", b"b", b"c", *pieces[256:]]) for _ in range(2))
            if (left, right) not in merges:
                merges.append((left, right))
                pieces += [left + right] if left + right not in pieces else []
        rng.shuffle(merges)
        order = rng.sample(pieces, len(pieces))
        spelt = [spell(left) + b" " + spell(right) for left, right in merges]
        ours = from_bpe([spell(piece) for piece in order], spelt)
        for _ in range(30):
            word = bytes(rng.choices(b"abc", k=rng.randrange(1, 20)))
            found = [ours.token_bytes(token) for token in ours.encode(word, bos=False)]
            assert found == merge_naively(pieces, merges, word), (seed, trial, word)


def test_without_merges_ids_are_the_order() -> None:
    """As tiktoken has it: of all pairs that spell a piece, the one of the lowest id."""
    rng = random.Random(3)
    for _ in range(60):
        words = {bytes(rng.choices(b"abc", k=rng.randrange(2, 6))) for _ in range(20)}
        pieces = [*SINGLES, *rng.sample(sorted(words), len(words))]
        theirs = tiktoken.Encoding(
            "x", pat_str=GPT2, mergeable_ranks={piece: i for i, piece in enumerate(pieces)}, special_tokens={}
        )
        ours = from_bpe(pieces, None, ignore_merges=True)
        for _ in range(30):
            text = "".join(rng.choices("abc ", k=rng.randrange(30)))
            assert ours.encode(text, bos=False) == theirs.encode_ordinary(text), text


def test_ignore_merges_takes_a_whole_pre_token() -> None:
    pieces = [*map(spell, SINGLES), b"ab", b"abc"]
    for ignore in (False, True):
        ours = from_bpe(pieces, [b"a b"], ignore_merges=ignore)
        assert ours.encode("abc", bos=False) == [257] if ignore else [256, pieces.index(b"c")]
        assert ours.encode("abcc", bos=False) == [256, *[pieces.index(b"c")] * 2]


def test_of_equal_merges_the_first_counts() -> None:
    ours = from_bpe([*map(spell, SINGLES), b"ab", b"bc"], [b"a b", b"b c", b"a b"])
    assert joined(ours, ours.encode("abc", bos=False)[:1]) == b"ab"


# ---- Special tokens ----


def with_specials(merges: Sequence[bytes] | None = (), pre: str = "gpt-2") -> Tokenizer:
    specials = {
        "<s>": CONTROL,
        "<s>x": CONTROL,
        "  ": USER_DEFINED,
        "<tool>": USER_DEFINED,
        "é\n": CONTROL,
        "<u>": UNUSED,
    }
    pieces = [*map(spell, SINGLES), *(special.encode() for special in specials)]
    return from_bpe(pieces, merges, [NORMAL] * 256 + [*specials.values()], pre=pre)


def parts_of(tokenizer: Tokenizer, text: str, *, special: bool) -> list[bytes]:
    return [tokenizer.piece(token)[0] for token in tokenizer.encode(text, bos=False, special=special)]


def test_control_tokens_are_parsed_by_choice() -> None:
    ours = with_specials()
    text = "a<s>b<s>xé\n<tool><s   c<u>"
    split = [b"a", b"<s>", b"b", b"<s>x", "é\n".encode(), b"<tool>", b"<", b"s", b"  ", b" ", b"c", b"<", b"u", b">"]
    assert parts_of(ours, text, special=True) == split
    plain = parts_of(ours, text, special=False)
    assert plain == [
        *(bytes([value]) for value in "a<s>b<s>xé\n".encode()),
        *(b"<tool>", b"<", b"s", b"  ", b" ", b"c", b"<", b"u", b">"),
    ]


def test_llama3s_control_tokens(data: Path) -> None:
    for kind in KINDS:
        ours = llama3(data, kind)
        text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        assert ours.encode(text, special=True) == [128_000, 128_006, 882, 128_007, 271, 13_347, 128_009]
        assert ours.encode(text, bos=False) == library(data).encode_ordinary(text)
        assert max(ours.encode(text, bos=False)) < 128_000
        specials = [ours.piece(token)[0].decode() for token in range(128_000, 128_256)]
        assert ours.encode("".join(specials), bos=False, special=True) == [*range(128_000, 128_256)]


def test_control_tokens_of_sentencepieces_kind(data: Path) -> None:
    """What follows one begins anew, with its space."""
    ours = llama2c.load_tokenizer(data / "tokenizers" / "llama2" / "tokenizer.bin")
    theirs = llama2c.load_tokenizer(data / "tokenizers" / "llama2" / "tokenizer.model")
    text = "<s>[INST] Hi [/INST] Yes.</s><s>[INST]"
    expected = [1, *theirs.encode("[INST] Hi [/INST] Yes.", bos=False), 2, 1, *theirs.encode("[INST]", bos=False)]
    assert theirs.encode(text, bos=False, special=True) == expected
    assert theirs.encode(text, bos=False) == ours.encode(text, bos=False) != expected
    assert theirs.encode("", special=True) == [1]

    pieces = [b" ", b"a", b"<s>", b"<s>a", b"a<s>"]
    types = [NORMAL, NORMAL, CONTROL, USER_DEFINED, USER_DEFINED]
    made = Tokenizer.from_table(pieces, [0.0] * 5, types, unk=-1, bos=-1, eos=-1, add_space_prefix=False)
    assert made.encode("<s> <s>a a<s>", special=True) == [2, 0, 3, 0, 4]  # the longest at the earliest place


def test_a_merge_of_special_pieces_never_applies() -> None:
    pieces = [*map(spell, SINGLES), b"end", b"en"]
    ours = from_bpe(pieces, [b"e n", b"en d"], [NORMAL] * 256 + [CONTROL, NORMAL])
    assert ours.encode("end", bos=False) == [257, pieces.index(b"d")]
    assert ours.encode("end", bos=False, special=True) == [256]


# ---- Any bytes ----


@settings(max_examples=500, deadline=None)
@given(text=st.binary() | st.text().map(str.encode) | st.binary(min_size=200, max_size=400), special=st.booleans())
def test_any_bytes_come_back(data: Path, text: bytes, special: bool) -> None:
    for kind in KINDS:
        ours = llama3(data, kind)
        assert joined(ours, ours.encode(text, bos=False)) == text
    for pre in [*PATTERNS, "smollm"]:
        ours = with_specials(pre=pre)
        tokens = ours.encode(text, bos=False, special=special)
        assert b"".join(ours.piece(token)[0] for token in tokens) == text


def test_a_byte_without_a_token_is_an_error() -> None:
    ours = from_bpe([b"a"])
    assert ours.encode("aa") == [0, 0]
    with pytest.raises(ValueError, match="begins with byte 0x62"):
        ours.encode("ab")


# ---- Hostile vocabularies ----


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"pieces": [b""]}, "token 0: its piece is empty"),
        ({"pieces": [b"a", b"b", b"a"]}, "token 2: an earlier token has the same piece"),
        ({"pieces": [b"a", b"b", b"a"], "merges": None}, "token 2: an earlier token has the same piece"),
        ({"pieces": [b"a", b"a b"]}, "token 1: its piece has a character outside GPT-2's alphabet"),
        ({"pieces": ["日".encode()]}, "token 0: its piece has a character outside"),
        ({"pieces": ["\u0144".encode()]}, "token 0: its piece has a character outside"),
        ({"pieces": ["\u00ad".encode()]}, "token 0: its piece has a character outside"),
        ({"pieces": [b"\xc4"]}, "token 0: its piece has a character outside"),
        ({"pieces": [b"\xff\xff"]}, "token 0: its piece has a character outside"),
        ({"pieces": [b"a", b"<0x0A>"], "types": [1, 6]}, "token 1: its type is 6, a byte token"),
        ({"pieces": [b"a"], "types": [0]}, "token 0: its type is 0, expected 1 to 6"),
        ({"pieces": [b"a"], "types": [7]}, "token 0: its type is 7, expected 1 to 6"),
        ({"pieces": [b"a"], "bos": 1}, "the id of bos is 1, expected -1 to 0"),
        ({"pieces": [b"a"], "eos": -2}, "the id of eos is -2, expected -1 to 0"),
        ({"pieces": [b"a", b"aa"], "merges": [b"aa"]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": [b""]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": [b" "]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": [b"a "]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": [b" a"]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": [b"a a", b"a a a"]}, "merge 1: expected two pieces"),
        ({"pieces": [b"a", b"aa"], "merges": ["a 日".encode()]}, "merge 0: expected two pieces"),
        ({"pieces": [b"a", b"ba"], "merges": [b"b a"]}, "merge 0: its left part is no piece"),
        ({"pieces": [b"a", b"ab"], "merges": [b"a b"]}, "merge 0: its right part is no piece"),
        ({"pieces": [b"a", b"b"], "merges": [b"a b"]}, "merge 0: what it joins to is no piece"),
    ],
)
def test_unsuitable_tables_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        from_bpe(**table)


@pytest.mark.parametrize("before", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize(
    ("wrong", "message"), [(b"a", "expected two pieces"), (b"a b", "its right part"), (b"aa aa", "what it joins to")]
)
def test_of_wrong_merges_the_first_is_named(before: int, wrong: bytes, message: str) -> None:
    for more in [b"a a"], [b"\xff"], [b"b a"] * 70:
        with pytest.raises(FormatError, match=f"merge {before}: {message}"):
            from_bpe([b"a", b"aa"], [b"a a"] * before + [wrong, *more])


def test_merges_of_any_length() -> None:
    pieces = [b"a" * 2**i for i in range(14)]
    merges = [piece + b" " + piece for piece in pieces[:-1]]
    for doubled in merges * 20, [*reversed(merges)] * 20, [merge for merge in merges for _ in range(20)]:
        assert from_bpe(pieces, doubled).encode(b"a" * (2**14 - 1)) == [*range(13, -1, -1)]


def test_arguments_of_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="0 pieces, 0 types"):
        from_bpe([])
    with pytest.raises(ValueError, match="1 pieces, 2 types"):
        from_bpe([b"a"], (), [1, 1])
    with pytest.raises(TypeError, match="a piece is str"):
        from_bpe(["a"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a merge is tuple"):
        from_bpe([b"a"], [(b"a", b"a")])  # type: ignore[list-item]


@settings(deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=3) | st.sampled_from([b"a", b"b", b"ab", b"aba"]), min_size=1, max_size=8),
    merges=st.none() | st.lists(st.sampled_from([b"a b", b"ab a", b"a a", b"b  a", b"\xff", b"a \xff"]), max_size=4),
    types=st.lists(st.integers(1, 5), min_size=8, max_size=8),
    special=st.booleans(),
)
def test_random_tables_are_refused_or_harmless(
    pieces: list[bytes], merges: list[bytes] | None, types: list[int], special: bool
) -> None:
    try:
        ours = from_bpe(pieces, merges, types[: len(pieces)])
    except FormatError:
        return
    for text in b"abab", b"".join(pieces), b"\xff ba":
        try:
            tokens = ours.encode(text, special=special)
        except ValueError:
            continue
        assert all(0 <= token < len(pieces) for token in tokens)


def ranks(pieces: Sequence[bytes]) -> Iterator[bytes]:
    return (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"".join(ranks(SINGLES)), UnsupportedError, "256 tokens, expected 128000"),
        (b"IQ== 0\nIg== 2\n", FormatError, "line 2: expected a token in base64 and its rank, 1"),
        (b"IQ== 0\nIg==\n", FormatError, "line 2: expected"),
        (b"IQ== 0\nIg 1\n", FormatError, "line 2: expected"),
        (b"IQ== 0\n\n", FormatError, "line 2: expected"),
        (b"".join(ranks([*(b"%d" % i for i in range(127_999)), b"7"])), FormatError, "token 127999: an earlier token"),
    ],
)
def test_other_tiktoken_files_are_refused(tmp_path: Path, content: bytes, error: type, message: str) -> None:
    path = tmp_path / "some.model"
    path.write_bytes(content)
    with pytest.raises(error, match=rf"some\.model: .*{message}"):
        llama2c.load_tokenizer(path)


# ---- Time ----


def seconds(call: Callable[[], object]) -> float:
    """Of the processor: other programs do not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def assert_no_quadratic_growth(encode: Callable[[bytes], object], unit: bytes) -> None:
    """Eight times as much takes 64 times as long if it is quadratic; caches alone can make 8 times to 20."""
    small = unit * (60_000 // len(unit))
    ratios = []
    for _ in range(3):
        once = min(seconds(lambda: encode(small)) for _ in range(5))
        ratios.append(seconds(lambda: encode(small * 8)) / max(once, 1e-5))
        if ratios[-1] < 32:
            return
    pytest.fail(f"{len(small)} bytes and eight times as many: times as long {ratios}")


@pytest.mark.parametrize(
    "unit", ["a", "ab", "word another ", "日本", "=-", "🦙\x00", " ", "\n", "   \n", "1", "'", "<|"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_time_grows_about_linearly(data: Path, kind: str, unit: str) -> None:
    ours = llama3(data, kind)
    assert_no_quadratic_growth(lambda text: ours.encode(text, special=True), unit.encode())


@pytest.mark.parametrize("pre", [*PATTERNS, "smollm"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", " \n", "'", "1", "\xff"])
def test_runs_of_one_character(pre: str, unit: str) -> None:
    ours = from_bpe(SINGLES, None, pre=pre)
    assert_no_quadratic_growth(ours.encode, unit.encode("latin-1"))


def test_loading_takes_about_as_long_as_copying_the_table(data: Path) -> None:
    found = gguf_vocabulary(data)
    pieces, merges = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.merges"]
    copying = min(seconds(lambda: [bytes(bytearray(merge)) for merge in merges]) for _ in range(5))
    loading = min(seconds(lambda: from_bpe(pieces, merges, found["tokenizer.ggml.token_type"])) for _ in range(5))
    assert loading < 3 * copying  # about as long
