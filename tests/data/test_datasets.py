"""Datasets: whole, exact, the same from any workers; wrong ones are refused."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from corpus import SIZE, contents, encoded, jsonl, tokens_of, words

import llama2c
from llama2c import FormatError
from llama2c.training.jobs import passages
from llama2c.training.shards import MANIFEST, open_dataset, save_shard
from llama2c.training.tokenizing import tokenize


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
