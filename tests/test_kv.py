"""Keys and values as f32, f16 and int8, and attention over a window, against the float64 oracle."""

import pickle
from pathlib import Path

import ggufs
import numpy as np
import pytest
from oracle import Shape, forward, nmse

import llama2c
from llama2c import Session, Transformer
from llama2c.cli import main

# heads of 40 and 6: no multiple of the lanes; groups of 2, 3 and 1
SHAPES = (
    Shape(160, 96, 2, 4, 2, 105, 700, tied=False),
    Shape(36, 44, 2, 6, 2, 33, 700, tied=False),
    Shape(64, 64, 2, 1, 1, 50, 700, tied=False),
)
BOUND = {"f32": 1e-11, "f16": 1e-8, "q8": 2e-5}  # an element on the edge of two levels may fall to either side
WINDOWS = (1, 255, 256, 300)


def model(folder: Path, rng: np.random.Generator, shape: Shape, window: int = 0, kind: str = "F32"):
    """Path, and the weights as float64 by the oracle's names."""
    tensors = ggufs.random_tensors(rng, shape, kind)
    path = folder / f"{shape.dim}-{kind}-{window}.gguf"
    ggufs.write(path, shape, tensors, metadata={"llama.attention.sliding_window": window})
    return path, {name.removesuffix(".weight"): w.astype(np.float64) for name, (_, w) in tensors.items()}


def both_roles(transformer: Transformer, tokens: list[int], start: int) -> np.ndarray:
    """The logits of tokens[start:] as prompt rows and as generated rows: [2, n, vocab]."""
    prompt = Session(transformer, threads=2, chunk=64).prefill_all(tokens)
    session = Session(transformer)
    session.prefill(tokens[:start])
    return np.stack([prompt[start:], [session.step(token) for token in tokens[start:]]])


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: str(s.dim))
def test_types_equal_the_oracle(tmp_path, rng, isa, shape, kv_type):
    path, weights = model(tmp_path, rng, shape)
    tokens = rng.integers(0, shape.vocab_size, 270).tolist()
    expected = forward(shape, weights, tokens, kv_type=kv_type)[-20:]
    transformer = Transformer(path, isa=isa, kv_type=kv_type)
    for got in both_roles(transformer, tokens, 250):
        assert nmse(got, expected) <= BOUND[kv_type]
    if kv_type != "f32":
        exact = forward(shape, weights, tokens)[-20:]
        assert nmse(got, exact) > 1e-11  # else the option did nothing


@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_equals_the_oracle(tmp_path, rng, isa, window):
    shape = Shape(160, 96, 2, 4, 2, 105, 700, window=window, tied=False)
    path, weights = model(tmp_path, rng, shape, window)
    tokens = rng.integers(0, shape.vocab_size, 590).tolist()
    expected = forward(shape, weights, tokens)
    transformer = Transformer(path, isa=isa)
    assert transformer.config["window"] == window
    for got in both_roles(transformer, tokens, 490):
        assert nmse(got, expected[490:]) <= BOUND["f32"]
    assert nmse(Session(transformer).prefill_all(tokens), expected) <= BOUND["f32"]


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8"])
@pytest.mark.parametrize("window", [0, 70])
def test_bits_depend_on_neither_chunks_nor_threads_nor_level(tmp_path, rng, kv_type, window):
    path, _ = model(tmp_path, rng, SHAPES[0], window)
    tokens = rng.integers(0, SHAPES[0].vocab_size, 400).tolist()
    results = []
    for isa in llama2c.available_isas():
        transformer = Transformer(path, isa=isa, kv_type=kv_type)
        for threads, chunk in ((2, 100),) if results else ((1, 400), (3, 7), (4, 64)):
            session = Session(transformer, threads=threads, chunk=chunk)
            results.append(np.concatenate([session.prefill_all(tokens), [session.step(1), session.step(2)]]))
    for other in results[1:]:
        assert np.array_equal(other, results[0])


def test_what_fits_is_the_default(tmp_path, rng, data_file):
    for kind, expected in (("F32", "f32"), ("F16", "f16"), ("BF16", "f16"), ("Q8_0", "f16")):
        path = tmp_path / f"{kind}.gguf"
        shape = Shape(64, 96, 1, 2, 1, 40, 64)
        ggufs.write(path, shape, ggufs.random_tensors(rng, shape, kind))
        assert Transformer(path).config["kv_type"] == expected
        assert Transformer(path, kv_type="q8").config["kv_type"] == "q8"
    assert Transformer(data_file("models/stories260K.bin")).config["kv_type"] == "f32"


def test_the_option_everywhere(data_file, capfdbinary):
    path = data_file("models/stories260K.gguf")
    with llama2c.load(path, kv_type="f16") as llm:
        assert llm.config.kv_type == "f16"
        text = llm.generate("Once", temperature=0, max_tokens=40).text
        again = pickle.loads(pickle.dumps(llm))
        assert again.config.kv_type == "f16"
    assert main(["run", str(path), "-t", "0", "-n", "41", "-i", "Once", "--kv-type", "f16"]) == 0
    assert text in capfdbinary.readouterr().out.decode()
    assert main(["info", str(path)]) == 0
    assert b"keys and values, f32" in capfdbinary.readouterr().out
    with pytest.raises(ValueError, match='of type "bf16", expected f32, f16 or q8'):
        Transformer(path, kv_type="bf16")
    with pytest.raises(SystemExit):
        main(["run", str(path), "--kv-type", "q4"])
    assert b"invalid choice: 'q4'" in capfdbinary.readouterr().err


def test_large_keys_and_values_stay_finite(tmp_path, rng):
    """Beyond f16's range they are held at its largest number."""
    shape = SHAPES[0]
    tensors = ggufs.random_tensors(rng, shape, "F32")
    for name, (kind, w) in list(tensors.items()):
        if "attn_v" in name or "attn_k" in name:
            tensors[name] = (kind, (w * 1e6).astype(np.float32))
    path = tmp_path / "large.gguf"
    ggufs.write(path, shape, tensors)
    for kv_type in ("f32", "f16", "q8"):
        logits = Session(Transformer(path, kv_type=kv_type)).prefill_all([1, 2, 3, 4])
        assert np.isfinite(logits).all(), kv_type
