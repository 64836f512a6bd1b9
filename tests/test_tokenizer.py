"""The tokenizer against the sentencepiece library, and its readers against damaged files."""

import functools
import io
import random
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2c._core import FormatError, Tokenizer, UnsupportedError
from llama2c.formats.sentencepiece_model import TokenTable, read_sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
KINDS = ["bin", "model", "gguf"]

# ---- SentencePiece models made here ----


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One protobuf field; bool and int as varint."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def model_proto(
    pieces: Iterable[tuple[str, float, int]],
    *,
    trainer: dict[int, int | str] | None = None,
    normalizer: dict[int, int | str | bytes] | None = None,
    denormalizer: dict[int, bytes] | None = None,
) -> bytes:
    """A ModelProto: BPE, identity, spaces kept unless told otherwise; field numbers are the format's."""
    specs = (2, {3: 2} | (trainer or {})), (3, {4: 0} | (normalizer or {})), (5, denormalizer or {})
    return b"".join(
        field(1, field(1, piece) + field(2, score) + field(3, kind)) for piece, score, kind in pieces
    ) + b"".join(
        field(number, b"".join(field(inner, value) for inner, value in spec.items())) for number, spec in specs
    )


SPECIALS = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]


def library(proto: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def from_table(table: TokenTable) -> Tokenizer:
    return Tokenizer.from_table(
        table.pieces,
        table.scores,
        table.types,
        unk=table.unk,
        bos=table.bos,
        eos=table.eos,
        add_space_prefix=table.add_space_prefix,
    )


def from_proto(proto: bytes, folder: Path) -> Tokenizer:
    path = folder / "some.model"
    path.write_bytes(proto)
    return from_table(read_sentencepiece(path))


# ---- Llama 2's vocabulary ----


@functools.cache
def llama2(data: Path, kind: str) -> Tokenizer:
    if kind == "gguf":
        return Tokenizer.from_gguf(data / "tokenizers" / "ggml-vocab-llama-spm.gguf")
    path = data / "tokenizers" / "llama2" / f"tokenizer.{kind}"
    return Tokenizer.from_bin(path.read_bytes()) if kind == "bin" else from_table(read_sentencepiece(path))


@functools.cache
def llama2_library(data: Path) -> sentencepiece.SentencePieceProcessor:
    return library((data / "tokenizers" / "llama2" / "tokenizer.model").read_bytes())


@functools.cache
def tok512_bytes(data: Path) -> bytes:
    return (data / "models" / "tok512.bin").read_bytes()


def joined(tokenizer: Tokenizer, tokens: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, tokens))


WORDS = (
    "the of Once upon time, there was Lily's dog. don't \n \n\n \t \r\n 12 345 6.78 0x1F C++ url://a.b/c?d=e "
    "<s> </s> <unk> <0x0A> <0x20> <0xFF> ▁ ▁▁ naïve Straße ÅÄÖ Ελλάδα русский العربية עברית हिन्दी ภาษาไทย "
    "日本語 中文字符 한국어 ひらがな 🦙 👩\u200d👩\u200d👧 🇫🇷 ✅ e\u0301 a\u0308\u0323 ﬁ ½ ㎏ "
    "\u200b \u200d \u2028 \ufeff \u0000 \u007f"
).split(" ")


def random_text(rng: random.Random) -> str:
    def part() -> str:
        kind = rng.randrange(9)
        if kind < 4:
            return rng.choice(WORDS)
        if kind == 4:
            return " " * rng.randrange(20)
        if kind == 5:
            return "".join(chr(rng.randrange(128)) for _ in range(rng.randrange(8)))
        if kind == 6:
            return rng.choice("a.=-\n0é日") * rng.randrange(40)
        last = 0x2FFF if kind == 7 else 0x10FFFF
        points = (rng.randrange(last + 1) for _ in range(rng.randrange(6)))
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)

    glue = rng.choice(["", " "])
    return glue.join(part() for _ in range(rng.randrange(12)))


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_vectors(data: Path, kind: str) -> None:
    stem = data / "tokenizers" / "ggml-vocab-llama-spm.gguf"
    texts = Path(f"{stem}.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    lines = Path(f"{stem}.out").read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert llama2(data, kind).encode(text, bos=False) == [int(x) for x in line.split()], text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_random_texts_equal_sentencepiece(data: Path, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    texts = [random_text(rng) for _ in range(1200)]
    ours = llama2(data, kind)
    for text, expected in zip(texts, llama2_library(data).encode(texts), strict=True):
        tokens = ours.encode(text, bos=False)
        assert tokens == expected, (seed, text)
        # U+2581 is how SentencePiece writes a space; all else comes back.
        assert ours.decode(ours.encode(text)) == text.replace("▁", " "), (seed, text)


def test_real_text_equals_sentencepiece(data: Path) -> None:
    text = (data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert llama2(data, "bin").encode(text, bos=False) == llama2_library(data).encode(text)


def test_both_files_of_llama2_are_the_same_vocabulary(data: Path) -> None:
    ours, theirs = llama2(data, "bin"), llama2(data, "model")
    assert len(ours) == len(theirs) == 32000
    assert (ours.unk, ours.bos, ours.eos) == (theirs.unk, theirs.bos, theirs.eos) == (0, 1, 2)
    for token in range(len(ours)):
        if token not in (1, 2):  # llama2.c writes "\n<s>\n"
            assert ours.piece(token) == theirs.piece(token)
        assert ours.token_bytes(token) == theirs.token_bytes(token)
        assert ours.find(ours.piece(token)[0]) == token
    assert [ours.piece(token)[::2] for token in (1, 2, 3)] == [
        (b"\n<s>\n", CONTROL),
        (b"\n</s>\n", CONTROL),
        (b"<0x00>", BYTE),
    ]
    assert [ours.token_bytes(token) for token in (1, 2, 3, 258)] == [b"", b"", b"\x00", b"\xff"]
    assert ours.find(b"no such piece") == ours.find(b"") == -1


def test_bos_and_eos_are_asked_for(data: Path) -> None:
    ours = llama2(data, "bin")
    assert ours.encode("") == [1]
    assert ours.encode("", bos=False) == []
    assert ours.encode(" a", eos=True) == [1, 29871, 263, 2]


# ---- tok512.bin: there is no tokenizer.model of it, so one is made ----


def parse_bin(data: bytes) -> list[tuple[float, bytes]]:
    records, at = [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        records.append((score, data[at + 8 : at + 8 + length]))
        at += 8 + length
    return records


def write_bin(records: Iterable[tuple[float, bytes]], *, header: int | None = None) -> bytes:
    records = list(records)
    longest = max((len(piece) for _, piece in records), default=0) if header is None else header
    return struct.pack("<i", longest) + b"".join(
        struct.pack("<fi", score, len(piece)) + piece for score, piece in records
    )


def test_tok512_equals_sentencepiece(data: Path) -> None:
    pieces = SPECIALS + BYTES
    for score, piece in parse_bin(tok512_bytes(data))[259:]:
        pieces = [*pieces, (piece.decode().replace(" ", "▁"), score, NORMAL)]
    theirs = library(model_proto(pieces, trainer={35: 1}))
    ours = Tokenizer.from_bin(tok512_bytes(data))
    rng = random.Random(512)
    for _ in range(1000):
        text = random_text(rng)
        assert ours.encode(text, bos=False) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text.replace("▁", " "), text


@settings(max_examples=500, deadline=None)
@given(text=st.binary() | st.text().map(str.encode))
def test_any_bytes_come_back(data: Path, text: bytes) -> None:
    for ours in llama2(data, "bin"), Tokenizer.from_bin(tok512_bytes(data)):
        tokens = ours.encode(text, bos=False)
        space = b" " if text else b""
        assert joined(ours, tokens) == space + text.replace("▁".encode(), b" ")


def test_broken_utf8_becomes_byte_tokens(data: Path) -> None:
    ours = llama2(data, "bin")
    assert ours.encode(b"a\xff\xc3", bos=False) == [263, 3 + 0xFF, 3 + 0xC3]
    assert ours.encode(b"\xc0\xaf\xed\xa0\x80", bos=False)[1:] == [3 + byte for byte in b"\xc0\xaf\xed\xa0\x80"]


# ---- Other vocabularies ----


def test_trained_model_without_bytes_equals_sentencepiece(tmp_path: Path) -> None:
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefgé", k=rng.randint(1, 7))) for _ in range(150)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(rng.choices(words, k=12)) for _ in range(500)),
        model_writer=model,
        model_type="bpe",
        vocab_size=320,
        user_defined_symbols=["<sep>", "<sep><sep>", "ab", "abc", "x▁y", "日"],
        control_symbols=["#", "<ctl>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    theirs = library(model.getvalue())
    ours = from_proto(model.getvalue(), tmp_path)
    assert {kind for _, _, kind in map(ours.piece, range(len(ours)))} == {1, 2, 3, 4}
    parts = [*words, "<sep>", "<sep", ">", "ab", "c", "x y", "日本", "#", "<ctl>", "<s>", " ", "?", ""]
    for _ in range(3000):
        text = rng.choice(["", " "]).join(rng.choices(parts, k=rng.randrange(9)))
        assert ours.encode(text, bos=False) == theirs.encode(text), text


@pytest.mark.parametrize("seed", range(4))
def test_random_vocabularies_equal_sentencepiece(tmp_path: Path, seed: int) -> None:
    """Ties, unused and user-defined pieces, overlaps, with and without byte tokens and prefix."""
    rng = random.Random(seed)
    for trial in range(100):
        # Without a piece for the space the library writes one as the bytes of U+2581, which do
        # not come back as a space; here it is <0x20>. So there always is one.
        alphabet = "▁" + "".join(rng.sample("abcé🦙<", rng.randint(0, 6)))
        scores = [-float(rng.randrange(rng.choice([1, 4, 1000]))) for _ in range(60)]
        kinds = [NORMAL] * rng.choice([1, 6]) + [UNUSED] * rng.randrange(4) + [USER_DEFINED]
        texts = {"".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(60)}
        pieces = [
            *(alphabet[: rng.randint(1, 7)] if rng.random() < 0.5 else alphabet),
            *sorted(text for text in texts if len(text) > 1),
        ]
        byte_fallback = rng.randrange(2)
        table = SPECIALS + BYTES * byte_fallback
        table += [
            (piece, score, rng.choice(kinds if len(piece) > 1 else [NORMAL, NORMAL, NORMAL, USER_DEFINED]))
            for piece, score in zip(pieces, scores, strict=False)
        ]
        prefix = rng.randrange(2)
        proto = model_proto(table, trainer={35: byte_fallback}, normalizer={3: prefix})
        theirs, ours = library(proto), from_proto(proto, tmp_path)
        for _ in range(40):
            text = "".join(rng.choices(alphabet + " x", k=rng.randrange(30)))
            assert ours.encode(text, bos=False) == theirs.encode(text), (seed, trial, text)


def test_an_unused_character_is_unknown() -> None:
    """As in sentencepiece 0.2.3; up to 0.2.1 it gave the unused id."""
    ours = simple([b"?", b"a", b"b", b"ab"], None, [UNKNOWN, NORMAL, UNUSED, UNUSED], unk=0)
    assert ours.encode("abba", bos=False) == [1, 0, 1]


def test_only_a_space_that_was_added_is_taken_off() -> None:
    pieces = [b" a", b"b"]
    for prefix in (False, True):
        ours = Tokenizer.from_table(pieces, [0.0] * 2, [NORMAL] * 2, unk=-1, bos=-1, eos=-1, add_space_prefix=prefix)
        assert ours.add_space_prefix is prefix
        assert ours.decode([0, 1]) == ("ab" if prefix else " ab")


def test_no_tokenizer_without_a_vocabulary() -> None:
    with pytest.raises(TypeError, match="from_bin"):
        Tokenizer.__new__(Tokenizer)
    with pytest.raises(TypeError, match="from_bin"):
        Tokenizer()


def simple(
    pieces: Sequence[bytes],
    scores: Sequence[float] | None = None,
    types: Sequence[int] | None = None,
    *,
    unk: int = -1,
    bos: int = -1,
    eos: int = -1,
) -> Tokenizer:
    return Tokenizer.from_table(
        pieces,
        scores or [0.0] * len(pieces),
        types or [NORMAL] * len(pieces),
        unk=unk,
        bos=bos,
        eos=eos,
        add_space_prefix=False,
    )


def test_of_equal_pieces_the_first_counts_and_empty_ones_never() -> None:
    ours = simple([b"", b"a", b"a", b"", b"b", b"ab", b"ab"])
    assert ours.encode("aab", bos=False) == [1, 5]
    assert ours.find(b"a") == 1
    assert ours.piece(2) == (b"a", 0.0, NORMAL)
    assert joined(ours, range(7)) == b"aabab" + b"ab"


def test_without_bytes_and_unk_a_strange_character_is_refused() -> None:
    ours = simple([b"a"])
    assert ours.encode("aa", bos=False) == [0, 0]
    with pytest.raises(ValueError, match="0xC3"):
        ours.encode("aé", bos=False)


def test_an_incomplete_set_of_byte_tokens_is_not_used() -> None:
    ours = simple([b"?", b"a", b"<0x62>"], None, [UNKNOWN, NORMAL, BYTE], unk=0)
    assert ours.encode("abba<0x62>", bos=False) == [1, 0, 1, 0]
    assert ours.token_bytes(2) == b"b"


def test_pieces_may_be_any_bytes_and_scores_infinite() -> None:
    ours = simple([b"\xff", b"\x00", b"\xff\x00", b"\x00\xff"], [0, 0, float("-inf"), float("inf")])
    assert ours.encode(b"\xff\x00\xff", bos=False) == [0, 3]
    assert ours.encode(b"\xff\x00", bos=False) == [2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pieces": [], "scores": [], "types": []}, "0 pieces"),
        ({"scores": [0.0, float("nan"), 0.0]}, "token 1.*not a number"),
        ({"types": [1, 0, 1]}, "token 1.*type"),
        ({"types": [1, 7, 1]}, "token 1.*type"),
        ({"types": [1, BYTE, 1]}, "token 1.*<0x00>"),
        ({"unk": 3}, "unk"),
        ({"bos": -2}, "bos"),
        ({"eos": 1 << 30}, "eos"),
        ({"scores": [0.0]}, None),
    ],
)
def test_bad_tables_are_refused(change: dict[str, object], message: str | None) -> None:
    table: dict[str, object] = {
        "pieces": [b"a", b"<0x0a>", b"c"],
        "scores": [0.0, 0.0, 0.0],
        "types": [1, 1, 1],
        "unk": -1,
        "bos": -1,
        "eos": -1,
    }
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_table(**(table | change))  # type: ignore[arg-type]


# ---- Damaged and foreign files ----


def check_works(tokenizer: Tokenizer) -> None:
    try:
        tokens = tokenizer.encode("Once upon a time <s> 🦙")
    except ValueError:  # no token for some character
        return
    assert all(-1 <= token < len(tokenizer) for token in tokens)
    for token in range(len(tokenizer)):
        piece, score, kind = tokenizer.piece(token)
        assert score == score and 1 <= kind <= 6 and len(tokenizer.token_bytes(token)) <= len(piece)


def test_truncated_bin_is_refused_unless_cut_between_tokens(data: Path) -> None:
    whole = tok512_bytes(data)
    ends, at = {}, 4
    for count, (_, piece) in enumerate(parse_bin(whole), 1):
        at += 8 + len(piece)
        ends[at] = count
    for size in [*range(4096), *random.Random(1).choices(range(4096, len(whole)), k=500)]:
        if size in ends:
            tokenizer = Tokenizer.from_bin(whole[:size])
            assert len(tokenizer) == ends[size]
            check_works(tokenizer)
        else:
            with pytest.raises(FormatError, match=r"offset \d+: expected .*the file"):
                Tokenizer.from_bin(whole[:size])


def test_flipped_bits_are_refused_or_harmless(data: Path) -> None:
    whole = tok512_bytes(data)
    bits = [*range(8 * 64), *random.Random(2).choices(range(8 * 64, 8 * len(whole)), k=1500)]
    for bit in bits:
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        try:
            check_works(Tokenizer.from_bin(bytes(broken)))
        except FormatError:
            pass


@settings(deadline=None)
@given(st.binary(max_size=80) | st.lists(st.sampled_from([b"\0", b"\1", b"\xff"])).map(b"".join))
def test_random_bytes_are_refused_or_harmless(junk: bytes) -> None:
    for content in junk, struct.pack("<i", 4) + junk:
        try:
            check_works(Tokenizer.from_bin(content))
        except FormatError:
            pass


@pytest.mark.parametrize("length", [-1, -(1 << 31), 8, 1 << 20, (1 << 31) - 1])
def test_absurd_lengths_are_refused(length: int) -> None:
    content = struct.pack("<ifi", 7, 0.0, length) + b"abcdefg"
    with pytest.raises(FormatError, match=rf"offset 8: the length of token 0 is {length},"):
        Tokenizer.from_bin(content)
    with pytest.raises(FormatError, match=r"offset 0: max_token_length"):
        Tokenizer.from_bin(struct.pack("<ifi", -5, 0.0, 1) + b"a")


def test_bin_with_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(FormatError, match=r"offset 13: the score of token 1"):
        Tokenizer.from_bin(write_bin([(0.0, b"a"), (float("nan"), b"b")]))


def test_older_layouts_of_llama2c_are_refused_by_name(data: Path) -> None:
    records = parse_bin(tok512_bytes(data))
    # llama2.c of July 2023 had characters, not byte tokens, at ids 3 to 258.
    characters = [
        (score, chr(index - 3).encode() if 3 <= index < 259 else piece) for index, (score, piece) in enumerate(records)
    ]
    without_scores = b"".join(struct.pack("<i", len(piece)) + piece for _, piece in characters)
    cases = [
        (without_scores, "no scores"),
        (write_bin(records)[4:], "without max_token_length"),
        (without_scores[:1000], "no scores"),
        (write_bin(characters), "characters in place of the byte tokens"),
    ]
    for content, message in cases:
        with pytest.raises(UnsupportedError, match=f"{message}.*export it again"):
            Tokenizer.from_bin(content)


def test_a_vocabulary_that_is_not_llama2s_has_no_specials() -> None:
    ours = Tokenizer.from_bin(write_bin([(0.0, b" "), (0.0, b"<0x41>"), (0.0, b"<")]))
    assert (ours.unk, ours.bos, ours.eos) == (-1, -1, -1)
    assert {ours.piece(token)[2] for token in range(3)} == {NORMAL}
    assert ours.token_bytes(1) == b"<0x41>"


SMALL = [*SPECIALS, ("▁", -1.0, NORMAL), ("a", -2.0, NORMAL), ("▁a", 0.0, NORMAL)]


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model_proto(SMALL, trainer={3: 1}), "trainer_spec.model_type is UNIGRAM, expected BPE"),
        (model_proto(SMALL, trainer={3: 3}), "trainer_spec.model_type is WORD, expected BPE"),
        (model_proto(SMALL, trainer={3: 4}), "trainer_spec.model_type is CHAR, expected BPE"),
        (model_proto(SMALL, trainer={24: 1}), "treat_whitespace_as_suffix is true"),
        (model_proto(SMALL, normalizer={1: "nmt_nfkc", 2: b"x"}), "charsmap is the rule 'nmt_nfkc'"),
        (model_proto(SMALL, denormalizer={2: b"x"}), "denormalizer_spec.precompiled_charsmap"),
        (model_proto(SMALL, normalizer={4: 1}), "remove_extra_whitespaces is true"),
        (model_proto(SMALL, normalizer={5: 0}), "escape_whitespaces is false"),
        (model_proto(SMALL, trainer={35: 1}), "0 byte pieces, expected 256"),
        (model_proto([*SMALL, *BYTES]), "256 byte pieces, expected 0"),
        (model_proto(SMALL[1:]), "0 pieces of type UNKNOWN"),
        (model_proto([]), "0 pieces of type UNKNOWN"),
        (model_proto([*SMALL, ("a", 0.0, NORMAL)]), r"pieces\[6\].piece is b'a', which pieces\[4\]"),
        (model_proto([*SMALL, ("a b", 0.0, USER_DEFINED)]), r"pieces\[6\].*expected U\+2581"),
        (model_proto([*SMALL, ("", 0.0, NORMAL)]), r"pieces\[6\].piece is empty"),
        (model_proto([*SMALL, ("b", 0.0, 9)]), r"pieces\[6\].type is 9"),
        (b"".join(field(1, field(1, piece)) for piece in "ab"), "model_type is UNIGRAM"),
        (b"", "model_type is UNIGRAM"),
        (b"{}", "offset 0: expected a protobuf field"),
        (field(1, 5), "offset 0: field 1 is a number"),
        (b"\xff" * 20, "offset 10: expected the end of a number"),
    ],
)
def test_unsuitable_models_are_refused(tmp_path: Path, proto: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=rf"some\.model: .*{message}"):
        from_proto(proto, tmp_path)


def test_model_settings_are_read(tmp_path: Path) -> None:
    assert from_proto(model_proto(SMALL), tmp_path).encode("a", bos=False) == [5]
    bare = from_proto(model_proto(SMALL, normalizer={3: 0}), tmp_path)
    assert bare.encode("a", bos=False) == [4]
    named = model_proto([*SMALL, ("BOS", 0.0, CONTROL)], trainer={46: "BOS", 47: "a"})
    assert (from_proto(named, tmp_path).bos, from_proto(named, tmp_path).eos) == (6, -1)


def test_a_model_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sentencepiece(tmp_path / "none.model")


def test_damaged_models_are_refused_or_harmless(tmp_path: Path) -> None:
    proto = model_proto(SMALL, trainer={46: "<s>", 35: 0})
    path = tmp_path / "damaged.model"
    flips = (
        proto[:at] + bytes([proto[at] ^ 1 << bit]) + proto[at + 1 :] for at in range(len(proto)) for bit in range(8)
    )
    for content in [*(proto[:size] for size in range(len(proto))), *flips]:
        path.write_bytes(content)
        try:
            check_works(from_table(read_sentencepiece(path)))
        except FormatError:
            pass


# ---- Time ----


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("unit", ["a", "ab", "word another ", "日本", "=-", "🦙\x00", "   \n"])
def test_time_grows_about_linearly(data: Path, unit: str) -> None:
    ours = llama2(data, "bin")
    text = (unit * (500_000 // len(unit))).encode()
    once = twice = float("inf")
    for _ in range(20):  # other work on the machine only ever adds time
        once = min(once, seconds(lambda: ours.encode(text)))
        twice = min(twice, seconds(lambda: ours.encode(text * 2)))
        if twice < 3.5 * once:
            return
    pytest.fail(f"{len(text)} bytes take {once:.3f} s, twice as many {twice:.3f} s")


@pytest.mark.parametrize("text", ["a" * 100_000, "ab" * 50_000, "a" * 65_536 + "b", " " * 99_999])
def test_long_runs_equal_sentencepiece(data: Path, text: str) -> None:
    assert llama2(data, "bin").encode(text, bos=False) == llama2_library(data).encode(text)


def test_a_text_may_become_one_piece() -> None:
    """Every merge that can be made is made, and the longest piece covers the text."""
    ours = simple([b"a" * (1 << power) for power in range(18)])
    assert ours.encode("a" * (1 << 17), bos=False) == [17]
    assert ours.encode("a" * ((1 << 17) - 1), bos=False) == list(range(16, -1, -1))


def test_a_vocabulary_of_128k_loads_at_once() -> None:
    rng = random.Random(128)
    pieces = {rng.randbytes(rng.randint(1, 12)) for _ in range(128_256)}
    content = write_bin((-float(rank), piece) for rank, piece in enumerate(pieces))
    assert min(seconds(lambda: Tokenizer.from_bin(content)) for _ in range(3)) < 1.0  # about 0.02
    assert len(Tokenizer.from_bin(content)) == len(pieces)
