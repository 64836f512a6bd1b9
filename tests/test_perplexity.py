"""Scores: the log-probabilities of the logits, and perplexity as llama-perplexity prints it."""

import json
import math
import re
import subprocess
import sys
from itertools import pairwise

import ggufs
import numpy as np
import pytest
from oracle import Shape

import llama2c
from llama2c.cli import main

FILES = [
    "models/stories260K",
    *(f"golden/gqa256-{name}" for name in ("f32", "F16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K")),
    "golden/llama3rope-f32",
    "golden/llama3rope-Q4_K_M",
]


@pytest.fixture(scope="module")
def llm(data_file):
    return llama2c.load(data_file("models/stories260K.gguf"))


@pytest.fixture(scope="module")
def wiki(data_file):
    return data_file("text/wiki.test.raw").read_bytes().removesuffix(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_equal_to_llama_perplexity(data_file, wiki, name):
    lines = data_file("expected/perplexity.txt").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}.gguf"))
    expected = [float(value) for value in re.findall(r"\](\S+)", line)]
    got = list(llama2c.perplexity(llama2c.load(data_file(f"{name}.gguf")), wiki, windows=8))
    assert [result.windows for result in got] == list(range(1, 9))
    # llama.cpp's F16 keys and int8 activations move its figures; for single windows more than for all
    exact = name.endswith(("stories260K", "f32"))
    assert got[-1].value == pytest.approx(expected[-1], rel=2e-4 if exact else 5e-3)
    for result, value in zip(got, expected, strict=True):
        assert result.value == pytest.approx(value, rel=1e-3 if exact else 1e-2)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def test_scores_are_of_the_logits(llm, rng):
    ids = rng.integers(0, 512, 300).tolist()
    expected = log_softmax(llm.logits(ids))[np.arange(299), ids[1:]]
    score = llm.score(ids)
    assert score.tokens == ids
    assert np.allclose(score.log_probabilities, expected, rtol=1e-6, atol=1e-6)
    assert score.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-6)
    session = llm.session()
    assert np.array_equal(session.score(ids, start=100), score.log_probabilities[100:])
    assert session.position == 300
    session.rewind(100)
    assert np.array_equal(session.score(ids[100:]), score.log_probabilities[100:])


def test_more_rows_than_are_held_at_once(tmp_path, rng):
    """A vocabulary so large that the logits of 100 rows take several steps."""
    shape = Shape(32, 32, 1, 1, 1, 100_000, 128)
    ggufs.write(tmp_path / "model.gguf", shape, ggufs.random_tensors(rng, shape, "Q8_0"))
    session = llama2c.Session(llama2c.Transformer(tmp_path / "model.gguf"))
    ids = rng.integers(0, shape.vocab_size, 100).tolist()
    expected = log_softmax(session.prefill_all(ids))[np.arange(99), ids[1:]]
    session.rewind(0)
    assert np.allclose(session.score(ids), expected, atol=1e-5)


def test_improbable_tokens_have_a_finite_score(tmp_path, rng):
    shape = Shape(32, 32, 1, 1, 1, 8, 16)
    tensors = ggufs.random_tensors(rng, shape, "F32")
    tensors["output.weight"] = ("F32", tensors["output.weight"][1] * 3000)
    ggufs.write(tmp_path / "model.gguf", shape, tensors)
    scores = llama2c.Session(llama2c.Transformer(tmp_path / "model.gguf")).score([1, 2, 3, 4, 5, 6, 7, 0])
    assert np.isfinite(scores).all()
    assert scores.min() < -150  # below the smallest float32


def test_texts_and_single_tokens(llm):
    score = llm.score("Once upon a time")
    assert score.tokens == llm.tokenizer.encode("Once upon a time")
    assert score.perplexity < llm.score("Once upon time a").perplexity
    assert math.isnan(llm.score([1]).perplexity)


def test_refused(llm, wiki):
    with pytest.raises(llama2c.ContextError):
        llm.score([1] * (llm.context + 1))
    with pytest.raises(ValueError, match="no tokens"):
        llm.score([])
    with pytest.raises(ValueError, match="start is 3, expected 0 to 2"):
        llm.session().score([1, 2, 3], start=3)
    with pytest.raises(ValueError, match="expected at least 1024"):
        llama2c.perplexity(llm, "short")
    with pytest.raises(ValueError, match="context is 5000"):
        llama2c.perplexity(llm, wiki, context=5000)
    with pytest.raises(ValueError, match="windows is 0"):
        llama2c.perplexity(llm, wiki, windows=0)
    session = llm.session()
    with pytest.raises(ValueError, match="token 1 is 600"):
        session.score([1, 600])
    assert session.position == 0


def test_errors_shrink_with_the_text(llm, wiki):
    results = list(llama2c.perplexity(llm, wiki, context=128, windows=20))
    assert all(one.error > 0 for one in results)
    assert results[-1].error < results[1].error
    assert all(two.bytes > one.bytes for one, two in pairwise(results))
    last = results[-1]
    assert last.bits_per_byte == pytest.approx(last.nats / math.log(2) / last.bytes)


def test_stride_scores_every_token_once(llm, wiki):
    text = wiki[:4000].decode(errors="ignore") + "\u00e9\u4e2d\U0001f600" * 20
    ids = llm.tokenizer.encode(text)
    results = list(llama2c.perplexity(llm, text, context=128, stride=48))
    assert results[-1].tokens == len(ids) - 1
    added = 1  # the space that this tokenizer puts before a text
    assert results[-1].characters == len(text) + added and results[-1].bytes == len(text.encode()) + added
    expected = llm.score(ids[:128]).total
    assert results[0].nats == pytest.approx(-expected)
    second = [llm.tokenizer.bos, *ids[49:176]]
    assert results[1].nats - results[0].nats == pytest.approx(-sum(llm.score(second).log_probabilities[79:]))
    whole = list(llama2c.perplexity(llm, text[:300], context=512, stride=256))
    assert len(whole) == 1 and whole[0].nats == pytest.approx(-llm.score(text[:300]).total)
    assert whole[0].nats_per_character == pytest.approx(whole[0].nats / 301)
    with pytest.raises(ValueError, match="stride is 128, expected 1 to 127"):
        llama2c.perplexity(llm, text, context=128, stride=128)
    with pytest.raises(ValueError, match="expected at least 2"):
        llama2c.perplexity(llm, "", context=128, stride=64)


def test_command(data_file, capfd):
    arguments = ["perplexity", str(data_file("models/stories260K.gguf")), str(data_file("text/wiki.test.raw"))]
    assert main([*arguments, "--chunks", "2", "-c", "256"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("[1]") and "\nperplexity " in out and "bits a byte" in out
    assert main([*arguments, "--chunks", "2", "-c", "256", "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert f"perplexity {figures['perplexity']:.4f} +- {figures['error']:.4f}" in out


def test_command_reads_standard_input(data_file):
    model = str(data_file("models/stories260K.gguf"))
    command = [sys.executable, "-m", "llama2c", "perplexity", model, "-", "-c", "64"]
    done = subprocess.run(command, input=b"Once upon a time. " * 60, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stdout.startswith(b"[1]")
    short = subprocess.run(command, input=b"Once", capture_output=True, timeout=60, check=False)
    assert short.returncode == 1
    assert short.stderr.count(b"\n") == 1 and b"expected at least 128" in short.stderr
