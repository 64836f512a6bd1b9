"""Generated texts, their vocabularies and datasets, for the tests of `llama2c data`."""

import json
from pathlib import Path

import numpy as np

import llama2c

SIZE = 600  # of the vocabulary `model`


def words(rng: np.random.Generator, count: int) -> str:
    """Text with all that vocabularies treat apart: runs of spaces, newlines, digits, other scripts."""
    syllables = ["la", "mo", "ti", "ra", "né", "кот", "日本", "x", "'s", "12", "2024"]
    spaces = [" "] * 12 + ["  ", "\n", "\n\n", "    ", "\t"]
    return "".join(
        "".join(rng.choice(syllables, rng.integers(1, 4))) + str(rng.choice(spaces)) for _ in range(count)
    ).strip()


def jsonl(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def stories(rng: np.random.Generator, count: int) -> list[str]:
    return [words(rng, int(rng.integers(1, 60))) for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def tokens_of(dataset, split: str) -> list[int]:
    return [int(token) for shard in dataset.splits[split] for token in shard]


def encoded(model: Path, texts: list[str], *, eos: bool = False) -> list[int]:
    tokenizer = llama2c.load_tokenizer(model)
    return [token for text in texts for token in tokenizer.encode(text, bos=True, eos=eos)]
