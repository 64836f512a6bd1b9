"""Vocabularies against the sentencepiece library: exact, the same from any threads."""

import gzip
import re

import pytest
import sentencepiece
from corpus import SIZE
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llama2c
from llama2c import FormatError
from llama2c.formats.sentencepiece_model import read_sentencepiece
from llama2c.training.vocabulary import LONGEST, sentences_of, train_vocabulary


def check_exact(both, text: str) -> None:
    ours, library = both
    tokens = ours.encode(text, bos=False, eos=False)
    assert tokens == library.encode(text)
    assert ours.decode(tokens) == text


@settings(deadline=None, max_examples=200)
@given(
    text=st.lists(st.sampled_from(["la", "mo", "né", " ", "\n", "\t", "\r\n", "20", "кот", "日", "🦙", "\x00"])).map(
        "".join
    )
)
@example(text="\n")
@example(text="  la\n\n  mo  ")
def test_vocabulary_is_encoded_as_by_the_library(both, text):
    check_exact(both, text)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back(both, text):
    check_exact(both, text)


def test_vocabulary_is_of_llamas_kind(both):
    ours, _ = both
    assert len(ours) == SIZE
    assert (ours.unk, ours.bos, ours.eos) == (0, 1, 2)
    assert ours.add_space_prefix
    assert ours.encode("\n", bos=False)[-1] == ours.find(b"<0x0A>") == 3 + 10
    pieces = [ours.piece(token)[0] for token in range(3 + 256, SIZE)]
    assert b"    " in pieces  # a run of spaces
    assert not [piece for piece in pieces if b"\n" in piece or re.search(rb"\d.|.\d", piece)]  # digits stand alone


def test_vocabulary_of_a_real_text(data_file, tmp_path):
    source = data_file("text/tinyshakespeare.txt")
    train_vocabulary([source], tmp_path / "tok.model", 1024)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tok.model"))
    check_exact((llama2c.load_tokenizer(tmp_path / "tok.model"), library), source.read_bytes().decode())


def test_vocabulary_does_not_depend_on_threads_or_form(tmp_path, collection):
    folder, texts = collection
    (tmp_path / "all.txt").write_bytes("\n".join(texts).encode())
    out = tmp_path / "o.model"
    tables, files = [], []
    for source, options in (folder, {"threads": 1}), (folder, {}), (tmp_path / "all.txt", {"max_sentences": None}):
        train_vocabulary([source], out, 300, overwrite=True, **options)
        tables.append(read_sentencepiece(out))
        files.append(out.read_bytes())
    assert tables[0] == tables[1] == tables[2]
    assert files[1] == files[2]


def test_vocabulary_of_a_sample(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(f"line{'abcdefghij'[i % 10]} word" for i in range(1000)))
    models = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(models)}.model"
        result = train_vocabulary([tmp_path / "t.txt"], out, 270, max_sentences=7, seed=seed, coverage=0.98)
        assert (result.sentences, result.of_sentences) == (7, 1000)
        models.append(out.read_bytes())
    assert models[0] == models[1] != models[2]


def test_size_must_suit_the_text(tmp_path, capfd):
    (tmp_path / "t.txt").write_text("abc abd abc\n" * 5)
    inputs, out = [tmp_path / "t.txt"], tmp_path / "o.model"
    with pytest.raises(
        ValueError, match=r"of 262 is too small for this text: it needs 264, 259 for .* and 5 for the char"
    ):
        train_vocabulary(inputs, out, 262)
    with pytest.raises(ValueError, match=r"of 5000 is too large .* it has words for \d+ tokens at most") as large:
        train_vocabulary(inputs, out, 5000)
    assert not out.exists()
    most = int(re.search(r"for (\d+) tokens", str(large.value))[1])
    train_vocabulary(inputs, out, most)
    assert len(llama2c.load_tokenizer(out)) == most
    with pytest.raises(ValueError, match="too large"):
        train_vocabulary(inputs, tmp_path / "p.model", most + 1)
    train_vocabulary(inputs, tmp_path / "least.model", 264)
    with pytest.raises(FileExistsError):
        train_vocabulary(inputs, out, 264)
    train_vocabulary(inputs, out, 264, overwrite=True)
    assert out.read_bytes() == (tmp_path / "least.model").read_bytes()
    assert capfd.readouterr() == ("", "")


def test_vocabulary_names_what_it_cannot_read(tmp_path):
    out = tmp_path / "o.model"
    (tmp_path / "empty.jsonl").write_text('\n{"story": ""}\n5\n')
    with pytest.raises(ValueError, match=r"no text to learn from in 1 file; 2 bad records, .*empty.jsonl:2: no text"):
        train_vocabulary([tmp_path / "empty.jsonl"], out, 300)
    (tmp_path / "a.txt").write_text("a text that can be read")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"text")[:-3])
    for most in (10, None):
        with pytest.raises(FormatError, match=r"b.txt.gz: broken gzip file"):
            train_vocabulary([tmp_path / "a.txt", tmp_path / "b.txt.gz"], out, 300, max_sentences=most)
    with pytest.raises(ValueError, match=r"coverage is 0\.5"):
        train_vocabulary([tmp_path / "a.txt"], out, 300, coverage=0.5)
    for options in ({"size": 0}, {"size": 300, "max_sentences": 0}, {"size": 300, "threads": 0}):
        with pytest.raises(ValueError, match="is 0, expected at least 1"):
            train_vocabulary([tmp_path / "a.txt"], out, **options)
    assert not list(tmp_path.glob("o.model*"))


def test_long_lines_are_learnt_from(tmp_path):
    text = "日本語" * 5000 + "\n" + "word " * 5000
    sentences = list(sentences_of(text + "\n\n"))
    assert max(map(len, sentences)) == LONGEST
    first = -(-15000 // LONGEST)
    assert "".join(sentences[:first]) + "\n" + " ".join(sentences[first:]) == text
    (tmp_path / "t.txt").write_bytes(text.encode())
    train_vocabulary([tmp_path / "t.txt"], tmp_path / "o.model", 280)
    tokenizer = llama2c.load_tokenizer(tmp_path / "o.model")
    assert tokenizer.find("日本語".encode()) > 0
    assert tokenizer.find(b" word") > 0
