"""safetensors files: the package of that name and ours read what the other writes, and nothing else is taken."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llama2c import FormatError
from llama2c.formats.safetensors import BFloat16, read_header, write_safetensors

TYPES = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__")
ARRAYS = st.sampled_from(TYPES).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=6)
PROPERTY = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def package():
    """The package safetensors."""
    return pytest.importorskip("safetensors.numpy")


def contents(path):
    """The tensors of a file by what read_header tells of them."""
    data, names = path.read_bytes(), {value: key for key, value in DTYPES.items()}
    return {
        tensor.name: np.frombuffer(data, names[tensor.dtype], int(np.prod(tensor.shape)), tensor.offset).reshape(
            tensor.shape
        )
        if tensor.bytes
        else np.empty(tensor.shape, names[tensor.dtype])
        for tensor in read_header(path).tensors.values()
    }


DTYPES = {"?": "BOOL"} | {kind: {"f": "F", "i": "I", "u": "U"}[kind[0]] + str(8 * int(kind[1])) for kind in TYPES[:-1]}


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype and array.shape == other[name].shape
        assert array.tobytes() == other[name].tobytes()


@PROPERTY
@given(TENSORS, st.dictionaries(NAMES, NAMES, max_size=3))
def test_the_package_reads_what_is_written(tmp_path, package, tensors, metadata):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, metadata=metadata, overwrite=True)
    same(package.load(path.read_bytes()), tensors)
    same(contents(path), tensors)
    assert read_header(path).metadata == metadata
    for tensor in read_header(path).tensors.values():
        assert tensor.offset % tensors[tensor.name].itemsize == 0


@PROPERTY
@given(TENSORS, st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_the_package_writes_is_read(tmp_path, package, tensors, metadata):
    path = tmp_path / "a.safetensors"
    path.write_bytes(package.save(tensors, metadata or None))
    same(contents(path), tensors)
    assert read_header(path).metadata == metadata


def test_bfloat16_layouts_and_byte_orders(tmp_path):
    """Views and foreign byte orders are written as their values; bits of bfloat16 as they are."""
    path = tmp_path / "a.safetensors"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    bits = (matrix.view(np.uint32) >> 16).astype(np.uint16)
    tensors = [("half", np.float16(3)), ("b", BFloat16(bits)), ("t", matrix.T), ("big", matrix.astype(">f4"))]
    write_safetensors(path, ((name, value) for name, value in tensors))
    header = read_header(path)
    assert [tensor.name for tensor in header.tensors.values()] == ["t", "big", "half", "b"]  # the wide ones first
    assert header.tensors["b"].dtype == "BF16" and header.tensors["b"].shape == (3, 4)
    data = path.read_bytes()
    assert data[header.tensors["b"].offset :][: 2 * bits.size] == bits.tobytes()
    assert data[header.tensors["t"].offset :][: matrix.nbytes] == matrix.T.tobytes()
    assert data[header.tensors["big"].offset :][: matrix.nbytes] == matrix.tobytes()
    assert header.metadata == {} and data[8:].index(b"}}") > 0 and struct.unpack_from("<Q", data)[0] % 8 == 0


def test_refusals_of_the_writer(tmp_path):
    path = tmp_path / "a.safetensors"
    one = np.ones(3, np.float32)
    for tensors, message in (
        ([("a", one), ("a", one)], "tensor a: given twice"),
        ([("__metadata__", one)], "tensor __metadata__: a name of the format"),
        ([("a", np.array(["text"]))], "tensor a: <U4, which the format does not have"),
        ([("a", BFloat16(one))], "tensor a: bits of bfloat16 are float32, expected uint16"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="tensor") as caught:
            write_safetensors(path, tensors)
        assert str(caught.value) == message
    with pytest.raises(ValueError, match="metadata: expected strings"):
        write_safetensors(path, {"a": one}, metadata={"step": 7})  # type: ignore[dict-item]
    write_safetensors(path, {"a": one})
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_safetensors(path, {"b": one})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {
    "empty": (b"", "it has 0 bytes, expected 8"),
    "short": (b"1234567", "it has 7 bytes, expected 8"),
    "no safetensors": (b"\xff" * 100, f"offset 0: a header of {2**64 - 1} bytes, expected at most 100000000"),
    "cut header": (file_of({"a": tensor(0, 8)})[:20], "but the file has 20: cut off?"),
    "no object": (file_of([1]), "offset 8: expected {, got"),
    "space before it": (file_of(b" {}"), "offset 8: expected {, got"),
    "no header": (file_of(b""), "offset 8: expected {, got b''"),
    "no json": (file_of(b"{]"), "the header at offset 8: not JSON"),
    "deep": (file_of(b'{"a":' + b"[" * 100_000), "the header at offset 8: not JSON"),
    "no utf-8": (file_of(b'{"\xff":1}'), "offset 10: not UTF-8"),
    "NaN": (file_of(b'{"a":NaN}'), "NaN is no JSON"),
    "a tensor twice": (file_of(b'{"a":1,"b":2,"a":3}'), 'key "a" is there twice'),
    "a key twice": (file_of(b'{"a":{"dtype":"F32","dtype":"F16"}}'), 'key "dtype" is there twice'),
    "metadata": (file_of({"__metadata__": []}), "__metadata__: expected an object, got []"),
    "metadata value": (file_of({"__metadata__": {"a": 1}}), "__metadata__.a: expected a string, got 1"),
    "no tensor": (file_of({"a": 1}), "tensor a: expected an object, got 1"),
    "no dtype": (file_of({"a": {"shape": [], "data_offsets": [0, 0]}}), "tensor a: no dtype"),
    "dtype": (file_of({"a": tensor(0, 8, dtype="F33")}, bytes(8)), 'tensor a: dtype is "F33", expected one of F64'),
    "dtype list": (
        file_of({"a": tensor(0, 8, dtype=["F32"])}, bytes(8)),
        'tensor a: dtype is ["F32"], expected one of',
    ),
    "negative": (file_of({"a": tensor(0, 8, (-2,))}, bytes(8)), "tensor a: shape is [-2], expected a list of integers"),
    "a fraction": (file_of({"a": tensor(0, 8, (2.0,))}, bytes(8)), "tensor a: shape is [2.0], expected"),
    "true": (file_of({"a": tensor(0, 4, (True,))}, bytes(4)), "tensor a: shape is [true], expected"),
    "huge": (file_of({"a": tensor(0, 8, (2**70,))}, bytes(8)), f"tensor a: shape is [{2**70}], expected"),
    "huge product": (file_of({"a": tensor(0, 8, [2**62] * 5)}, bytes(8)), "is more than a file can hold"),
    "wrapping product": (file_of({"a": tensor(0, 0, [2**32, 2**32])}), "is more than a file can hold"),
    "huge of nothing": (file_of({"a": tensor(0, 0, [2**62] * 5 + [0])}), "is more than a file can hold"),
    "offsets": (file_of({"a": tensor(8, 0)}, bytes(8)), "tensor a: data_offsets is [8, 0], expected [begin, end]"),
    "three offsets": (
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)),
        "data_offsets is [0, 4, 8]",
    ),
    "size": (
        file_of({"a": tensor(0, 12)}, bytes(12)),
        "tensor a: data_offsets [0, 12] are 12 bytes, expected 8 for shape [2] of F32",
    ),
    "half a byte": (file_of({"a": tensor(0, 2, (3,), "F4")}, bytes(2)), "expected 2 for shape [3] of F4"),
    "cut off": (file_of({"a": tensor(0, 8)}, bytes(7)), "bytes: cut off?"),
    "overlap": (
        file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        "overlaps the one before it, expected it to begin at",
    ),
    "the same place": (file_of({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "tensor b: it lies at offsets"),
    "hole": (file_of({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)), "leaves a hole before it"),
    "hole at the start": (file_of({"a": tensor(4, 12)}, bytes(12)), "leaves a hole before it"),
    "more behind": (file_of({"a": tensor(0, 8)}, bytes(9)), "the tensors end here, expected the end of the file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"space before it"}))  # which the format forbids
def test_the_package_refuses_them_too(package, name):
    with pytest.raises(Exception):  # noqa: B017, PT011 - of many kinds
        package.load(HOSTILE[name][0])


@PROPERTY
@given(TENSORS, st.data())
def test_mutations(tmp_path, package, tensors, data):
    """A file that is changed anywhere in its header is refused, or holds what its header then says."""
    raw = bytearray(package.save(tensors))
    end = 8 + struct.unpack_from("<Q", raw)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except FormatError:
        return
    assert sum(tensor.bytes for tensor in header.tensors.values()) <= len(raw)
    assert all(tensor.offset + tensor.bytes <= len(raw) for tensor in header.tensors.values())
