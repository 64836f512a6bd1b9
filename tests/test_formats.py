"""Checkpoints that are broken, hostile or huge: an exception of ours or a run, never a crash."""

import os
import shutil
import struct
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from oracle import Shape

from llama2c import FormatError, Session, Transformer, UnsupportedError
from llama2c._core import read_config

SHAPE = Shape(32, 48, 2, 4, 2, 64, 40)
MODELS = ("models/stories260K.bin", "models/stories260K_v1.bin", "models/llama2xs_v2.bin")


@pytest.fixture(params=[0, 1, 2])
def small(request, tmp_path, rng):
    path = tmp_path / "model.bin"
    weights = checkpoints.random_weights(rng, SHAPE)
    checkpoints.write(path, SHAPE, weights, version=request.param, group_size=16)
    return path


def try_to_run(path: Path) -> bool:
    """Whether the file runs; anything but an exception of ours is an error of the test."""
    try:
        transformer = Transformer(str(path))
    except FormatError as error:
        assert str(error).startswith(str(path))
        return False
    Session(transformer, context=4).prefill([1, 2])
    return True


@pytest.mark.parametrize("name", MODELS)
def test_every_truncation_is_refused(data_file, tmp_path, rng, name):
    path = tmp_path / "cut.bin"
    shutil.copyfile(data_file(name), path)
    path.chmod(0o600)
    size = path.stat().st_size
    for cut in sorted({*range(4096), *rng.integers(4096, size, 500).tolist()}, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(FormatError):
            Transformer(str(path))


@pytest.mark.parametrize("name", MODELS)
def test_every_flipped_header_bit(data_file, tmp_path, name):
    data = bytearray(data_file(name).read_bytes())
    path = tmp_path / "flipped.bin"
    path.write_bytes(data)
    header = 256 if data[:4] == struct.pack("<I", checkpoints.MAGIC) else 28
    ran = 0
    with path.open("r+b") as file:
        for bit in range(8 * header):
            data[bit // 8] ^= 1 << bit % 8
            file.seek(0)
            file.write(data[:header])
            file.flush()
            ran += try_to_run(path)
            data[bit // 8] ^= 1 << bit % 8
    # What may still run: another context (no tensor depends on it from version 1 on), other head counts, the padding.
    assert ran <= 8 * (256 - 37 if header == 256 else 0) + 40


def test_trailing_bytes_are_refused(small):
    with small.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FormatError, match="bytes, but its header"):
        Transformer(str(small))


FIELDS = {name: i for i, name in enumerate("dim hidden_dim n_layers n_heads n_kv_heads vocab_size max_seq_len".split())}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in FIELDS for value in (0, -(2**31), 2**31 - 1, 2**30 + 1)),
        ("n_heads", 3),
        ("n_heads", 32),
        ("n_kv_heads", 3),
        ("n_kv_heads", 8),
        ("dim", 33),
        ("vocab_size", 65),
    ],
)
def test_claims_are_held_against_the_size(small, field, value):
    data = bytearray(small.read_bytes())
    start = 8 if data[:4] == struct.pack("<I", checkpoints.MAGIC) else 0
    struct.pack_into("<i", data, start + 4 * FIELDS[field], value)
    small.write_bytes(data)
    if field == "max_seq_len" and value > 0 and start:
        assert read_config(str(small))["context"] == value  # no size depends on it in versions 1 and 2
        return
    with pytest.raises(FormatError):
        Transformer(str(small))
    with pytest.raises(FormatError):
        read_config(str(small))


def test_messages_name_the_place(small):
    data = bytearray(small.read_bytes())
    v0 = data[:4] != struct.pack("<I", checkpoints.MAGIC)
    struct.pack_into("<i", data, 12 if v0 else 20, 3)
    small.write_bytes(data)
    with pytest.raises(FormatError, match=rf"{small}: offset {12 if v0 else 20}: n_heads is 3, expected a divisor"):
        Transformer(str(small))


def test_other_versions_are_unsupported(tmp_path):
    path = tmp_path / "v3.bin"
    path.write_bytes(struct.pack("<Ii", checkpoints.MAGIC, 3).ljust(4096, b"\0"))
    with pytest.raises(UnsupportedError, match="version 3; versions 0, 1 and 2"):
        Transformer(str(path))


@pytest.mark.parametrize(
    ("group_size", "error"), [(0, FormatError), (-16, FormatError), (52, FormatError), (6, UnsupportedError)]
)
def test_group_sizes(tmp_path, rng, group_size, error):
    path = tmp_path / "model.bin"
    checkpoints.write(path, SHAPE, checkpoints.random_weights(rng, SHAPE), version=2, group_size=16)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 37, group_size)
    path.write_bytes(data)
    with pytest.raises(error, match="offset 37: group_size"):
        Transformer(str(path))


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Transformer(str(tmp_path / "missing.bin"))
    assert caught.value.filename == str(tmp_path / "missing.bin")
    with pytest.raises(IsADirectoryError if os.name == "posix" else OSError):
        Transformer(str(tmp_path))
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match="empty"):
        Transformer(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="null"):
        Transformer("a\0b")
    with pytest.raises(TypeError):
        Transformer(3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a regular file"):
        Transformer(str(tmp_path / "fifo"))


def test_read_into_memory(small):
    mapped, read = (Session(Transformer(str(small), mmap=mmap)).prefill([1, 2, 3]) for mmap in (True, False))
    assert np.array_equal(mapped, read)
    transformer = Transformer(str(small), mmap=False)
    small.unlink()
    assert np.array_equal(Session(transformer).prefill([1, 2, 3]), mapped)


def test_odd_names(small):
    odd = small.with_name("mødel 🦙 'x'.bin")
    small.rename(odd)
    Transformer(str(odd))
    if os.name == "posix":
        raw = os.fsencode(small.parent) + b"/\xff.bin"
        os.rename(odd, raw)
        Transformer(os.fsdecode(raw))
        Transformer(raw)


def sparse(tmp_path: Path, shape: Shape) -> Path:
    path = tmp_path / "sparse.bin"
    try:
        checkpoints.write_sparse(path, shape, 0.01)
    except OSError as error:
        pytest.skip(f"no sparse file of that size here: {error}")
    if path.stat().st_blocks * 512 > 1 << 30:
        path.unlink()
        pytest.skip("the file system has no holes")
    return path


LLAMA2_13B = Shape(5120, 13824, 40, 40, 40, 32000, 2048)
LLAMA2_70B = Shape(8192, 28672, 80, 64, 8, 32000, 2048)


@pytest.mark.parametrize("shape", [LLAMA2_13B, LLAMA2_70B], ids=["13B", "70B"])
def test_rows_past_2_to_the_31(tmp_path, shape):
    """The last row of every tensor is marked; all of a layer's copies of a tensor exceed 2**31 elements together."""
    path = sparse(tmp_path, shape)
    last = shape.n_layers - 1
    assert shape.n_layers * shape.hidden_dim * shape.dim > 2**31
    assert checkpoints_size(shape) == path.stat().st_size > 2**35
    transformer = Transformer(str(path))
    for layer in (0, last):
        for tensor in checkpoints.MATRICES:
            rows, _ = transformer.weight_shape(tensor, layer)
            assert np.all(transformer.weight_row(tensor, layer, rows - 1) == np.float32(0.01)), (tensor, layer)
            assert np.all(transformer.weight_row(tensor, layer, rows - 2) == 0)
        assert np.all(transformer.weight_row("attn_norm", layer) == 1)
    assert np.all(transformer.weight_row("output_norm") == 1)


def checkpoints_size(shape: Shape) -> int:
    values = sum(int(np.prod(dims)) for dims in checkpoints.tensor_shapes(shape).values())
    return 28 + 4 * (values + shape.context * shape.head_dim)


def test_one_tensor_past_2_to_the_31_is_computed(tmp_path):
    """An embedding of 2.2e9 elements: its last row is read as input and as classifier, right up to the last logit."""
    shape = Shape(4096, 16, 1, 32, 32, 540_000, 4)
    assert shape.vocab_size * shape.dim > 2**31
    transformer = Transformer(str(sparse(tmp_path, shape)))
    logits = Session(transformer, context=1, threads=2).prefill([shape.vocab_size - 1])
    assert np.flatnonzero(logits).tolist() == [shape.vocab_size - 1]
