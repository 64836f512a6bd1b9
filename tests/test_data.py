"""`llama2c data`: vocabularies against the sentencepiece library, datasets whole, exact, the same from any workers."""

import gzip
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
import types
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

import llama2c
from llama2c import FormatError
from llama2c.cli import main
from llama2c.formats.sentencepiece_model import read_sentencepiece
from llama2c.training.documents import input_files, read_documents
from llama2c.training.download import download_tinystories, extract_json
from llama2c.training.jobs import passages
from llama2c.training.shards import MANIFEST, open_dataset, save_shard
from llama2c.training.tokenizing import tokenize
from llama2c.training.vocabulary import LONGEST, sentences_of, train_vocabulary

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
SIZE = 600


def words(rng: np.random.Generator, count: int) -> str:
    """Text with all that vocabularies treat apart: runs of spaces, newlines, digits, other scripts."""
    syllables = ["la", "mo", "ti", "ra", "né", "кот", "日本", "x", "'s", "12", "2024"]
    spaces = [" "] * 12 + ["  ", "\n", "\n\n", "    ", "\t"]
    return "".join(
        "".join(rng.choice(syllables, rng.integers(1, 4))) + str(rng.choice(spaces)) for _ in range(count)
    ).strip()


@pytest.fixture(scope="module")
def fixed() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def model(tmp_path_factory, fixed) -> Path:
    """A vocabulary of a generated text."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text.txt").write_text(words(fixed, 4000), encoding="utf-8")
    train_vocabulary([folder / "text.txt"], folder / "small.model", SIZE)
    return folder / "small.model"


@pytest.fixture(scope="module")
def both(model) -> tuple[llama2c.Tokenizer, sentencepiece.SentencePieceProcessor]:
    """The tokenizer as llama2c reads it, and the library's."""
    return llama2c.load_tokenizer(model), sentencepiece.SentencePieceProcessor(model_file=str(model))


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def stories(rng: np.random.Generator, count: int) -> list[str]:
    return [words(rng, int(rng.integers(1, 60))) for _ in range(count)]


@pytest.fixture
def collection(tmp_path, fixed) -> tuple[Path, list[str]]:
    """Five files of stories in the forms that there are, and the stories in order."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    texts = stories(fixed, 24)
    records = [{"story": text} for text in texts]
    (folder / "a.json").write_text(json.dumps(records[:7]))
    (folder / "b.jsonl").write_text(jsonl(*records[7:12]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(*records[12:16]).encode()))
    (folder / "d.txt").write_bytes(texts[16].encode())
    (folder / "more" / "e.json").write_text(json.dumps(records[17:], ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "notes.md").write_text("not taken")
    return folder, texts


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokens_of(dataset, split: str) -> list[int]:
    return [int(token) for shard in dataset.splits[split] for token in shard]


def encoded(model: Path, texts: list[str], *, eos: bool = False) -> list[int]:
    tokenizer = llama2c.load_tokenizer(model)
    return [token for text in texts for token in tokenizer.encode(text, bos=True, eos=eos)]


# ---- vocabularies ----


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


# ---- documents ----


def read(path: Path, **options) -> tuple[list[str], list[str]]:
    bad = []
    documents = list(read_documents(path, bad=bad.append, **options))
    return documents, [str(record).removeprefix(f"{path}:") for record in bad]


def test_documents_of_every_form(collection):
    folder, texts = collection
    files = input_files([folder / "b.jsonl", folder])
    assert [file.name for file in files] == ["b.jsonl", "a.json", "c.jsonl.gz", "d.txt", "e.json"]
    files.sort()
    assert [document for file in files for document in read(file)[0]] == texts
    assert not [record for file in files for record in read(file)[1]]


def test_text_is_kept_as_it_is(tmp_path):
    for name, data in ("t.txt", b"\xef\xbb\xbf a\r\n\tb \r"), ("t.raw", b'{"story": 1}'):
        (tmp_path / name).write_bytes(data)
        assert read(tmp_path / name) == ([data.decode()], [])
    assert read(tmp_path / "t.txt", strip=True) == (["\ufeff a\r\n\tb"], [])


def test_bad_records_are_named(tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [
        b'{"story": "one"}',
        b"",
        b'{"story": "broken',
        b'["story"]',
        b'{"tale": "x"}',
        b'{"story": 5}',
        b'{"story": "\xff"}',
        b'{"story": "\\ud83d"}',
        b'{"story": ""}',
        b'{"story": null, "text": "no second choice"}',
        b'{"text": "two"}',
        b"[" * 200_000,
    ]
    path.write_bytes(b"\r\n".join(lines))
    documents, bad = read(path)
    assert documents == ["one", "two"]
    assert [record.partition(":")[0] for record in bad] == ["3", "4", "5", "6", "7", "8", "9", "10", "12"]
    reasons = [record.partition(": ")[2] for record in bad]
    assert reasons[0].startswith("not JSON: ")
    assert reasons[1:8] == [
        "expected an object, got a list",
        'no key "story" or "text"',
        "story: expected a string, got a number",
        "invalid UTF-8",
        "invalid UTF-8",
        "no text",
        "story: expected a string, got null",
    ]
    assert reasons[8].startswith("not JSON: ")
    assert read(path, key="tale")[0] == ["x"]
    assert 'no key "tale"' in read(path, key="tale")[1][0]


@pytest.mark.parametrize(
    ("text", "documents", "bad"),
    [
        ("[]", [], []),
        ("\ufeff \n[ \n]\n", [], []),
        ('[{"text": "a"},\n {"text": 1},\n {"text": "b"}]', ["a", "b"], ["2: text: expected a string, got a number"]),
        (
            '[{"text": "a"},\n {"text" "b"},{"text": "c"}]',
            ["a"],
            ["2: not JSON: Expecting ':' delimiter; .* no further"],
        ),
        ('[{"text": "a"}\n {"text": "b"}]', ["a"], ["2: not JSON: expected a comma .*; the file is read no further"]),
        ('[{"text": "a"}', ["a"], ["1: not JSON: expected a comma or the list's end; the file is read no further"]),
        ('[{"text": "a"},', ["a"], ["1: not JSON: Expecting value; the file is read no further"]),
        ('[{"text": "a"}]\n{"text": "b"}', ["a"], ["2: not JSON: text after the list"]),
    ],
)
def test_lists_that_break_off(tmp_path, text, documents, bad):
    (tmp_path / "t.json").write_text(text, encoding="utf-8")
    found, records = read(tmp_path / "t.json")
    assert found == documents
    assert len(records) == len(bad)
    for record, pattern in zip(records, bad, strict=True):
        assert re.fullmatch(pattern, record)


def test_text_files_that_are_none(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"one\ntwo\xff\nthree")
    assert read(tmp_path / "t.txt") == ([], ["2: invalid UTF-8"])
    (tmp_path / "e.txt").write_bytes(b"")
    assert read(tmp_path / "e.txt") == ([], ["1: no text"])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"none: no file in it is \*\.txt, \*\.json"):
        input_files([tmp_path / "none"])
    with pytest.raises(FileNotFoundError):
        input_files([tmp_path / "t.txt", tmp_path / "missing.txt"])


# ---- datasets ----


def test_documents_follow_each_other(tmp_path, collection, model):
    folder, texts = collection
    for eos in (False, True):
        result = tokenize([folder], tmp_path / f"{eos}", tokenizer=model, eos=eos, workers=1)
        dataset = open_dataset(tmp_path / f"{eos}", check=True)
        assert dataset == result.dataset
        assert (result.made, result.kept) == (5, 0)
        assert tokens_of(dataset, "train") == encoded(model, texts, eos=eos)
        assert dataset.tokens("train") == len(tokens_of(dataset, "train"))
        assert dataset.documents("train") == len(texts)
        assert dataset.characters("train") == sum(map(len, texts))
        assert dataset.splits["validation"] == ()
        assert dataset.tokens("validation") == 0
        assert dataset.vocab_size == SIZE
        assert all(shard.dtype == np.uint16 and isinstance(shard, np.memmap) for shard in dataset.splits["train"])
        assert Path(dataset.tokenizer_path).read_bytes() == model.read_bytes()
        assert dataset.manifest.eos == eos
    with pytest.raises(KeyError, match="no split 'test'"):
        dataset.tokens("test")


@pytest.mark.parametrize("options", [{"validation": 0.3}, {"shard_tokens": 100}])
def test_any_number_of_workers_gives_the_same(tmp_path, collection, model, options):
    folder, _ = collection
    for workers in (1, 3):
        tokenize([folder], tmp_path / f"{workers}", tokenizer=model, workers=workers, **options)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_shards_of_so_many_tokens(tmp_path, collection, model):
    folder, texts = collection
    dataset = tokenize([folder], tmp_path / "d", tokenizer=model, shard_tokens=100, workers=1).dataset
    assert tokens_of(dataset, "train") == encoded(model, texts)
    sources = [shard.source for shard in dataset.manifest.shards]
    for shard, source, after in zip(dataset.manifest.shards, sources, [*sources[1:], None], strict=True):
        assert shard.tokens >= 100 or source != after  # none is cut before, but at its file's end
    tokenizer = llama2c.load_tokenizer(model)
    assert all(shard[0] == tokenizer.bos for shard in dataset.splits["train"])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_validation_takes_the_last_documents(tmp_path, collection, model, fraction):
    folder, texts = collection
    dataset = tokenize([folder], tmp_path / "d", tokenizer=model, validation=fraction, workers=1).dataset
    train = int(len(texts) * (1 - fraction))
    assert tokens_of(dataset, "train") == encoded(model, texts[:train])
    assert tokens_of(dataset, "validation") == encoded(model, texts[train:])
    assert dataset.documents("validation") == len(texts) - train


def test_validation_of_one_document_takes_its_last_characters(tmp_path, model, fixed):
    text = words(fixed, 500)
    (tmp_path / "t.txt").write_bytes(text.encode())
    dataset = tokenize([tmp_path / "t.txt"], tmp_path / "d", tokenizer=model, validation=0.1).dataset
    at = int(len(text) * 0.9)
    assert tokens_of(dataset, "train") == encoded(model, [text[:at]])
    assert tokens_of(dataset, "validation") == encoded(model, [text[at:]])
    assert (dataset.characters("train"), dataset.characters("validation")) == (at, len(text) - at)


def test_a_real_text(data_file, tmp_path, model):
    source = data_file("text/tinyshakespeare.txt")
    text = source.read_bytes().decode()
    dataset = tokenize([source], tmp_path / "d", tokenizer=model, validation=0.1).dataset
    tokenizer = llama2c.load_tokenizer(dataset.tokenizer_path)
    halves = [tokenizer.decode(tokens_of(dataset, split)) for split in ("train", "validation")]
    assert halves == [text[:1_003_854], text[1_003_854:]]


def test_passages_begin_behind_blank_lines(tmp_path, model, fixed):
    text = "".join(words(fixed, 8) + "\n" * int(fixed.integers(1, 5)) for _ in range(200)) + "la"
    parts = list(passages(text, 100))
    assert "".join(parts) == text and len(parts) > 20
    for part in parts[:-1]:
        assert part.endswith("\n\n") and len(part) >= 100 and "\n\n" not in part[100:].rstrip("\n")
    assert list(passages(text, None)) == [text] == list(passages(text, len(text))) and list(passages("", 5)) == []
    (tmp_path / "text.txt").write_text(text)
    dataset = tokenize([tmp_path / "text.txt"], tmp_path / "out", tokenizer=model, passage=100).dataset
    assert tokens_of(dataset, "train") == encoded(model, parts)
    assert dataset.documents("train") == len(parts) and dataset.characters("train") == len(text)


def test_validation_inputs_are_taken_out(tmp_path, collection, model):
    folder, texts = collection
    held_out = [folder / "a.json", folder / "more"]
    dataset = tokenize([folder], tmp_path / "d", tokenizer=model, validation_inputs=held_out).dataset
    assert tokens_of(dataset, "train") == encoded(model, texts[7:17])
    assert tokens_of(dataset, "validation") == encoded(model, texts[:7] + texts[17:])
    with pytest.raises(ValueError, match="nothing to train on"):
        tokenize(held_out, tmp_path / "e", tokenizer=model, validation_inputs=[folder])


def test_vocabularies_beyond_16_bits(tmp_path, model):
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256)), b" "]
    pieces += [b"n%d" % number for number in range(66_000)]
    table = b"".join(struct.pack("<fi", -index, len(piece)) + piece for index, piece in enumerate(pieces))
    (tmp_path / "large.bin").write_bytes(struct.pack("<i", 16) + table)
    (tmp_path / "t.txt").write_text("n65999")
    dataset = tokenize([tmp_path / "t.txt"], tmp_path / "d", tokenizer=tmp_path / "large.bin").dataset
    assert dataset.splits["train"][0].dtype == np.uint32
    assert dataset.tokenizer_path.endswith("tokenizer.bin")
    assert tokens_of(dataset, "train") == encoded(tmp_path / "large.bin", ["n65999"])


def test_bad_records_do_not_count(tmp_path, model):
    good = [{"story": f"number {number}"} for number in range(10)]
    (tmp_path / "t.jsonl").write_text(jsonl(1, *good[:5], {}, *good[5:], {"story": 3}, *([None] * 20)))
    dataset = tokenize([tmp_path / "t.jsonl"], tmp_path / "d", tokenizer=model, validation=0.2).dataset
    assert (dataset.documents("train"), dataset.documents("validation")) == (8, 2)
    assert dataset.manifest.bad_records == 23
    [source] = dataset.manifest.sources
    assert [record.place.rpartition(":")[2] for record in source.first_bad][:4] == ["1", "7", "13", "14"]
    assert len(source.first_bad) == 10
    (tmp_path / "bad.jsonl").write_text(jsonl(1, 2))
    with pytest.raises(
        ValueError, match=r"no document for training; 2 bad records, the first is .*bad.jsonl:1: expected"
    ):
        tokenize([tmp_path / "bad.jsonl"], tmp_path / "e", tokenizer=model)
    with pytest.raises(ValueError, match="no document for validation; 2 bad"):
        tokenize([tmp_path / "t.jsonl"], tmp_path / "e", tokenizer=model, validation_inputs=[tmp_path / "bad.jsonl"])
    assert not (tmp_path / "e" / MANIFEST).exists()


def test_errors_of_workers_come_through(tmp_path, collection, model):
    folder, _ = collection
    (folder / "z.json.gz").write_bytes(b"not gzip")
    for workers in (1, 2):
        with pytest.raises(FormatError, match=r"z.json.gz: broken gzip file"):
            tokenize([folder], tmp_path / "d", tokenizer=model, workers=workers)
    assert not (tmp_path / "d" / MANIFEST).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"shard_tokens": 0}, "shard_tokens is 0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"validation": 0.1, "validation_inputs": ["x"]}, "expected one of them"),
        ({"validation": 0.99}, "no document for training"),
    ],
)
def test_options_are_checked(tmp_path, model, options, message):
    (tmp_path / "t.jsonl").write_text(jsonl({"text": "a"}, {"text": "b"}))
    with pytest.raises(ValueError, match=message):
        tokenize([tmp_path / "t.jsonl"], tmp_path / "d", tokenizer=model, **options)


def test_progress_counts_all_tokens(tmp_path, collection, model):
    folder, _ = collection
    for workers in (1, 2):
        seen = []
        dataset = tokenize(
            [folder],
            tmp_path / f"{workers}",
            tokenizer=model,
            workers=workers,
            progress=lambda *counts, seen=seen: seen.append(counts),
        ).dataset
        assert seen[-1][0] == dataset.tokens("train")
        assert [count for count, _ in seen] == sorted(count for count, _ in seen)
        assert all(total is None or total >= count for count, total in seen)


# ---- going on ----


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


def test_only_what_is_missing_is_made_again(tmp_path, collection, model):
    folder, _ = collection
    out = tmp_path / "d"

    def again(**options) -> tuple[int, int]:
        result = tokenize([folder], out, tokenizer=model, workers=1, **options)
        return result.made, result.kept

    assert again() == (5, 0)
    whole, made = contents(out), times(out)
    assert again() == (0, 5)
    assert times(out) == made
    [a, b, *_] = sorted(made)
    (out / a).unlink()
    (out / b).write_bytes(whole[b][:-1])
    assert again() == (2, 3)
    assert contents(out) == whole
    (out / MANIFEST).unlink()
    (out / "tokenizer.model").unlink()
    assert again() == (5, 0)  # what the shards are is not known without it
    assert contents(out) == whole

    (folder / "a.json").write_text('[{"story": "other"}]')
    with pytest.raises(FileExistsError, match="of other files, options or another tokenizer"):
        again()
    assert contents(out) == whole
    assert again(overwrite=True) == (1, 4)
    assert len(contents(out)) == len(whole)  # nothing is left of the old shard
    assert again(overwrite=True, eos=True) == (5, 0)
    (out / MANIFEST).write_text("{}")
    with pytest.raises(FileExistsError):
        again(eos=True)
    assert again(eos=True, overwrite=True) == (5, 0)
    assert len(contents(out)) == len(whole)


def test_output_beside_the_input(tmp_path, collection, model):
    folder, texts = collection
    for out in (folder, folder / "tokens"):
        for _ in range(2):
            dataset = tokenize([folder], out, tokenizer=model, workers=1).dataset
            assert tokens_of(dataset, "train") == encoded(model, texts)
        (folder / MANIFEST).unlink(missing_ok=True)


def test_another_tokenizer_in_the_directory_is_not_replaced(tmp_path, collection, model):
    folder, _ = collection
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tokenizer.model").write_text("someone's")
    with pytest.raises(FileExistsError):
        tokenize([folder], tmp_path / "d", tokenizer=model, workers=1)
    tokenize([folder], tmp_path / "d", tokenizer=model, workers=1, overwrite=True)


@POSIX
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_kill_loses_nothing(tmp_path, model, fixed, name, code):
    folder, out = tmp_path / "texts", tmp_path / "d"
    folder.mkdir()
    text = words(fixed, 2000)
    for number in range(20):
        (folder / f"{number:02}.jsonl").write_text(jsonl(*[{"text": f"{text} {number}"}] * 10))
    command = [sys.executable, "-m", "llama2c", "data", "tokenize", folder, "-z", model, "--out", out, "--workers", "2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, cwd="/", **options) as process:
        while not list(out.glob("*.part.json")) and process.poll() is None:
            time.sleep(0.001)
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        assert process.communicate(timeout=60)[0] == b""  # the pipe closes when the workers have ended, too
    assert process.returncode == code
    assert not (out / MANIFEST).exists()
    for path in out.glob("*.npy"):
        np.load(path, mmap_mode="r")  # whole
    (out / "x-0123456789ab-train-000.npy.tmp-1").write_bytes(b"as a killed process leaves it")
    result = tokenize([folder], out, tokenizer=model, workers=1)
    assert result.kept >= 1
    assert result.made >= 1
    tokenize([folder], tmp_path / "fresh", tokenizer=model, workers=1)
    assert contents(out) == contents(tmp_path / "fresh")


# ---- datasets that are wrong ----


@pytest.fixture
def dataset(tmp_path, model) -> Path:
    (tmp_path / "t.txt").write_text("lamo ti ra")
    tokenize([tmp_path / "t.txt"], tmp_path / "d", tokenizer=model, validation=0.5)
    return tmp_path / "d"


def edit(folder: Path, change) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format="x"), 'dataset.json: format: expected "llama2c dataset", got "x"'),
        (lambda v: v.update(format_version=2), "format_version: expected 1, got 2"),
        (lambda v: v.pop("dtype"), "dtype: missing, expected a string"),
        (lambda v: v.update(dtype="uint32"), "dtype: expected 'uint16', got 'uint32'|dtype: expected uint16"),
        (lambda v: v.update(vocab_size=0), "vocab_size: expected 1 to"),
        (lambda v: v.update(bad_records=1), "bad_records: expected 0, the sum"),
        (lambda v: v["sources"][0].update(bad_records=-1), r"sources\[0\].bad_records: expected at least 0"),
        (lambda v: v["shards"][0].update(name="../t.npy"), r"shards\[0\].name: expected the name of an .npy file"),
        (lambda v: v["shards"][1].update(split="test"), r"shards\[1\].split: expected train or validation"),
        (lambda v: v["shards"][1].update(tokens=0), r"shards\[1\].tokens: expected at least 1"),
        (lambda v: v["shards"][1].update(documents=0), r"shards\[1\].documents: expected 1 up to"),
        (lambda v: v["shards"][1].update(characters=0), r"shards\[1\].characters: expected at least 1"),
        (lambda v: v["shards"][1].update(name=v["shards"][0]["name"]), "shards: expected different names"),
        (lambda v: v["shards"][0].update(tokens=999), "train-000.npy: expected 999 tokens, got"),
        (lambda v: v["shards"][0].update(name="x.npy"), "x.npy: missing, dataset.json names it"),
        (lambda v: v["tokenizer"].update(name="../x"), "tokenizer.name: expected the name of a file"),
        (lambda v: v["tokenizer"].update(name="x"), "x: missing, dataset.json names it"),
        (lambda v: v["tokenizer"].update(sha256="0" * 64), "tokenizer.model: not the tokenizer of dataset.json"),
    ],
)
def test_wrong_manifests(dataset, change, message):
    edit(dataset, change)
    with pytest.raises(FormatError, match=message):
        open_dataset(dataset)


def test_wrong_shards(dataset):
    [shard] = dataset.glob("*-train-*.npy")
    right = np.load(shard)
    for content, message in [
        (b"", "not a whole .npy file"),
        (b"no array", "not a whole .npy file"),
        (shard.read_bytes()[:-1], "not a whole .npy file"),
    ]:
        shard.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            open_dataset(dataset)
    np.save(shard, right.astype(np.int32))
    with pytest.raises(FormatError, match=r"train-000.npy: expected one dimension of uint16, got int32"):
        open_dataset(dataset)
    np.save(shard, right[None])
    with pytest.raises(FormatError, match="expected one dimension of uint16"):
        open_dataset(dataset)
    right[2] = SIZE
    save_shard(shard, right)
    open_dataset(dataset)
    with pytest.raises(FormatError, match=rf"train-000.npy: token 2 is {SIZE}, expected less than {SIZE}"):
        open_dataset(dataset, check=True)
    (dataset / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError):
        open_dataset(dataset)


def test_shards_are_plain_npy_files(tmp_path):
    tokens = np.arange(1000, dtype=np.uint16)
    save_shard(tmp_path / "ours.npy", tokens)
    np.save(tmp_path / "numpys.npy", tokens)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


# ---- downloads ----


def archive(path: Path, members: dict[str, bytes], *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def hub(monkeypatch) -> types.ModuleType:
    """A huggingface_hub whose downloads are set by .archive."""
    module = types.ModuleType("huggingface_hub")
    module.calls = []

    def hf_hub_download(**options: str) -> str:
        module.calls.append(options)
        if isinstance(module.archive, Exception):
            raise module.archive
        return str(module.archive)

    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_download(tmp_path, hub, capfd):
    content = {"data00.json": b'[{"story": "a"}]', "./data01.json": b"[]", "README.md": b"no", "more/x.json": b"{}"}
    hub.archive = archive(tmp_path / "all.tar.gz", content)
    out = tmp_path / "o"
    assert main(["data", "download", "tinystories", "--out", str(out)]) == 0
    assert hub.calls == [
        {"repo_id": "roneneldan/TinyStories", "filename": "TinyStories_all_data.tar.gz", "repo_type": "dataset"}
    ]
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {"data00.json", "data01.json", "more/x.json"}
    assert capfd.readouterr().out.splitlines()[-1] == f"{out}: 3 files, 20 B"
    assert [document for file in input_files([out]) for document in read(file)[0]] == ["a"]
    before = (out / "data00.json").stat().st_mtime_ns
    (out / "data01.json").write_bytes(b"half of it, or so")
    assert len(download_tinystories(out)) == 3
    assert (out / "data00.json").stat().st_mtime_ns == before
    assert (out / "data01.json").read_bytes() == b"[]"


def test_download_that_fails(tmp_path, hub, monkeypatch, capfd):
    hub.archive = KeyError("no network")
    with pytest.raises(RuntimeError, match=r"TinyStories_all_data.tar.gz cannot be downloaded: 'no network'"):
        download_tinystories(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["data", "download", "tinystories", "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "llama2c: error: downloads need huggingface_hub: pip install 'llama2c[hub]'\n"


def test_archives_that_are_wrong(tmp_path, monkeypatch):
    out = tmp_path / "o"
    with pytest.raises(FormatError, match=r"none.tar: no .json file in it"):
        extract_json(archive(tmp_path / "none.tar", {"a.txt": b""}, mode="w"), out)
    with pytest.raises(FormatError, match="outside"):
        extract_json(archive(tmp_path / "out.tar", {"../a.json": b"[]"}, mode="w"), out)
    assert not (tmp_path / "a.json").exists()
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(FormatError, match=r"no \.json file"):
        extract_json(tmp_path / "link.tar", out)
    noise = np.random.default_rng(1).bytes(100_000)
    whole = archive(tmp_path / "all.tar.gz", {"a.json": noise}).read_bytes()
    for name, content in ("cut.tar.gz", whole[:50_000]), ("no.tar.gz", b"no archive"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            extract_json(tmp_path / name, out)
    assert os.listdir(out) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"a.json: it needs 100000 bytes, the disk has 10"):
        extract_json(tmp_path / "all.tar.gz", out)


# ---- the command ----


def test_command(tmp_path, capfd, fixed):
    (tmp_path / "s.jsonl").write_text(jsonl(*[{"story": text} for text in stories(fixed, 40)], 7))
    source, model, out = (str(tmp_path / name) for name in ("s.jsonl", "o.model", "d"))
    assert main(["data", "vocab", model, source, "--size", "300", "--max-sentences", "30"]) == 0
    captured = capfd.readouterr()
    assert re.fullmatch(rf"{re.escape(model)}: 300 tokens, learnt from 30 of \d+ lines\n", captured.out)
    assert captured.err == f"llama2c: 1 bad record left out\n  {source}:41: expected an object, got a number\n"
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--validation", "0.25"]) == 0
    captured = capfd.readouterr()
    assert captured.err == f"llama2c: 1 bad record left out\n  {source}:41: expected an object, got a number\n"
    table = captured.out
    assert re.search(r"^  train +1 +30 ", table, re.M)
    assert re.search(r"^  validation +1 +10 ", table, re.M)
    assert main(["data", "info", out, "--check"]) == 0
    assert capfd.readouterr().out == table
    assert main(["data", "info", out, "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["splits"]["train"]["tokens"] == open_dataset(out).tokens("train")
    assert figures["bad_records"] == 1
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--validation", "0.25"]) == 0
    assert capfd.readouterr().out == f"1 of 1 files were done already\n{table}"
    assert main(["data", "tokenize", source, "-z", model, "--out", out]) == 1
    assert "replaced only if told (overwrite, --force)" in capfd.readouterr().err
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--force", "--eos", "--strip"]) == 0
    assert "  validation       0 " in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["data"],
        ["data", "vocab", "o.model", "t.txt"],
        ["data", "vocab", "o.model", "t.txt", "--size", "0"],
        ["data", "tokenize", "t.txt", "--out", "d"],
        ["data", "tokenize", "t.txt", "-z", "x", "--out", "d", "--validation", "0.1", "--validation-input", "x"],
        ["data", "download", "other", "--out", "d"],
    ],
)
def test_wrong_arguments(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.fullmatch(r"llama2c: error: .* \(see llama2c data.* --help\)\n", capfd.readouterr().err)


@pytest.mark.parametrize("action", [[], ["vocab"], ["tokenize"], ["info"], ["download"]])
def test_help(action, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["data", *action, "--help"])
    assert stopped.value.code == 0
    assert max(map(len, capfd.readouterr().out.splitlines())) <= 120
