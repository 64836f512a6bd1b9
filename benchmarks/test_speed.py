"""Cases that are timed before and after a change (compare_base.py); they assert nothing about time.

Models are random, of shapes that fit any machine; all need only what a wheel has.
"""

import struct
from pathlib import Path

import numpy as np
import pytest

import llama2c
from llama2c import _core

# dim, hidden, layers, heads, kv heads, vocabulary, context
SHAPES = {"stories260k": (64, 172, 5, 8, 4, 512, 512), "stories15m": (288, 768, 6, 6, 6, 32000, 512)}


def write_model(path: Path, shape: tuple[int, ...], version: int, group_size: int = 32) -> None:
    """A random llama2.c checkpoint of version 0 or 2 with a tied classifier."""
    dim, hidden, layers, heads, kv_heads, vocab, context = shape
    kv_dim = dim // heads * kv_heads
    rng = np.random.default_rng(0)
    norms = [(dim, layers), (dim, layers), (dim, 1)]
    each = [(dim, dim), (kv_dim, dim), (kv_dim, dim), (dim, dim), (hidden, dim), (dim, hidden), (hidden, dim)]
    with path.open("wb") as file:
        if version == 0:
            file.write(struct.pack("<7i", *shape))
            # every order is as good as the file's: all is random, the norms too
            count = vocab * dim + layers * sum(r * c for r, c in each) + sum(n * k for n, k in norms)
            file.write((rng.standard_normal(count) * 0.05).astype("<f4").tobytes())
            file.write(bytes(4 * context * (dim // heads)))
            return
        file.write(struct.pack("<Ii7iBi", 0x616B3432, 2, *shape, 1, group_size).ljust(256, b"\0"))
        file.write(np.ones(sum(n * k for n, k in norms), "<f4").tobytes())
        for rows, cols in [(vocab, dim), *(matrix for matrix in each for _ in range(layers))]:
            file.write(rng.integers(-127, 128, rows * cols, dtype=np.int8).tobytes())
            file.write(np.full(rows * cols // group_size, 4e-4, "<f4").tobytes())


@pytest.fixture(scope="module", params=["stories260k-f32", "stories15m-f32", "stories15m-int8"])
def transformer(request, tmp_path_factory):
    name, _, kind = request.param.partition("-")
    path = tmp_path_factory.mktemp("model") / "model.bin"
    write_model(path, SHAPES[name], 0 if kind == "f32" else 2)
    return llama2c.Transformer(str(path))


@pytest.mark.parametrize("threads", [1, 2])
def test_decode(benchmark, transformer, threads):
    session = llama2c.Session(transformer, threads=threads)
    session.prefill([1])

    def sixteen() -> None:
        session.rewind(1)
        for token in range(16):
            session.step(token)

    benchmark(sixteen)


def test_prefill_128(benchmark, transformer):
    session = llama2c.Session(transformer, threads=2)
    ids = np.arange(128) + 3

    def prompt() -> None:
        session.rewind(0)
        session.prefill(ids)

    benchmark(prompt)


def test_batch_of_8(benchmark, transformer):
    sessions = [llama2c.Session(transformer, context=64) for _ in range(8)]
    batch = llama2c.Batch(transformer, rows=8, threads=2)
    for session in sessions:
        session.prefill([1, 2, 3])

    def step() -> None:
        for session in sessions:
            session.rewind(3)
        batch.step([(session, [5], llama2c.ROLE_GENERATED, False) for session in sessions])

    benchmark(step)


def test_decode_at_depth_400(benchmark, transformer):
    session = llama2c.Session(transformer, threads=2)
    session.prefill(np.arange(400) + 3)

    def step() -> None:
        session.rewind(400)
        session.step(5)

    benchmark(step)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_sampler(benchmark, top_p):
    sampler = llama2c.Sampler(32000, temperature=1.0, top_p=top_p, seed=1)
    logits = (np.random.default_rng(0).standard_normal(32000) * 3).astype(np.float32)
    benchmark(sampler.sample, logits)


def byte_tokenizer() -> llama2c.Tokenizer:
    """Bytes, and every pair of letters: enough to merge."""
    letters = "abcdefghijklmnopqrstuvwxyz "
    pairs = [(a + b).encode() for a in letters for b in letters]
    pieces = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)), *pairs]
    pieces += [letter.encode() for letter in letters]
    types = [2, 3, 3, *([6] * 256), *([1] * (len(pieces) - 259))]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)]
    return llama2c.Tokenizer.from_table(pieces, scores, types, unk=0, bos=1, eos=2)


def test_encode(benchmark):
    tokenizer = byte_tokenizer()
    text = "the quick brown fox jumps over the lazy dog " * 200
    benchmark(tokenizer.encode, text)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_quantize_rows(benchmark, name):
    """A million weights on one core."""
    quantize_rows = getattr(_core, "quantize_rows", None)
    if quantize_rows is None:
        pytest.skip("the base has no quantiser")
    benchmark(quantize_rows, np.random.default_rng(0).standard_normal((256, 4096), dtype=np.float32), name)
