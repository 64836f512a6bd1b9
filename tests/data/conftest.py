"""What the tests of `llama2c data` share."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from corpus import SIZE, jsonl, stories, words

import llama2c
from llama2c.training.vocabulary import train_vocabulary


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
