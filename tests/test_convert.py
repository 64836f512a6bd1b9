"""Conversions: bit-exact round trips between formats, adapters merged, a clear word for what a format cannot hold."""

import json
import os

import adapters
import checkpoints
import ggufs
import numpy as np
import pytest
from oracle import Shape, forward, nmse
from test_tokenizer_json import pipeline, written

import llama2c
from llama2c import Session, Tokenizer, TokenizerError, Transformer, UnsupportedError
from llama2c.cli import main
from llama2c.formats.bin_writer import tokenizer_bin
from llama2c.formats.hf_writer import hf_name
from llama2c.formats.safetensors import read_header
from llama2c.weights import open_weights

SHAPE = Shape(64, 96, 3, 4, 2, 105, 80)
UNTIED = Shape(64, 96, 2, 4, 4, 105, 80, tied=False)


@pytest.fixture(params=[SHAPE, UNTIED], ids=["tied", "untied"])
def model(request, tmp_path, rng):
    """(path, shape, weights) of a version 0 file."""
    weights = checkpoints.random_weights(rng, request.param)
    path = tmp_path / "in" / "model.bin"
    path.parent.mkdir()
    checkpoints.write(path, request.param, weights, version=0)
    return path, request.param, weights


def logits(path, rng_seed=1):
    transformer = open_weights(path)
    tokens = np.random.default_rng(rng_seed).integers(0, transformer.config["vocab_size"], 20).tolist()
    return Session(transformer).prefill_all(tokens)


def weights_of(path):
    """By GGUF's names, as float32."""
    transformer = open_weights(path)
    c = transformer.config
    names = [("token_embd", 0), ("output_norm", 0), ("output", 0)]
    names += [(role, layer) for layer in range(c["n_layers"]) for role in checkpoints.LAYER]
    return {name: transformer.weight_rows(*name, 0, transformer.weight_shape(*name)[0]) for name in names}


def assert_same(one, other):
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        assert np.array_equal(values, second[name]), name
    assert np.array_equal(logits(one), logits(other))


def read_hf(folder, config):
    """The tensors of a directory as float32 by GGUF's names, rows of q and k in GGUF's order."""
    header = read_header(folder / "model.safetensors")
    tensors = {}
    for name, tensor in header.tensors.items():
        raw = np.fromfile(
            header.path, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype], -1, offset=tensor.offset
        )
        raw = raw[: int(np.prod(tensor.shape))].reshape(tensor.shape)
        values = (raw.astype("u4") << 16).view("f4") if tensor.dtype == "BF16" else raw.astype("f4")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        tensors[name] = values if heads is None else adapters.adjacent(values, config[heads])
    return tensors


# ---- Round trips ----


@pytest.mark.parametrize("version", [0, 1])
def test_bin_to_gguf_and_back(tmp_path, model, version):
    path, shape, weights = model
    llama2c.convert(path, tmp_path / "model.gguf", threads=1)
    assert Transformer(str(tmp_path / "model.gguf")).config["weight_type"] == "F32"
    assert_same(path, tmp_path / "model.gguf")
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "back.bin", version=version, threads=2)
    assert_same(path, tmp_path / "back.bin")
    read, held, _ = checkpoints.read(tmp_path / "back.bin")
    assert read == shape
    assert all(np.array_equal(held[name], weights[name]) for name in weights)
    llama2c.convert(tmp_path / "back.bin", tmp_path / "again.gguf", threads=1)
    one, other = ((tmp_path / name).read_bytes() for name in ("model.gguf", "again.gguf"))
    assert one.replace(b"model", b"again", 1)[-1000:] == other[-1000:] and len(one) == len(other)


def test_bin_to_a_directory_and_on(tmp_path, model):
    path, _, _ = model
    llama2c.convert(path, tmp_path / "hf", threads=2)
    assert_same(path, tmp_path / "hf")
    llama2c.convert(tmp_path / "hf", tmp_path / "model.gguf", threads=1)
    assert_same(path, tmp_path / "model.gguf")
    llama2c.convert(tmp_path / "hf", tmp_path / "back.bin", threads=1)
    assert_same(path, tmp_path / "back.bin")
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "again", threads=1)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


@pytest.mark.parametrize("name", ["llama3rope-BF16", "gqa256-F16"])
def test_gguf_to_a_directory_and_back(data_file, tmp_path, name):
    """Llama 3's RoPE among it, whose frequencies config.json tells in another way."""
    path = data_file(f"golden/{name}.gguf")
    llama2c.convert(path, tmp_path / "hf", threads=1)
    assert_same(path, tmp_path / "hf")
    llama2c.convert(tmp_path / "hf", tmp_path / "back.gguf", threads=1)
    assert_same(path, tmp_path / "back.gguf")


def test_version_0_has_the_tables(tmp_path, model):
    path, shape, _ = model
    llama2c.convert(path, tmp_path / "out.bin", threads=1)
    data, half = (tmp_path / "out.bin").read_bytes(), shape.context * shape.head_dim // 2
    end = len(data) - (0 if shape.tied else 4 * shape.vocab_size * shape.dim)
    cosines, sines = np.frombuffer(data[end - 8 * half : end], "<f4").reshape(2, shape.context, -1)
    angles = np.arange(shape.context)[:, None] * 10000.0 ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    np.testing.assert_allclose(cosines, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sines, np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("dims", [(128, 192, 64), (96, 160, 32), (36, 44, 4)])
def test_version_2(tmp_path, rng, dims):
    """What llama2.c's export makes of the same weights."""
    dim, hidden_dim, group_size = dims
    shape = Shape(dim, hidden_dim, 2, 2, 1, 105, 80, tied=False)
    weights = checkpoints.random_weights(rng, shape)
    checkpoints.write(tmp_path / "model.bin", shape, weights, version=1)
    result = llama2c.convert(tmp_path / "model.bin", tmp_path / "out.bin", version=2, threads=1)
    checkpoints.write(tmp_path / "expected.bin", shape, weights, version=2, group_size=group_size)
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()
    assert 0 < result.error < 0.01
    llama2c.convert(tmp_path / "out.bin", tmp_path / "f32.bin", threads=1)
    first, second = weights_of(tmp_path / "out.bin"), weights_of(tmp_path / "f32.bin")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(UnsupportedError, match="of type Q8, which is not written here"):
        llama2c.convert(tmp_path / "out.bin", tmp_path / "out.gguf")


def test_real_file(data_file, tmp_path):
    """A file of llama2.c's own comes back to the byte, but for the tables that nobody reads."""
    path = data_file("models/stories260K.bin")
    vocabulary = data_file("models/tok512.bin")
    llama2c.convert(path, tmp_path / "stories.gguf", tokenizer=vocabulary, threads=1)
    (tmp_path / "back").mkdir()
    llama2c.convert(tmp_path / "stories.gguf", tmp_path / "back" / "stories.bin", threads=1)
    one, other = path.read_bytes(), (tmp_path / "back" / "stories.bin").read_bytes()
    config = Transformer(str(path)).config
    tables = 4 * config["context"] * config["head_dim"]
    assert len(one) == len(other) and one[:-tables] == other[:-tables]
    np.testing.assert_allclose(*(np.frombuffer(data[-tables:], "<f4") for data in (one, other)), atol=1e-4)
    assert (tmp_path / "back" / "tokenizer.bin").read_bytes() == vocabulary.read_bytes()
    texts = [
        llama2c.load(file, **options).generate("One day", seed=1, max_tokens=40).text
        for file, options in ((path, {"tokenizer": vocabulary}), (tmp_path / "back" / "stories.bin", {}))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_to_a_directory(tmp_path, model, kind):
    path, shape, _ = model
    folder = tmp_path / "hf"
    llama2c.convert(path, folder, type=None if kind == "F32" else kind.lower(), threads=2)
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [config[name] for name in sizes] == [
        shape.dim,
        shape.hidden_dim,
        shape.n_layers,
        shape.n_heads,
        shape.n_kv_heads,
    ]
    assert (config["model_type"], config["tie_word_embeddings"], config["rope_scaling"]) == ("llama", shape.tied, None)
    assert (config["rms_norm_eps"], config["rope_theta"], config["vocab_size"]) == (1e-5, 10000.0, shape.vocab_size)
    llama2c.quantize(path, tmp_path / "same.gguf", kind)
    tensors = read_hf(folder, config)
    expected = weights_of(tmp_path / "same.gguf")
    for (role, layer), values in expected.items():
        name = hf_name(
            f"{role}.weight" if role in ("token_embd", "output_norm", "output") else f"blk.{layer}.{role}.weight"
        )
        if name == "lm_head.weight" and shape.tied:
            assert name not in tensors
        else:
            assert np.array_equal(np.atleast_2d(tensors[name]), values), name


def test_gguf_of_quantised_types_is_copied(tmp_path, rng):
    shape = Shape(256, 256, 1, 2, 1, 64, 64, tied=False)
    ggufs.write(tmp_path / "model.gguf", shape, ggufs.random_tensors(rng, shape, "Q4_K"))
    result = llama2c.convert(tmp_path / "model.gguf", tmp_path / "copy.gguf", threads=1)
    assert result.error == 0
    assert_same(tmp_path / "model.gguf", tmp_path / "copy.gguf")
    with pytest.raises(UnsupportedError, match="of type Q4_K: name a type, F32, F16, BF16"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "f32.bin", threads=1)
    first, second = weights_of(tmp_path / "model.gguf"), weights_of(tmp_path / "f32.bin")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_types_that_are_not_written(tmp_path, rng):
    shape = Shape(256, 256, 1, 2, 1, 64, 64, tied=False)
    ggufs.write(tmp_path / "model.gguf", shape, ggufs.random_tensors(rng, shape, "IQ4_XS"))
    with pytest.raises(UnsupportedError, match="of type IQ4_XS, which is not written here"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "copy.gguf")
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "f16.gguf", type="f16", threads=1)
    assert Transformer(str(tmp_path / "f16.gguf")).config["weight_type"] == "F16"


# ---- Adapters ----


@pytest.mark.parametrize("out", ["merged.gguf", "merged.bin"])
def test_merged_adapters(tmp_path, rng, model, out):
    """What the oracle gives for merged weights, and what the adapter gives at run time."""
    path, shape, weights = model
    pairs = adapters.random_pairs(rng, shape)
    adapter = adapters.write(tmp_path / "adapter", pairs, lora_alpha=6)
    llama2c.convert(path, tmp_path / out, lora=[(adapter, 0.5), (adapter, 0.25)], threads=1)
    expected = adapters.merged(shape, weights, pairs, 0.75 * 6 / 4)
    held = weights_of(tmp_path / out)
    for name in pairs:
        _, layer, role = name.split(".")
        np.testing.assert_allclose(held[role, int(layer)], expected[name], rtol=1e-5, atol=1e-7)
    tokens = rng.integers(0, shape.vocab_size, 30).tolist()
    got = Session(Transformer(str(tmp_path / out))).prefill_all(tokens)
    assert nmse(got, forward(shape, expected, tokens)) <= 1e-9
    beside = llama2c.load(path, lora=[(adapter, 0.75)]).logits(tokens)
    assert nmse(beside, forward(shape, expected, tokens)) <= 1e-9


def test_merged_into_a_directory(tmp_path, rng, model):
    path, shape, weights = model
    pairs = adapters.random_pairs(rng, shape)
    adapter = adapters.write(tmp_path / "adapter", pairs)
    llama2c.convert(path, tmp_path / "base", threads=1)
    llama2c.convert(tmp_path / "base", tmp_path / "merged.bin", lora=adapter, threads=1)
    llama2c.convert(path, f"{tmp_path / 'hf'}/", lora=adapter, threads=1)
    assert_same(tmp_path / "hf", tmp_path / "merged.bin")
    tensors = read_hf(tmp_path / "hf", json.loads((tmp_path / "hf" / "config.json").read_text()))
    expected = adapters.merged(shape, weights, pairs)
    for name in pairs:
        assert np.array_equal(tensors[hf_name(f"{name}.weight")], expected[name].astype("f4")), name


def test_merged_and_quantised(tmp_path, rng):
    """Matrices with an adapter are quantised anew, the others copied."""
    shape = Shape(256, 256, 1, 2, 1, 64, 64, tied=False)
    ggufs.write(tmp_path / "model.gguf", shape, ggufs.random_tensors(rng, shape, "Q8_0"))
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape, only=["ffn_up"], size=0.1))
    result = llama2c.convert(tmp_path / "model.gguf", tmp_path / "own.gguf", lora=adapter, threads=1)
    assert [tensor.name for tensor in result.tensors if tensor.error > 0] == ["blk.0.ffn_up.weight"]
    assert {tensor.type for tensor in result.tensors} == {"Q8_0", "F32"}
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "q4.gguf", lora=adapter, type="q4_k_m", threads=1)
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "f32.gguf", lora=adapter, type="f32", threads=1)
    llama2c.quantize(tmp_path / "f32.gguf", tmp_path / "expected.gguf", "Q4_K_M")
    assert_same(tmp_path / "q4.gguf", tmp_path / "expected.gguf")


# ---- Tokenizers ----


def spm(path, size=300):
    """A vocabulary like Llama 2's, as tokenizer.bin."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [b"p%d" % number for number in range(size - len(pieces))]
    longest = max(map(len, pieces))
    records = b"".join(
        np.float32(-number).tobytes() + np.int32(len(piece)).tobytes() + piece for number, piece in enumerate(pieces)
    )
    path.write_bytes(np.int32(longest).tobytes() + records)
    return path


@pytest.fixture
def with_tokenizer(tmp_path, rng):
    shape = Shape(32, 48, 1, 2, 1, 300, 40)
    (tmp_path / "in").mkdir()
    checkpoints.write(tmp_path / "in" / "model.bin", shape, checkpoints.random_weights(rng, shape), version=1)
    spm(tmp_path / "in" / "tokenizer.bin")
    return tmp_path / "in" / "model.bin"


def test_tokenizer_goes_along(tmp_path, with_tokenizer):
    expected = (tmp_path / "in" / "tokenizer.bin").read_bytes()
    llama2c.convert(with_tokenizer, tmp_path / "model.gguf", threads=1)
    (tmp_path / "out").mkdir()
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "out" / "model.bin", threads=1)
    assert (tmp_path / "out" / "tokenizer.bin").read_bytes() == expected
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "out" / "two.bin", threads=1)  # beside the same one
    other = bytearray(expected)
    other[-1] ^= 1
    (tmp_path / "out" / "tokenizer.bin").write_bytes(other)
    with pytest.raises(FileExistsError, match=r"tokenizer\.bin"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "out" / "three.bin", threads=1)
    assert not (tmp_path / "out" / "three.bin").exists()
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "out" / "three.bin", threads=1, overwrite=True)
    assert (tmp_path / "out" / "tokenizer.bin").read_bytes() == expected


def test_tokenizer_json_goes_along(tmp_path, rng):
    value = pipeline("llama-bpe")
    size = len(value["model"]["vocab"]) + 1
    shape = Shape(32, 64, 1, 2, 1, size, 64)
    checkpoints.write(tmp_path / "model.bin", shape, checkpoints.random_weights(rng, shape), version=0)
    (tmp_path / "given").mkdir()
    given = written(tmp_path / "given", value)
    llama2c.convert(tmp_path / "model.bin", tmp_path / "one", tokenizer=given, threads=1)
    llama2c.convert(tmp_path / "one", tmp_path / "two", threads=1)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(os.listdir(tmp_path / "two")) == names
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    llm = llama2c.load(tmp_path / "two")
    assert (llm.tokenizer.bos, llm.tokenizer.eos) == (0, 1)


def test_vocabularies_that_tokenizer_bin_cannot_hold(tmp_path, rng):
    ggufs.write_byte_level(tmp_path / "model.gguf", rng)
    assert tokenizer_bin(Tokenizer.from_gguf(tmp_path / "model.gguf")) is None
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "model.bin", threads=1)
    assert sorted(os.listdir(tmp_path)) == ["model.bin", "model.gguf"]
    with pytest.raises(UnsupportedError, match=r"not a vocabulary that tokenizer\.bin can hold"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "two.bin", tokenizer=tmp_path / "model.gguf")
    with pytest.raises(TokenizerError, match="300 tokens"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "two.bin", tokenizer=spm(tmp_path / "t.bin"))


def test_llama_2s_vocabulary(data_file, tmp_path, rng):
    """SentencePiece's file goes into a directory as it is, and beside a checkpoint as llama2.c has it."""
    vocabulary = data_file("tokenizers/llama2/tokenizer.model")
    shape = Shape(8, 12, 1, 1, 1, 32000, 20)
    checkpoints.write(tmp_path / "model.bin", shape, checkpoints.random_weights(rng, shape), version=0)
    llama2c.convert(tmp_path / "model.bin", tmp_path / "hf", tokenizer=vocabulary, threads=1)
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == vocabulary.read_bytes()
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    llama2c.convert(tmp_path / "model.bin", tmp_path / "out.bin", tokenizer=vocabulary, threads=1)
    one, other = llama2c.load_tokenizer(vocabulary), llama2c.load_tokenizer(tmp_path / "tokenizer.bin")
    text = "Once upon a time, the 🦙 said: \n\t«hé»  \x01"
    assert one.encode(text) == other.encode(text)
    assert (tmp_path / "tokenizer.bin").read_bytes()[4 + 8 + 5 :][8:13] == b"\n<s>\n"


# ---- What a format cannot hold ----


def gguf_with(tmp_path, rng, shape=SHAPE, extra=None, **metadata):
    tensors = ggufs.random_tensors(rng, shape, "F32") | (extra or {})
    ggufs.write(tmp_path / "model.gguf", shape, tensors, metadata=metadata)
    return tmp_path / "model.gguf"


SCALED = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
REFUSED = [
    ({"llama.rope.freq_base": 1e6}, "RoPE's theta is 1e"),
    (SCALED, "frequencies are scaled"),
    ({"llama.attention.layer_norm_rms_epsilon": 1e-6}, "norm_eps is 1e-06"),
    ({"llama.attention.sliding_window": 79}, "a window of 79"),
]


@pytest.mark.parametrize(("metadata", "message"), REFUSED)
def test_what_llama2c_cannot_hold(tmp_path, rng, metadata, message):
    path = gguf_with(tmp_path, rng, **metadata)
    with pytest.raises(UnsupportedError, match=message):
        llama2c.convert(path, tmp_path / "out.bin")
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_what_makes_no_difference(tmp_path, rng):
    ones = {"rope_freqs.weight": ("F32", np.ones(SHAPE.head_dim // 2, np.float32))}
    path = gguf_with(tmp_path, rng, extra=ones, **{"llama.attention.sliding_window": 80, **SCALED, SCALED_KEY: 1.0})
    llama2c.convert(path, tmp_path / "out.bin", threads=1)
    assert np.array_equal(logits(path), logits(tmp_path / "out.bin"))


SCALED_KEY = "llama.rope.scaling.factor"


def test_heads_that_do_not_add_up(tmp_path, rng):
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")
    wide = {"attn_q": (128, 64), "attn_k": (64, 64), "attn_v": (64, 64), "attn_output": (64, 128)}
    for layer in range(SHAPE.n_layers):
        for role, size in wide.items():
            tensors[f"blk.{layer}.{role}.weight"] = ("F32", ggufs.random_blocks(rng, "F32", *size))
    keys = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    ggufs.write(tmp_path / "model.gguf", SHAPE, tensors, metadata=keys)
    with pytest.raises(UnsupportedError, match="4 heads of 32 for a dim of 64"):
        llama2c.convert(tmp_path / "model.gguf", tmp_path / "out.bin")
    llama2c.convert(tmp_path / "model.gguf", tmp_path / "hf", threads=1)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["head_dim"] == 32


def test_rope_in_config_json(tmp_path, rng):
    def config_of(extra=None, shape=SHAPE, **metadata):
        llama2c.convert(gguf_with(tmp_path, rng, shape, extra, **metadata), tmp_path / "hf", threads=1, overwrite=True)
        return json.loads((tmp_path / "hf" / "config.json").read_text())

    config = config_of(**{"llama.rope.freq_base": 5e5, "llama.attention.sliding_window": 40})
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, None)
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 40)
    assert config_of(**SCALED)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    shape = Shape(128, 96, 1, 1, 1, 105, 80)
    waves = 2 * np.pi * 5e5 ** (np.arange(64) / 64)
    share = np.clip((8192 / waves - 1) / 3, 0, 1)
    divisors = (1 / (share + (1 - share) / 32)).astype(np.float32)
    llama3 = config_of({"rope_freqs.weight": ("F32", divisors)}, shape, **{"llama.rope.freq_base": 5e5})["rope_scaling"]
    assert (llama3["rope_type"], llama3["factor"], llama3["original_max_position_embeddings"]) == ("llama3", 32.0, 8192)
    divisors[3] = 7
    with pytest.raises(UnsupportedError, match="RoPE frequencies"):
        config_of({"rope_freqs.weight": ("F32", divisors)}, shape, **{"llama.rope.freq_base": 5e5})


def test_rows_that_are_no_groups(tmp_path, rng):
    shape = Shape(30, 44, 1, 1, 1, 33, 20)
    checkpoints.write(tmp_path / "model.bin", shape, checkpoints.random_weights(rng, shape), version=0)
    with pytest.raises(UnsupportedError, match="needs multiples of 4"):
        llama2c.convert(tmp_path / "model.bin", tmp_path / "out.bin", version=2)


# ---- Arguments, files ----


def test_arguments(tmp_path, model):
    path, _, _ = model
    for name, options, message in (
        ("out.txt", {}, r"expected a name that ends in \.gguf, \.bin"),
        ("out.bin", {"type": "F16"}, "is of type F32, not F16"),
        ("out.bin", {"type": "F32", "version": 2}, "is of type Q8, not F32"),
        ("out.bin", {"version": 3}, "version is 3"),
        ("out.gguf", {"version": 1}, "version is 1"),
        ("out.gguf", {"type": "Q3"}, "no type 'Q3'"),
        ("out", {"type": "Q8_0"}, "expected F32, F16, BF16"),
        ("out", {"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            llama2c.convert(path, tmp_path / name, **options)
    with pytest.raises(ValueError, match="the file to read"):
        llama2c.convert(path, path, overwrite=True)
    with pytest.raises(FileNotFoundError):
        llama2c.convert(tmp_path / "nothing.bin", tmp_path / "out.gguf")
    assert os.listdir(tmp_path) == ["in"]


def test_nothing_is_left_of_a_failure(tmp_path, model):
    path, _, _ = model

    def interrupt(done, total, tensor):
        if done > total // 2:
            raise KeyboardInterrupt

    for name in ("out.gguf", "out.bin", "out/"):
        with pytest.raises(KeyboardInterrupt):
            llama2c.convert(path, f"{tmp_path}/{name}", threads=1, progress=interrupt)
    assert os.listdir(tmp_path) == ["in"]


def test_what_exists_is_kept(tmp_path, model):
    path, _, _ = model
    for name in ("out.gguf", "out.bin", "out/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
        target = tmp_path / name.split("/")[0]
        with pytest.raises(FileExistsError):
            llama2c.convert(path, target, threads=1)
        assert (tmp_path / name).read_text() == "mine"
        llama2c.convert(path, target, threads=1, overwrite=True)
        assert (tmp_path / name).read_bytes()[:4] != b"mine"
    (tmp_path / "out" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="a model in several files"):
        llama2c.convert(path, tmp_path / "out", overwrite=True)


def test_weights_that_are_not_finite(tmp_path, rng):
    weights = checkpoints.random_weights(rng, SHAPE)
    weights["blk.1.ffn_up"][3, 5] = np.inf
    checkpoints.write(tmp_path / "model.bin", SHAPE, weights, version=1)
    with pytest.raises(ValueError, match=r"tensor blk\.1\.ffn_up\.weight.*finite"):
        llama2c.convert(tmp_path / "model.bin", tmp_path / "out.bin", version=2)


def test_command_line(tmp_path, rng, model, capfd):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    command = ["convert", str(path), str(tmp_path / "out.bin"), "--version", "1", "--threads", "1"]
    assert main([*command, "--lora-scaled", str(adapter), "0.5"]) == 0
    assert capfd.readouterr().out.startswith(f"{tmp_path / 'out.bin'}: ")
    llama2c.convert(path, tmp_path / "same.bin", version=1, lora=[(adapter, 0.5)], threads=1)
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "same.bin").read_bytes()
    assert main(command) == 1
    assert "it exists, and is replaced only if told" in capfd.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main(["convert", str(path), str(tmp_path / "q.gguf"), "--type", "q8_0", "--threads", "1"]) == 0
    assert Transformer(str(tmp_path / "q.gguf")).config["weight_type"] == "Q8_0"


def test_directories_that_would_be_lost(tmp_path, rng):
    checkpoints.write(tmp_path / "model.bin", SHAPE, checkpoints.random_weights(rng, SHAPE), version=0)
    llama2c.convert(tmp_path / "model.bin", tmp_path / "hf")
    for form in (tmp_path / "hf", f"{tmp_path}/hf/", f"{tmp_path}/x/../hf"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="it is the directory to read"):
            llama2c.convert(tmp_path / "hf", form, overwrite=True)
    with pytest.raises(ValueError, match="is empty"):
        llama2c.convert(tmp_path / "hf", "")
    with pytest.raises(ValueError, match=r"version is 1: .bin files have versions"):
        llama2c.convert(tmp_path / "hf", tmp_path / "model.gguf", version=1)


def test_a_gguf_vocabulary_goes_into_a_directory(data_file, tmp_path):
    source = data_file("models/stories260K.gguf")
    llama2c.convert(source, tmp_path / "hf")
    one, other = llama2c.load(source), llama2c.load(tmp_path / "hf")
    assert other.tokenizer.encode("Once upon a time") == one.tokenizer.encode("Once upon a time")
    assert (tmp_path / "hf" / "tokenizer.gguf").stat().st_size < 40_000
