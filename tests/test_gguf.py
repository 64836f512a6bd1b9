"""GGUF: every type's weights to the bit, logits no further from float64 than llama.cpp's, hostile files refused."""

import os
import struct
from pathlib import Path

import gguf
import ggufs
import numpy as np
import pytest
from ggufs import GOLDEN
from oracle import TILES, WORDS, Shape

import llama2c
from llama2c import FormatError, Session, Transformer, UnsupportedError, load_tokenizer
from llama2c._core import read_config, read_gguf
from llama2c.cli import main

SHAPE = Shape(256, 512, 2, 4, 2, 64, 128)


def nmse(got: np.ndarray, exact: np.ndarray) -> float:
    difference = got.astype(np.float64) - exact
    return float((difference**2).sum() / (exact.astype(np.float64) ** 2).sum())


# ---- Weights and logits ----


@pytest.mark.parametrize("name", GOLDEN)
def test_weights_of_real_files(data_file, name):
    """Every row of every matrix that llama.cpp's tool wrote, against the gguf package's own dequantisation."""
    path = data_file(f"golden/{name}.gguf")
    transformer = Transformer(path)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.removesuffix(".weight").split(".")
        rows = np.atleast_2d(expected)
        got = [transformer.weight_row(parts[-1], int(parts[1]) if len(parts) > 2 else 0, r) for r in range(len(rows))]
        assert np.array_equal(np.stack(got).view(np.uint32), rows.view(np.uint32)), tensor.name


@pytest.mark.parametrize("name", ggufs.TYPES)
def test_weights_of_random_bits(tmp_path, rng, name):
    """Blocks that no quantiser would write."""
    path = tmp_path / "model.gguf"
    tensors = ggufs.random_tensors(rng, SHAPE, name)
    ggufs.write(path, SHAPE, tensors)
    transformer = Transformer(path)
    _, stored = tensors["output.weight"]
    expected = gguf.quants.dequantize(stored, ggufs.kind(name)).astype(np.float32)
    got = np.stack([transformer.weight_row("output", 0, r) for r in range(SHAPE.vocab_size)])
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("name", GOLDEN)
def test_error_is_at_most_llama_cpps(data_file, isa, name):
    family, _, kind = name.partition("-")
    stored = np.load(data_file(f"golden/{family}-logits.npz"))
    exact, theirs = stored[f"f64_{kind}"], stored[f"lcpp_{kind}"]
    transformer = Transformer(data_file(f"golden/{name}.gguf"), isa=isa)
    tokens = stored["tokens"].tolist()
    prompt = Session(transformer, threads=2).prefill_all(tokens)
    session = Session(transformer)
    generated = np.stack([session.step(token) for token in tokens])
    ratio = 0.7 if "_K" in kind or kind == "IQ4_XS" else 1.05
    bound = 1e-9 if kind == "f32" else ratio * nmse(theirs, exact)
    assert nmse(generated, exact) <= bound
    if isa in TILES:
        bound = ggufs.tiles_bound(kind, nmse(theirs, exact))
    elif kind in ("F16", "BF16"):  # in f32; of an F16 file the keys and values have the larger part
        bound = (0.5 if kind == "F16" else 0.02) * nmse(theirs, exact)
    elif isa in WORDS and kind != "f32":  # activations of 12 bits, not 8
        bound = 0.02 * nmse(theirs, exact)
    assert nmse(prompt, exact) <= bound


@pytest.mark.parametrize("name", ggufs.TYPES)
def test_levels_agree_to_the_bit(tmp_path, rng, name):
    path = tmp_path / "model.gguf"
    # odd shapes: rows of 288 are nine blocks of 32, the K types need multiples of 256
    shape = SHAPE if gguf.GGML_QUANT_SIZES[ggufs.kind(name)][0] == 256 else Shape(288, 416, 2, 6, 2, 70, 64)
    ggufs.write(path, shape, ggufs.random_tensors(rng, shape, name))
    tokens = rng.integers(0, shape.vocab_size, 21).tolist()
    results = []
    for isa in llama2c.available_isas():
        session = Session(Transformer(path, isa=isa), threads=2)
        generated = [session.step(token) for token in tokens[:3]]
        session.rewind(0)
        prompt = session.prefill_all(tokens)
        assert np.isfinite(prompt).all()
        results.append((prompt, session.step(3), generated))
    integer = name not in ("F32", "F16", "BF16", "IQ3_S", "TQ1_0")
    for isa, (prompt, step, generated) in zip(llama2c.available_isas(), results, strict=True):
        assert np.array_equal(generated, results[0][2])
        if name == "F32" or (isa not in TILES and not (isa in WORDS and integer)):
            assert np.array_equal(prompt, results[0][0])
            assert np.array_equal(step, results[0][1])
        if integer and isa not in TILES + WORDS:
            assert np.array_equal(prompt[:3], np.stack(generated))


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_text(data_file, capfdbinary, isa, threads):
    path = data_file("models/stories260K.gguf")
    assert main(["run", str(path), "-t", "0", "-n", "256", "--isa", isa, "--threads", str(threads)]) == 0
    assert capfdbinary.readouterr().out == data_file("expected/stories260K_greedy.txt").read_bytes()


def test_the_same_bits_as_the_bin_file(data_file, rng):
    tokens = rng.integers(0, 512, 50).tolist()
    one, other = (llama2c.load(data_file(f"models/stories260K.{suffix}")) for suffix in ("gguf", "bin"))
    assert np.array_equal(one.logits(tokens), other.logits(tokens))


def test_mixed_types(tmp_path, rng, isa):
    """Each matrix of its own type; the logits are those of the same weights in F32, but for int8 activations."""
    tensors, plain = {}, {}
    names = [name for name in ggufs.TYPES if name != "F32"]
    for i, (tensor, size) in enumerate(ggufs.tensor_shapes(SHAPE).items()):
        name = "F32" if len(size) == 1 else names[i % len(names)]
        stored = np.ones(size, np.float32) if len(size) == 1 else ggufs.random_blocks(rng, name, *size)
        tensors[tensor] = (name, stored)
        plain[tensor] = ("F32", gguf.quants.dequantize(stored, ggufs.kind(name)).astype(np.float32))
    ggufs.write(tmp_path / "mixed.gguf", SHAPE, tensors)
    ggufs.write(tmp_path / "plain.gguf", SHAPE, plain)
    tokens = rng.integers(0, SHAPE.vocab_size, 12).tolist()
    got, exact = (Session(Transformer(tmp_path / f"{n}.gguf", isa=isa)).prefill_all(tokens) for n in ("mixed", "plain"))
    assert nmse(got, exact) < 2e-3


def test_a_head_size_of_its_own(tmp_path, rng):
    """llama.attention.key_length: queries are wider than the residual stream."""
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")
    for i in range(SHAPE.n_layers):
        for name, rows, cols in (("q", 512, 256), ("k", 256, 256), ("v", 256, 256), ("output", 256, 512)):
            tensors[f"blk.{i}.attn_{name}.weight"] = ("F32", ggufs.random_blocks(rng, "F32", rows, cols))
    lengths = {"llama.attention.key_length": 128, "llama.attention.value_length": 128}
    ggufs.write(tmp_path / "wide.gguf", SHAPE, tensors, metadata=lengths)
    transformer = Transformer(tmp_path / "wide.gguf")
    assert transformer.config["head_dim"] == 128
    one = Session(transformer).prefill_all([1, 2, 3])
    session = Session(transformer)
    two = np.stack([session.step(token) for token in (1, 2, 3)])
    assert nmse(one, two) < 1e-9


def test_rope_scaling_and_theta(tmp_path, rng):
    """A factor of 1 changes nothing, one of 2 puts position 2p where p was."""
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")

    def logits(tokens: list[int], **metadata: object) -> np.ndarray:
        path = tmp_path / "model.gguf"
        ggufs.write(path, SHAPE, tensors, metadata={key.replace("__", "."): value for key, value in metadata.items()})
        return Session(Transformer(path)).prefill_all(tokens)

    plain = logits([1, 2, 3])
    linear = {"llama__rope__scaling__type": "linear"}
    assert np.array_equal(logits([1, 2, 3], **linear, llama__rope__scaling__factor=1.0), plain)
    assert not np.array_equal(logits([1, 2, 3], **linear, llama__rope__scaling__factor=2.0), plain)
    assert np.array_equal(logits([1, 2, 3], llama__rope__freq_base=10000.0), plain)
    assert not np.array_equal(logits([1, 2, 3], llama__rope__freq_base=500000.0), plain)


# ---- Split files ----


def split(path: Path, tmp_path: Path, n_parts: int) -> list[Path]:
    """The file's tensors dealt out to parts, the metadata in the first one."""
    reader = gguf.GGUFReader(path)
    paths = [tmp_path / f"model-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(n_parts)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        if i == 0:
            for field in reader.fields.values():
                if field.name.startswith(("GGUF.", "general.architecture")):
                    continue
                kind, *rest = field.types
                writer.add_key_value(field.name, field.contents(), kind, rest[0] if rest else None)
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n_parts)
        for tensor in reader.tensors[i::n_parts]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_split_files(data_file, tmp_path, rng):
    path = data_file("golden/llama3rope-Q4_K_M.gguf")
    paths = split(path, tmp_path, 3)
    tokens = rng.integers(0, 512, 20).tolist()
    whole, parts = llama2c.load(path), llama2c.load(paths[0])
    assert np.array_equal(whole.logits(tokens), parts.logits(tokens))
    assert read_config(paths[0]) == read_config(path)
    assert len(parts.tokenizer) == 512
    with pytest.raises(UnsupportedError, match=r"part 2 of 3: open the first, which ends in -00001-of-00003.gguf"):
        Transformer(paths[1])
    paths[2].rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError):
        Transformer(paths[0])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(FormatError, match="part 3 of 3: it says that it is part 2 of 3"):
        Transformer(paths[0])
    paths[2].write_bytes((tmp_path / "kept").read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"part 3 of 3: tensor .* not all of it"):
        Transformer(paths[0])
    renamed = paths[0].rename(tmp_path / "other.gguf")
    with pytest.raises(FormatError, match=r"expected a name that ends in -00001-of-00003.gguf"):
        Transformer(renamed)


# ---- What is refused ----

REFUSED = [
    ({"general.architecture": None}, FormatError, "general.architecture"),
    ({"llama.expert_count": 8}, UnsupportedError, "mixture of experts"),
    ({"llama.block_count": None}, FormatError, "llama.block_count is missing"),
    ({"llama.block_count": 3}, FormatError, "llama.block_count 3 needs"),
    ({"llama.block_count": 1}, FormatError, "llama.block_count is 1"),
    ({"llama.block_count": 70000}, FormatError, "llama.block_count is 70000, expected 1 to 65536"),
    ({"llama.embedding_length": 128}, FormatError, r"has dimensions \[256, 64, 1, 1\], expected \[128, 64\]"),
    ({"llama.embedding_length": "256"}, FormatError, "llama.embedding_length is STRING, expected one integer"),
    ({"llama.embedding_length": 0}, FormatError, "llama.embedding_length is 0"),
    ({"llama.attention.head_count": 3}, FormatError, "head_count"),
    ({"llama.attention.head_count_kv": 3}, FormatError, "head_count_kv is 3, expected a divisor"),
    ({"llama.attention.head_count_kv": [2, 1]}, FormatError, "an array of INT32, expected one integer"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, FormatError, "epsilon nan"),
    ({"llama.attention.layer_norm_rms_epsilon": 1}, FormatError, "UINT32, expected FLOAT32"),
    ({"llama.rope.freq_base": -1.0}, FormatError, "freq_base -1"),
    ({"llama.rope.scaling.type": "yarn"}, UnsupportedError, '"yarn"; "none" and "linear"'),
    ({"llama.rope.dimension_count": 32}, UnsupportedError, "dimension_count is 32"),
    ({"llama.attention.sliding_window": -1.0}, FormatError, "sliding_window is FLOAT32, expected one integer"),
    ({"general.alignment": 24}, FormatError, "general.alignment is 24, expected a power of two"),
    ({"general.alignment": 4}, FormatError, "general.alignment is 4, expected 8"),
    ({"split.no": 3, "split.count": 2}, FormatError, "split.no is 3, expected 0 to 1"),
]


@pytest.mark.parametrize(("metadata", "error", "message"), REFUSED)
def test_unsuitable_metadata(tmp_path, rng, metadata, error, message):
    path = tmp_path / "model.gguf"
    if "general.architecture" in metadata:
        ggufs.write(path, SHAPE, ggufs.random_tensors(rng, SHAPE, "F32"))
        path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectuse"))
    else:
        ggufs.write(path, SHAPE, ggufs.random_tensors(rng, SHAPE, "F32"), metadata=metadata)
    with pytest.raises(error, match=message) as caught:
        Transformer(path)
    assert str(path) in str(caught.value)


def test_equal_elements_are_one_number(tmp_path, rng):
    path = tmp_path / "model.gguf"
    heads = {"llama.attention.head_count_kv": [2, 2], "llama.attention.sliding_window": 4096}
    ggufs.write(path, SHAPE, ggufs.random_tensors(rng, SHAPE, "F32"), metadata=heads)
    assert Transformer(path).config["n_kv_heads"] == 2


def test_other_architectures_and_types_are_named(tmp_path, rng):
    path = tmp_path / "model.gguf"
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")
    ggufs.write(path, SHAPE, tensors, architecture="qwen2")
    with pytest.raises(UnsupportedError, match='is "qwen2"; "llama" is supported'):
        Transformer(path)
    for name, size in (("IQ2_XXS", 66), ("Q8_K", 292), ("IQ1_S", 50)):
        ffn = np.zeros((512, size), np.uint8)
        ggufs.write(path, SHAPE, {**tensors, "blk.0.ffn_up.weight": (name, ffn)})
        with pytest.raises(
            UnsupportedError, match=f"blk.0.ffn_up.weight is of type {name}; supported are F32, F16, .*TQ2_0"
        ):
            Transformer(path)
        assert any(t["type"] == name for t in read_gguf(path)["tensors"])  # what it is can still be told


def test_tensors_that_do_not_fit(tmp_path, rng):
    path = tmp_path / "model.gguf"
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")
    cases = {
        "tensor blk.1.ffn_up.weight is missing": {
            **{k: v for k, v in tensors.items() if k != "blk.1.ffn_up.weight"},
            "rope_freqs.weight": ("F32", np.ones(32, np.float32)),
        },
        "tensor blk.0.attn_q.bias is none that a Llama has here": {
            **tensors,
            "blk.0.attn_q.bias": ("F32", np.ones(256, np.float32)),
        },
        "tensor blk.2.ffn_up.weight: llama.block_count is 2": {
            **tensors,
            "blk.2.ffn_up.weight": tensors["blk.1.ffn_up.weight"],
        },
        "attn_norm.weight is of type F16, expected F32": {
            **tensors,
            "blk.0.attn_norm.weight": ("F16", np.ones(256, np.float16)),
        },
        "expected 32 values of F32": {**tensors, "rope_freqs.weight": ("F32", np.ones(16, np.float32))},
        "value 0 is 0, expected a positive one": {**tensors, "rope_freqs.weight": ("F32", np.zeros(32, np.float32))},
        "token_embd.weight is missing": {k: v for k, v in tensors.items() if k != "token_embd.weight"},
    }
    for message, changed in cases.items():
        ggufs.write(path, SHAPE, changed)
        with pytest.raises((FormatError, UnsupportedError), match=message):
            Transformer(path)


def test_a_tensor_twice(data_file, tmp_path):
    raw = data_file("models/stories260K.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(raw.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    with pytest.raises(FormatError, match=r"blk.0.attn_q.weight is there twice"):
        Transformer(path)


def header_size(path: Path) -> int:
    return min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors)


def test_every_truncation_is_refused(data_file, tmp_path, rng):
    """Of the header every one, of the data a thousand."""
    source = data_file("models/stories260K.gguf")
    raw, header = source.read_bytes(), header_size(source)
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    cuts = [*rng.integers(header, len(raw), 1000).tolist(), *range(header)]
    for size in sorted(set(cuts), reverse=True):
        os.truncate(path, size)
        with pytest.raises(FormatError) as caught:
            read_config(path)
        assert str(caught.value).startswith(str(path))
    assert header > 10000


def test_flipped_bits_are_refused_or_harmless(data_file, tmp_path, rng):
    source = data_file("models/stories260K.gguf")
    raw, header = bytearray(source.read_bytes()), header_size(source)
    path = tmp_path / "model.gguf"
    refused = 0
    for bit in rng.integers(0, 8 * header, 1500).tolist():
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        raw[bit // 8] ^= 1 << bit % 8
        try:
            llm = llama2c.load(path, context=16)
            llm.logits([1, 2, 3])
            load_tokenizer(path).encode("Once upon a time")
        except (FormatError, llama2c.TokenizerError):
            refused += 1
    assert refused > 20


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_absurd_claims_are_refused(tmp_path):
    """Files of a few bytes that claim exabytes."""
    path = tmp_path / "model.gguf"
    most = 2**64 - 1
    start = b"GGUF" + struct.pack("<I", 3)
    tensor = text(b"token_embd.weight") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0)
    claims = [
        start + struct.pack("<QQ", most, 0),
        start + struct.pack("<QQ", 0, most),
        start + struct.pack("<QQ", 1 << 40, 1 << 40),
        start + struct.pack("<QQ", 0, 1) + struct.pack("<Q", most),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<IIQ", 9, 8, most),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<IIQ", 9, 12, most // 8),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<IIQ", 9, 9, 1),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<IQ", 8, most),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<I", 13),
        start + struct.pack("<QQ", 0, 1) + text(b"key") + struct.pack("<IB", 7, 2),
        start + struct.pack("<QQ", 1, 0) + tensor,
        start + struct.pack("<QQ", 1, 0) + text(b"x") + struct.pack("<IQQIQ", 2, most, most, 0, 0),
        start + struct.pack("<QQ", 1, 0) + text(b"x") + struct.pack("<IQQIQ", 2, 0, 5, 0, 0),
        start + struct.pack("<QQ", 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 32, 0, 16),
        start + struct.pack("<QQ", 1, 0) + text(b"x") + struct.pack("<IQIQ", 1, 31, 2, 0),
        start + struct.pack("<QQ", 1, 0) + text(b"x") + struct.pack("<I", 5),
        b"GGUF" + struct.pack(">I", 3) + struct.pack("<QQ", 0, 0),
        b"GGUF" + struct.pack("<I", 1) + struct.pack("<QQ", 0, 0),
        start + struct.pack("<QQ", 0, 0),
        b"GGUF",
    ]
    for claim in claims:
        for padding in (0, 1000):
            path.write_bytes(claim + bytes(padding))
            with pytest.raises(FormatError) as caught:
                Transformer(path)
            assert "GGUF" in claim.decode("latin-1") and str(path) in str(caught.value)
            with pytest.raises(FormatError):
                load_tokenizer(path)


# ---- Tokenizers and info ----


def test_the_vocabulary_of_a_model(data_file, rng):
    ours = load_tokenizer(data_file("models/stories260K.gguf"))
    other = load_tokenizer(data_file("models/tok512.bin"))
    assert (len(ours), ours.bos, ours.eos, ours.unk) == (512, 1, 2, 0)
    for _ in range(300):
        sample = "".join(chr(c) for c in rng.integers(32, 0x250, 20))
        assert ours.encode(sample) == other.encode(sample)
        assert ours.decode(ours.encode(sample)) == sample


def test_settings_of_a_vocabulary(tmp_path, rng):
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "\u2581", "ab"] + [f"x{i}" for i in range(57)],
        "tokenizer.ggml.scores": [0.0] * 64,
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 61,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    tensors = ggufs.random_tensors(rng, SHAPE, "F32")

    def made(**changes: object) -> llama2c.Tokenizer:
        path = tmp_path / "model.gguf"
        changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        ggufs.write(path, SHAPE, tensors, metadata={**vocabulary, **changes})
        return load_tokenizer(path)

    assert made().encode("ab") == [1, 5, 6]
    assert made(add_space_prefix=False).encode("ab") == [1, 6]
    assert made(add_bos_token=False, add_eos_token=True).encode("ab") == [5, 6, 2]
    assert made(add_bos_token=False).encode("ab", bos=True) == [1, 5, 6]
    assert made(bos_token_id=2**32 - 1).bos == -1
    for changes, message in [
        ({"model": "t5"}, '"t5"'),
        ({"model": None}, "no tokenizer"),
        ({"scores": [0.0] * 63}, "64, 63 and 64 elements"),
        ({"token_type": [9] * 64}, "type is 9"),
        ({"tokens": [1] * 64}, "an array of INT32, expected an array of STRING"),
        ({"bos_token_id": "1"}, "STRING, expected one integer"),
    ]:
        with pytest.raises(FormatError, match=message):
            made(**changes)


def test_a_byte_level_vocabulary(data_file):
    """llama.cpp's own vectors for Llama 3, from the file's metadata alone."""
    path = data_file("tokenizers/ggml-vocab-llama-bpe.gguf")
    ours = load_tokenizer(path)
    assert (len(ours), ours.bos, ours.eos, ours.add_bos) == (128256, 128000, 128001, True)
    texts = path.with_name(path.name + ".inp").read_bytes().split(b"\n__ggml_vocab_test__\n")[:-1]
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    for sample, line in zip(texts, lines, strict=True):
        assert ours.encode(sample, bos=False) == [int(token) for token in line.split()], sample
    assert ours.encode("<|eot_id|>", special=True) == [128000, 128009]
    assert len(ours.encode("<|eot_id|>")) > 2


def test_a_vocabulary_without_a_model(data_file):
    path = data_file("tokenizers/ggml-vocab-llama-spm.gguf")
    with pytest.raises(FormatError, match="a vocabulary without a model"):
        Transformer(path)
    assert len(load_tokenizer(path)) == 32000


def test_info(data_file, capfd):
    assert main(["info", str(data_file("golden/llama3rope-Q4_K_M.gguf"))]) == 0
    out = capfd.readouterr().out
    for expected in ("GGUF v3", "mostly Q4_K", "rope_theta 500000", "FLOAT32[512]", "blk.1.attn_v.weight", "Q6_K"):
        assert expected in out
    assert max(map(len, out.splitlines())) <= 160


def test_header_as_data(data_file):
    path = data_file("models/stories260K.gguf")
    header, fields = read_gguf(path), gguf.GGUFReader(path).fields
    assert (header["version"], header["alignment"], len(header["tensors"])) == (3, 32, 48)
    for item in header["metadata"]:
        assert item["value"] == fields[item["key"]].contents()
    assert all(len(item["value"]) == 5 for item in read_gguf(path, longest=5)["metadata"] if item["type"] == "ARRAY")
