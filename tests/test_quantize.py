"""Quantisation: never worse than plain rounding or llama.cpp, recipes as llama.cpp's, files whole or not there."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import checkpoints
import gguf
import ggufs
import numpy as np
import pytest
from oracle import TILES, Shape

import llama2c
from llama2c import Session, Transformer
from llama2c._core import block_types, chosen_isa, quantize_error, quantize_rows, read_gguf, read_gguf_entries
from llama2c.cli import main
from llama2c.formats.gguf_writer import GGUFWriter, TensorHeader, encode_value
from llama2c.recipes import ALIASES, RECIPES, recipe_of, type_of

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, limits and links of POSIX")
FLOATS = ("F32", "F16", "BF16")
BLOCKS = tuple(name for name in block_types() if name not in FLOATS)
GOLDEN = [f"gqa256-{name}" for name in RECIPES if name != "F32"] + [
    f"llama3rope-{n}" for n in "BF16 Q8_0 Q4_K_M".split()
]
# The largest magnitude that a type's scales take, in units of the largest f16.
LARGEST = {"Q8_0": 127, "Q4_0": 8, "Q4_1": 1, "Q5_0": 16, "Q5_1": 1, "Q2_K": 15, "Q3_K": 128, "Q4_K": 63, "Q5_K": 63}
LARGEST["Q6_K"] = 32 * 128


def dequantized(blocks: np.ndarray, name: str) -> np.ndarray:
    if name == "F32":
        return blocks.view("<f4").astype(np.float64)
    if name == "F16":
        return blocks.view("<f2").astype(np.float64)
    return gguf.quants.dequantize(blocks, ggufs.kind(name)).astype(np.float64)


def squares(x: np.ndarray) -> float:
    return float((x.astype(np.float64) ** 2).sum())


# Range of q, values of a group; for the K types the ranges of the integers that scales and mins are.
PLAIN = {
    "Q8_0": (-127, 127, 32, None, None),
    "Q4_0": (-8, 7, 32, None, None),
    "Q4_1": (0, 15, 32, None, None),
    "Q5_0": (-16, 15, 32, None, None),
    "Q5_1": (0, 31, 32, None, None),
    "Q2_K": (0, 3, 16, (0, 15), 15),
    "Q3_K": (-4, 3, 16, (-32, 31), None),
    "Q4_K": (0, 15, 32, (0, 63), 63),
    "Q5_K": (0, 31, 32, (0, 63), 63),
    "Q6_K": (-32, 31, 16, (-128, 127), None),
}


def largest(values: np.ndarray) -> np.ndarray:
    """The value of the largest magnitude of each row, as a column."""
    return np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)


def over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)


def as_steps(values: np.ndarray, group: int, low: int, high: int) -> np.ndarray:
    """Numbers of the groups of a block of 256 as integers of [low, high] times one f16."""
    blocks = values.reshape(-1, 256 // group)
    step = (largest(blocks) / (low or high)).astype(np.float16).astype(np.float64)
    return (np.clip(np.round(over(blocks, step)), low, high) * step).reshape(-1, 1)


def plain_error(x: np.ndarray, name: str) -> float:
    """Squared error of plain rounding: the values range as q does, and scales are as the type stores them."""
    low, high, group, scales, mins = PLAIN[name]
    groups = x.astype(np.float64).reshape(-1, group)
    least = np.zeros((len(groups), 1))
    scale = largest(groups) / low if low else least
    if low == 0:
        least = groups.min(axis=1, keepdims=True)
        least = np.minimum(least, 0) if mins else least
        scale = (groups.max(axis=1, keepdims=True) - least) / high
    if scales:
        scale = as_steps(scale, group, *scales)
        least = -as_steps(-least, group, 0, mins) if mins else least
    else:
        scale, least = (v.astype(np.float16).astype(np.float64) for v in (scale, least))
    q = np.clip(np.round(over(groups - least, scale)), low, high)
    return squares(q * scale + least - groups)


def nmse(got: np.ndarray, exact: np.ndarray) -> float:
    return squares(got.astype(np.float64) - exact) / squares(exact)


# ---- Blocks ----


@pytest.mark.parametrize("name", GOLDEN)
def test_no_worse_than_llama_cpp(data_file, name):
    """Every matrix against what llama.cpp's own tool made of it."""
    exact = {
        tensor.name: tensor for tensor in gguf.GGUFReader(data_file(f"golden/{name.split('-')[0]}-f32.gguf")).tensors
    }
    for tensor in gguf.GGUFReader(data_file(f"golden/{name}.gguf")).tensors:
        if len(tensor.shape) == 1:
            continue
        x = np.array(exact[tensor.name].data)
        kind = tensor.tensor_type.name
        theirs = squares(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64) - x)
        ours = squares(dequantized(quantize_rows(x, kind), kind) - x)
        assert ours <= theirs * (1 if kind in ("F16", "BF16") else 0.97), tensor.name


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_floats_round_to_nearest_even(rng, name):
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, 2**-24, 2**-25, 3 * 2**-25, 2**-14, 65504, 65519])])
    x = np.append(x, (np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000).view(np.float32))  # ties of BF16
    x = x[np.isfinite(x) & (np.abs(x) < (65520 if name == "F16" else 3.3e38))].reshape(1, -1)
    if name == "F16":
        expected = x.astype(np.float16).view(np.uint8)
    else:
        bits = x.view(np.uint32)
        expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    assert np.array_equal(quantize_rows(x, name), expected)


def adversarial(rng: np.random.Generator) -> dict[str, np.ndarray]:
    normal = rng.standard_normal((3, 512), dtype=np.float32)
    outlier = normal * np.float32(1e-3)
    outlier[:, 77] = 50
    mixed = normal * np.float32(10.0) ** rng.integers(-4, 5, (3, 16)).astype(np.float32).repeat(32, axis=1)
    return {
        "normal": normal,
        "small": normal * np.float32(0.02),
        "heavy": rng.standard_t(2, (3, 512)).astype(np.float32),
        "zeros": np.zeros((1, 512), np.float32),
        "constant": np.full((1, 512), 0.3, np.float32),
        "negative constant": np.full((1, 512), -7.0, np.float32),
        "outlier": outlier,
        "negative": -np.abs(normal) - np.float32(0.5),
        "positive": np.abs(normal) + np.float32(0.5),
        "groups of all sizes": mixed,
        "two values": np.where(normal > 0, np.float32(1), np.float32(-2)),
        "one value": np.where(np.arange(512) == 300, np.float32(0.7), np.float32(0))[None],
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_never_worse_than_plain_rounding(rng, name):
    for case, x in adversarial(rng).items():
        blocks = quantize_rows(x, name)
        w = dequantized(blocks, name)
        assert np.isfinite(w).all(), case
        error = squares(w - x)
        assert error <= plain_error(x, name) * (1 + 1e-5) + 1e-12 * squares(x), case
        assert quantize_error(blocks, name, x) == pytest.approx((error, squares(x)), rel=1e-6, abs=1e-30), case


@pytest.mark.parametrize("name", BLOCKS)
def test_tiny_and_huge(rng, name):
    x = rng.standard_normal((2, 256), dtype=np.float32)
    for factor in (1e-44, 1e-38, 1e-30, 1e-12):  # below what an f16 scale can hold
        w = dequantized(quantize_rows(x * np.float32(factor), name), name)
        assert np.abs(w).max() <= 1e-7
    most = LARGEST[name] * 65504.0
    large = (x / np.abs(x).max() * most * 0.999).astype(np.float32)
    w = dequantized(quantize_rows(large, name), name)
    assert np.isfinite(w).all()
    x[1, 44] = 1e30
    with pytest.raises(ValueError, match=r"value 300 is 1e\+30, expected a number up to"):
        quantize_rows(x, name)


@pytest.mark.parametrize("name", block_types())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name, value):
    x = np.zeros((2, 256), np.float32)
    x[1, 5] = value
    with pytest.raises(ValueError, match=rf"value 261 is -?{value!s}".replace("--", "-")):
        quantize_rows(x, name)


def test_floats_that_would_become_infinite_are_refused():
    for name, fits, not_ in (("F16", 65519.0, 65520.0), ("BF16", 3.38e38, 3.4e38)):
        assert np.isfinite(dequantized(quantize_rows(np.float32([[fits]]), name), name)).all()
        with pytest.raises(ValueError, match="value 0 is"):
            quantize_rows(np.float32([[not_]]), name)


@pytest.mark.parametrize("name", BLOCKS)
def test_what_blocks_hold_comes_back(rng, name):
    """Weights that a type holds exactly lose next to nothing."""
    exact = dequantized(ggufs.random_blocks(rng, name, 4, 512), name).astype(np.float32)
    error, norm = quantize_error(quantize_rows(exact, name), name, exact)
    assert error <= {"Q8_0": 1e-5, "Q6_K": 1e-4, "Q2_K": 3e-2, "Q3_K": 1e-2}.get(name, 1e-3) * norm


def test_arguments():
    with pytest.raises(ValueError, match="no type 'IQ3_S' to quantise to"):
        quantize_rows(np.zeros((1, 256), np.float32), "IQ3_S")
    with pytest.raises(ValueError, match="no type 'nonsense'"):
        quantize_rows(np.zeros((1, 256), np.float32), "nonsense")
    with pytest.raises(ValueError, match="rows of 100 values are no whole blocks of Q4_0, 32 each"):
        quantize_rows(np.zeros((1, 100), np.float32), "Q4_0")
    with pytest.raises(ValueError, match="blocks of 18 bytes in 1 rows"):
        quantize_error(np.zeros((1, 18), np.uint8), "Q4_0", np.zeros((2, 32), np.float32))
    assert quantize_rows(np.zeros((0, 256), np.float32), "Q4_K").shape == (0, 144)


# ---- Recipes ----


@pytest.mark.parametrize("name", GOLDEN)
def test_recipes_are_llama_cpps(data_file, name):
    path = data_file(f"golden/{name}.gguf")
    recipe, config = recipe_of(name.split("-")[1]), Transformer(path).config
    header = read_gguf(path)
    for tensor in header["tensors"]:
        assert type_of(recipe, tensor["name"], tuple(tensor["shape"]), config) == tensor["type"], tensor["name"]
    assert {"key": "general.file_type", "value": recipe.number}.items() <= next(
        item for item in header["metadata"] if item["key"] == "general.file_type"
    ).items()


def layers(recipe: str, role: str, name: str, *, n_layers: int = 32, heads: int = 8, kv_heads: int = 2) -> list[int]:
    """The layers whose matrix of that role is of the type `name`."""
    config = {"n_layers": n_layers, "n_heads": heads, "n_kv_heads": kv_heads, "tied": 0}
    types = [type_of(recipe_of(recipe), f"blk.{i}.{role}.weight", (256, 256), config) for i in range(n_layers)]
    return [i for i, kind in enumerate(types) if kind == name]


def test_recipes_of_deep_models():
    """As llama-quantize chose for models of 32 and 80 layers."""
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for role in ("attn_v", "ffn_down"):
        assert layers("Q4_K_M", role, "Q6_K") == more
        assert layers("Q5_K_M", role, "Q6_K") == more
    assert layers("Q4_K_S", "attn_v", "Q5_K") == [0, 1, 2, 3]
    assert layers("Q4_K_S", "ffn_down", "Q5_K") == [0, 1, 2, 3]
    assert layers("Q3_K_M", "attn_v", "Q5_K") == [0, 1]
    assert layers("Q3_K_M", "ffn_down", "Q5_K") == [0, 1]
    assert layers("Q2_K", "attn_v", "Q4_K") == list(range(32))
    assert layers("Q2_K", "attn_v", "Q3_K", kv_heads=4) == list(range(32))
    assert layers("Q4_K_M", "attn_v", "Q4_K", n_layers=80, kv_heads=1) == []  # 70B
    assert len(layers("Q3_K_S", "attn_v", "Q5_K", n_layers=80, kv_heads=1)) == 80


def test_rows_that_are_no_whole_blocks():
    config = {"n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "tied": 0}

    def kind(recipe: str, cols: int, tensor: str = "blk.0.attn_q.weight") -> str:
        return type_of(recipe_of(recipe), tensor, (8, cols), config)

    fallbacks = {"Q2_K": "Q4_0", "Q3_K_S": "Q4_0", "Q4_K_S": "Q5_0", "Q5_K_S": "Q5_1", "Q6_K": "Q8_0", "Q4_1": "Q4_1"}
    for recipe, expected in fallbacks.items():
        assert kind(recipe, 288) == expected
        assert kind(recipe, 100) == "F16"
        assert kind(recipe, 288, "output.weight") == "Q8_0"
        assert kind(recipe, 512, "output.weight") == "Q6_K"
    assert kind("Q3_K_S", 288, "token_embd.weight") == "Q4_0"
    config["tied"] = 1
    assert kind("Q3_K_S", 288, "token_embd.weight") == "Q8_0"
    assert kind("Q3_K_S", 512, "token_embd.weight") == "Q6_K"
    assert kind("F32", 100) == "F32"
    assert type_of(recipe_of("Q4_K_M"), "rope_freqs.weight", (32,), config) == "F32"


def test_names():
    for short, name in ALIASES.items():
        assert recipe_of(short.lower()) is RECIPES[name]
    with pytest.raises(ValueError, match="no type 'Q4'; there are F32, F16"):
        recipe_of("Q4")


# ---- Files ----


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", ["gqa256", "llama3rope"])
def test_files_load_and_compute(data_file, tmp_path, family, name):
    source, path = data_file(f"golden/{family}-f32.gguf"), tmp_path / "out.gguf"
    result = llama2c.quantize(source, path, name, threads=2)
    assert os.listdir(tmp_path) == ["out.gguf"]
    assert result.bytes == sum(tensor["bytes"] for tensor in read_gguf(path)["tensors"])
    kept = dict(read_gguf_entries(source))
    new = dict(read_gguf_entries(path))
    assert {key: new[key] for key in kept if key != "general.file_type"} == {
        key: value for key, value in kept.items() if key != "general.file_type"
    }
    assert set(new) - set(kept) == {"general.quantization_version"}
    tokens = list(range(3, 400, 11))
    exact = Session(Transformer(source)).prefill_all(tokens)
    got = Session(Transformer(path)).prefill_all(tokens)
    if name == "F32":
        assert np.array_equal(got, exact)
    # errors add up over the products of two layers, and int8 activations have their own, as have tiles of bf16
    of_tiles = 1e-4 if chosen_isa() in TILES and name != "F32" else 0
    assert nmse(got, exact) <= 30 * result.error**2 + (of_tiles if name in FLOATS else 1e-3)
    gguf.GGUFReader(path)  # reads every header field by its own rules


@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K", "Q4_0", "Q8_0"])
def test_logits_no_worse_than_from_llama_cpps_file(data_file, tmp_path, name):
    source = data_file("golden/gqa256-f32.gguf")
    llama2c.quantize(source, tmp_path / "out.gguf", name)
    tokens = list(range(0, 512, 5))
    exact = Session(Transformer(source)).prefill_all(tokens)
    ours, theirs = (
        nmse(Session(Transformer(path)).prefill_all(tokens), exact)
        for path in (tmp_path / "out.gguf", data_file(f"golden/gqa256-{name}.gguf"))
    )
    assert ours <= theirs


def test_a_checkpoint_becomes_a_gguf_with_its_tokenizer(data_file, tmp_path):
    source, path = data_file("models/stories260K.bin"), tmp_path / "out.gguf"
    result = llama2c.quantize(source, path, "q8_0", tokenizer=data_file("models/tok512.bin"))
    assert {tensor.type for tensor in result.tensors} == {"F32", "Q8_0", "F16"}  # rows of 172 are no blocks of 32
    old, new = llama2c.load(source, tokenizer=data_file("models/tok512.bin")), llama2c.load(path)
    assert new.config.context == old.config.context and new.config.tied
    text = "One day, Lily met a Shoggoth \u00e9\u4e16 <s> \n"
    ids = old.tokenizer.encode(text)
    assert new.tokenizer.encode(text) == ids
    assert new.tokenizer.decode(ids) == old.tokenizer.decode(ids)
    told = old.generate("", max_tokens=150, temperature=0)
    assert nmse(new.logits(told.tokens), old.logits(told.tokens)) < 2e-3
    got = new.generate("", max_tokens=150, temperature=0).text
    assert sum(a == b for a, b in zip(got.split(), told.text.split(), strict=False)) > 10


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_of_every_version(tmp_path, rng, version, tied):
    shape = Shape(64, 96, 3, 4, 2, 50, 32, tied)
    checkpoints.write(
        tmp_path / "model.bin", shape, checkpoints.random_weights(rng, shape), version=version, group_size=32
    )
    tokens = rng.integers(0, 50, 20).tolist()
    llama2c.quantize(tmp_path / "model.bin", tmp_path / "f32.gguf", "F32")
    # version 2 computes with int8 activations, its weights in F32 do not
    exact = Session(Transformer(tmp_path / "model.bin")).prefill_all(tokens)
    got = Session(Transformer(tmp_path / "f32.gguf")).prefill_all(tokens)
    assert np.array_equal(got, exact) if version < 2 else nmse(got, exact) < 1e-2
    one, other = Transformer(tmp_path / "model.bin"), Transformer(tmp_path / "f32.gguf")
    assert np.array_equal(one.weight_rows("ffn_down", 2, 0, 64), other.weight_rows("ffn_down", 2, 0, 64))
    llama2c.quantize(tmp_path / "model.bin", tmp_path / "q.gguf", "Q4_K_M")
    assert nmse(Session(Transformer(tmp_path / "q.gguf")).prefill_all(tokens), exact) < 0.3


@pytest.mark.parametrize("name", ggufs.TYPES)
def test_every_type_can_be_read(tmp_path, rng, name):
    shape = Shape(256, 512, 2, 4, 2, 64, 128)
    ggufs.write(tmp_path / "in.gguf", shape, ggufs.random_tensors(rng, shape, name))
    result = llama2c.quantize(tmp_path / "in.gguf", tmp_path / "f32.gguf", "F32")
    assert result.error == 0
    one, other = (Transformer(tmp_path / f"{n}.gguf") for n in ("in", "f32"))
    assert np.array_equal(one.weight_rows("output", 0, 0, 64), other.weight_rows("output", 0, 0, 64))
    if name in block_types():  # weights that are of the type already are copied
        again = llama2c.quantize(tmp_path / "in.gguf", tmp_path / "same.gguf", name)
        assert all(t.error == 0 for t in again.tensors if t.source_type == t.type)
        kept = Transformer(tmp_path / "same.gguf")
        assert np.array_equal(one.weight_rows("attn_q", 1, 0, 256), kept.weight_rows("attn_q", 1, 0, 256))


def test_a_split_file(tmp_path, rng):
    shape = Shape(256, 256, 2, 4, 2, 40, 64)
    tensors = ggufs.random_tensors(rng, shape, "F32")
    ggufs.write(tmp_path / "whole.gguf", shape, tensors)
    names = list(tensors)
    for part in range(3):
        own = {name: tensors[name] for name in names[part::3]}
        split = {"split.no": part, "split.count": 3, "split.tensors.count": len(names)}
        ggufs.write(tmp_path / f"m-{part + 1:05}-of-00003.gguf", shape, own, metadata=split)
    for source, out in (("whole.gguf", "a.gguf"), ("m-00001-of-00003.gguf", "b.gguf")):
        llama2c.quantize(tmp_path / source, tmp_path / out, "Q4_K")
    one, other = (Transformer(tmp_path / out) for out in ("a.gguf", "b.gguf"))
    assert np.array_equal(Session(one).prefill_all([1, 2, 3]), Session(other).prefill_all([1, 2, 3]))
    assert not any(key.startswith("split.") for key, _ in read_gguf_entries(tmp_path / "b.gguf"))
    with pytest.raises(ValueError, match="it is the file to read"):
        llama2c.quantize(tmp_path / "m-00001-of-00003.gguf", tmp_path / "m-00002-of-00003.gguf", "Q4_K", overwrite=True)


def test_threads_give_equal_bytes(data_file, tmp_path):
    made = []
    for threads in (1, 2, 3, 4):
        result = llama2c.quantize(
            data_file("golden/llama3rope-f32.gguf"), tmp_path / f"{threads}.gguf", "Q3_K_M", threads=threads
        )
        made.append(((tmp_path / f"{threads}.gguf").read_bytes(), result.error))
    assert all(item == made[0] for item in made)


def test_alignment_and_odd_metadata_are_kept(tmp_path, rng):
    shape = Shape(64, 96, 1, 4, 2, 50, 32)
    ggufs.write(tmp_path / "plain.gguf", shape, ggufs.random_tensors(rng, shape, "F32"))
    header = read_gguf(tmp_path / "plain.gguf")
    entries = read_gguf_entries(tmp_path / "plain.gguf")
    entries += [
        ("general.alignment", encode_value(256)),
        ("x.text", encode_value(b"\xff\x00")),
        ("x.flag", encode_value(True)),
    ]
    entries += [("x.list", encode_value([0.5, 1e30])), ("general.file_type", encode_value(99))]
    tensors = [TensorHeader(t["name"], tuple(t["shape"]), 0, t["bytes"]) for t in header["tensors"]]
    with GGUFWriter(tmp_path / "in.gguf", entries, tensors, alignment=256) as writer:
        for t in header["tensors"]:
            writer.write((tmp_path / "plain.gguf").read_bytes()[t["offset"] : t["offset"] + t["bytes"]])
    one, other = (Transformer(tmp_path / f"{n}.gguf") for n in ("plain", "in"))
    assert np.array_equal(Session(one).prefill_all([1, 2, 3]), Session(other).prefill_all([1, 2, 3]))
    llama2c.quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    out = read_gguf(tmp_path / "out.gguf")
    assert out["alignment"] == 256 and all(t["offset"] % 256 == 0 for t in out["tensors"])
    new = read_gguf_entries(tmp_path / "out.gguf")
    assert [entry for entry in entries if entry[0] != "general.file_type"] == new[:-2]
    assert new[-2] == ("general.file_type", encode_value(7))
    assert len(gguf.GGUFReader(tmp_path / "out.gguf").tensors) == len(tensors)


def test_the_writer_checks_the_bytes(tmp_path):
    header = [TensorHeader("a", (2, 3), 0, 24)]
    with pytest.raises(ValueError, match="fewer bytes"), GGUFWriter(tmp_path / "a", [], header) as writer:
        writer.write(bytes(20))
    with pytest.raises(ValueError, match="more bytes"), GGUFWriter(tmp_path / "a", [], header) as writer:
        writer.write(bytes(28))
    assert not os.listdir(tmp_path)


# ---- What goes wrong ----


def test_progress(data_file, tmp_path):
    calls = []
    result = llama2c.quantize(
        data_file("golden/gqa256-f32.gguf"), tmp_path / "o.gguf", "Q8_0", progress=lambda *call: calls.append(call)
    )
    assert [tensor for _, _, tensor in calls if tensor] == list(result.tensors)
    done = [done for done, _, _ in calls]
    assert done == sorted(done) and done[-1] == calls[-1][1]


def test_an_exception_leaves_nothing(data_file, tmp_path):
    def stop(done, total, tensor):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llama2c.quantize(data_file("golden/gqa256-f32.gguf"), tmp_path / "o.gguf", "Q8_0", progress=stop)
    assert not os.listdir(tmp_path)


def test_nan_among_the_weights(tmp_path, rng):
    shape = Shape(256, 256, 2, 4, 2, 40, 64)
    tensors = ggufs.random_tensors(rng, shape, "F32")
    tensors["blk.1.ffn_up.weight"][1][3, 7] = math.nan
    ggufs.write(tmp_path / "in.gguf", shape, tensors)
    with pytest.raises(ValueError, match=r"in\.gguf: tensor blk\.1\.ffn_up\.weight, from row 0 on: value 775 is nan"):
        llama2c.quantize(tmp_path / "in.gguf", tmp_path / "o.gguf", "Q4_K")
    assert os.listdir(tmp_path) == ["in.gguf"]


def test_the_command(data_file, tmp_path, capfd):
    source, out = str(data_file("golden/gqa256-f32.gguf")), tmp_path / "o.gguf"
    assert main(["quantize", source, str(out), "Q4_K_M", "--threads", "2"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert len(lines) == 22
    assert " ".join(lines[0].split()).startswith("token_embd.weight 512 x 256 F32 -> Q4_K 72.0 KiB error 6.")
    assert lines[-1].startswith(f"{out}: 6.8 MiB -> 1.0 MiB of weights (15.4%), error 6.")
    before = out.read_bytes()
    assert main(["quantize", source, str(out), "Q8_0"]) == 1
    assert (
        capfd.readouterr().err
        == f"llama2c: error: {out}: it exists, and is replaced only if told (overwrite, --force)\n"
    )
    assert out.read_bytes() == before
    assert main(["quantize", source, str(out), "Q8_0", "--force"]) == 0
    assert main(["quantize", str(out), str(out), "Q8_0", "--force"]) == 1
    assert "it is the file to read" in capfd.readouterr().err
    assert main(["quantize", str(tmp_path / "none.gguf"), str(tmp_path / "x"), "Q8_0"]) == 1
    assert main(["quantize", source, str(tmp_path / "no" / "x"), "Q8_0"]) == 1
    assert capfd.readouterr().err.endswith(f"{tmp_path / 'no' / 'x'}: No such file or directory\n")
    with pytest.raises(SystemExit) as stopped:
        main(["quantize", source, str(tmp_path / "x"), "Q4"])
    assert stopped.value.code == 2
    assert "there are F32, F16, BF16, Q8_0" in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["o.gguf"]


COMMAND = [sys.executable, "-m", "llama2c", "quantize"]


@POSIX
@pytest.mark.slow
def test_a_kill_leaves_no_file(data_file, tmp_path):
    source = data_file("golden/llama3rope-f32.gguf")
    out = tmp_path / "o.gguf"
    for _ in range(3):
        process = subprocess.Popen([*COMMAND, source, out, "Q6_K", "--threads", "1"], stdout=subprocess.PIPE, cwd="/")
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not out.exists()
    assert len(list(tmp_path.glob("o.gguf.tmp-*"))) == 1  # each run removed what the one before had left
    llama2c.quantize(source, out, "Q6_K")
    assert os.listdir(tmp_path) == ["o.gguf"]


@POSIX
def test_a_link_to_the_source_is_the_source(data_file, tmp_path):
    (tmp_path / "link.gguf").symlink_to(data_file("golden/gqa256-f32.gguf"))
    with pytest.raises(ValueError, match=r"link\.gguf: it is the file to read"):
        llama2c.quantize(data_file("golden/gqa256-f32.gguf"), tmp_path / "link.gguf", "Q8_0", overwrite=True)


def test_another_writers_file_is_left_alone(data_file, tmp_path):
    from llama2c.new_file import NewFile

    with NewFile(tmp_path / "o.gguf") as other:
        other.write(b"at work")
        llama2c.quantize(data_file("golden/gqa256-f32.gguf"), tmp_path / "o.gguf", "Q8_0")
        assert len(os.listdir(tmp_path)) == 2
        other.overwrite = True
    assert os.listdir(tmp_path) == ["o.gguf"]
    assert (tmp_path / "o.gguf").read_bytes() == b"at work"


@POSIX
def test_a_full_disk_leaves_no_file(data_file, tmp_path):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    source, out = data_file("golden/gqa256-f32.gguf"), tmp_path / "o.gguf"
    done = subprocess.run([*COMMAND, source, out, "Q8_0"], capture_output=True, text=True, cwd="/", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr == f"llama2c: error: {out}: File too large\n"
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_no_gguf_package_at_run_time():
    code = "import sys, llama2c.quantization, llama2c.cli.quantize; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path("/"), check=False).returncode == 0
