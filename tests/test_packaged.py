"""The packaged model: small, the default everywhere, the same text by seed, and as good as its card says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracle import TILES, WORDS

import llama2c
from llama2c.cli import main
from llama2c.packaged import packaged_model

CARD = Path(packaged_model()).with_suffix(".md")
BAR = 1.47  # nats a character: nanoGPT's published figure for its character model of 10.6M parameters


@pytest.fixture(scope="module")
def text() -> str:
    """What it says by one seed, at all levels but those with prompts of their own."""
    with llama2c.load(isa="scalar") as llm:
        return str(llm.generate("ROMEO:", seed=7, max_tokens=100))


def test_it_is_small():
    assert Path(packaged_model()).stat().st_size <= 4_000_000
    config = llama2c.load().config
    assert config.vocab_size == len(llama2c.load().tokenizer) and config.context >= 256


@pytest.mark.parametrize("threads", [1, 3])
def test_text_is_the_same_by_seed(text, isa, threads):
    with llama2c.load(isa=isa, threads=threads) as llm:
        assert isa in TILES + WORDS or str(llm.generate("ROMEO:", seed=7, max_tokens=100)) == text
        assert str(llm.generate("ROMEO:", seed=7, max_tokens=100)) == str(
            llama2c.generate("ROMEO:", model=llm, seed=7, max_tokens=100)
        )


def test_text_is_like_shakespeares(text):
    assert len(text) > 150 and text.isascii()
    letters = sum(character.isalpha() for character in text) / len(text)
    assert letters > 0.6 and re.search(r"\b(the|and|to|my|thou|you|I)\b", text)


def test_it_is_the_default_of_the_commands(capfd):
    run = [sys.executable, "-m", "llama2c", "run", "-s", "3", "-n", "60"]
    one, two = (subprocess.run(run, capture_output=True, check=True, timeout=60) for _ in range(2))
    assert one.stdout == two.stdout and len(one.stdout) > 60 and b"tok/s" in one.stderr
    assert main(["bench", "-p", "16", "-n", "4", "-r", "1"]) == 0
    assert Path(packaged_model()).name in capfd.readouterr().out


def test_bench_with_throughput_takes_other_products(capfd):
    hashes = []
    for more in ([], ["--throughput"]):
        assert main(["bench", "-p", "16", "-n", "2", "-r", "1", "-b", "1,2", "--json", *more]) == 0
        hashes.append([(row["test"], row["logits_hash"]) for row in json.loads(capfd.readouterr().out)])
    for one, other in zip(*hashes, strict=True):
        assert (one == other) == (one[0] == "decode" or llama2c.load().isa not in WORDS)


def test_its_loss_is_what_the_card_says(data_file, tmp_path, capfd):
    """On the last tenth of the text, which it was not trained on, by the shipped file."""
    text = data_file("text/tinyshakespeare.txt").read_text()
    held_out = tmp_path / "validation.txt"
    held_out.write_text(text[int(len(text) * 0.9) :])
    assert main(["perplexity", str(held_out), "-c", "256", "--stride", "128"]) == 0
    nats = float(re.search(r"([0-9.]+) a character", capfd.readouterr().out)[1])
    stated = float(re.search(r"([0-9.]+) nats a character", CARD.read_text())[1])
    assert nats <= BAR and nats == pytest.approx(stated, abs=6e-4)
