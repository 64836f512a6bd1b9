"""LoRA adapters: what merged weights give, beside weights of any type, on any threads, in any batch and cut."""

import json
import os
import pickle
import shutil

import adapters
import checkpoints
import gguf
import ggufs
import numpy as np
import pytest
from oracle import Shape, forward, nmse

import llama2c
from llama2c import ROLE_GENERATED, ROLE_PROMPT, Batch, FormatError, Record, Session, Transformer, UnsupportedError
from llama2c._core import batch_bytes
from llama2c.cli import main, parser
from llama2c.formats.safetensors import write_safetensors
from llama2c.lora import adapters_of, adjacent_rows, half_rows

SHAPES = {
    "one-head": Shape(24, 52, 2, 1, 1, 105, 80),
    "head-40": Shape(160, 172, 2, 4, 2, 105, 80),
    "untied": Shape(36, 44, 3, 6, 3, 33, 80, tied=False),
}
BLOCKS = Shape(256, 512, 2, 4, 2, 128, 80, tied=False)
WIDE = Shape(256, 768, 3, 8, 2, 500, 400)  # work for four threads


def some_tokens(rng, shape, count=40):
    return rng.integers(0, shape.vocab_size, count).tolist()


def both_roles(transformer, tokens):
    """Logits of the tokens as prompt rows, and as generated rows."""
    prompt = Session(transformer, chunk=16).prefill_all(tokens)
    session = Session(transformer)
    return prompt, np.stack([session.step(token) for token in tokens])


def opened(path, lora=None, **options):
    return llama2c.load(path, lora=lora, **options).transformer


@pytest.fixture
def model(tmp_path, rng):
    """(path, shape, weights) of an F32 model."""
    shape = SHAPES["head-40"]
    weights = checkpoints.random_weights(rng, shape)
    checkpoints.write(tmp_path / "model.bin", shape, weights, version=0)
    return tmp_path / "model.bin", shape, weights


# ---- What merged weights give ----


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 19])
def test_equals_the_oracle_of_merged_weights(tmp_path, rng, isa, name, rank):
    shape = SHAPES[name]
    weights = checkpoints.random_weights(rng, shape)
    checkpoints.write(tmp_path / "model.bin", shape, weights, version=0)
    pairs = adapters.random_pairs(rng, shape, rank)
    adapter = adapters.write(tmp_path / "adapter", pairs, lora_alpha=1.5 * rank)
    tokens = some_tokens(rng, shape)
    transformer = opened(tmp_path / "model.bin", adapter, isa=isa)
    expected = forward(shape, adapters.merged(shape, weights, pairs, 1.5), tokens)
    assert nmse(forward(shape, weights, tokens), expected) > 0.1
    for rows in both_roles(transformer, tokens):
        assert nmse(rows, expected) <= 1e-9


@pytest.mark.parametrize("only", adapters.MODULES)
def test_each_matrix_alone(tmp_path, rng, model, only):
    path, shape, weights = model
    pairs = adapters.random_pairs(rng, shape, only=[only])
    del pairs[f"blk.0.{only}"]  # and not in every layer
    adapter = adapters.write(tmp_path / "adapter", pairs)
    tokens = some_tokens(rng, shape)
    expected = forward(shape, adapters.merged(shape, weights, pairs), tokens)
    for rows in both_roles(opened(path, adapter), tokens):
        assert nmse(rows, expected) <= 1e-9


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K", "IQ3_S"])
def test_beside_weights_of_other_types(tmp_path, rng, isa, kind):
    """As near to the oracle as the same weights without an adapter."""
    tensors = ggufs.random_tensors(rng, BLOCKS, kind)
    ggufs.write(tmp_path / "model.gguf", BLOCKS, tensors)
    weights = {
        name.removesuffix(".weight"): (
            gguf.quants.dequantize(data, ggufs.kind(stored)) if data.dtype == np.uint8 else data
        ).astype(np.float64)
        for name, (stored, data) in tensors.items()
    }
    pairs = adapters.random_pairs(rng, BLOCKS, 8, size=0.5)
    adapter = adapters.write(tmp_path / "adapter", pairs)
    tokens = some_tokens(rng, BLOCKS)
    path, options = tmp_path / "model.gguf", {"isa": isa, "kv_type": "f32"}
    plain = forward(BLOCKS, weights, tokens)
    merged = forward(BLOCKS, adapters.merged(BLOCKS, weights, pairs), tokens)
    assert nmse(plain, merged) > 0.1
    without, beside = both_roles(opened(path, **options), tokens), both_roles(opened(path, adapter, **options), tokens)
    for own, adapted in zip(without, beside, strict=True):
        assert nmse(adapted, merged) <= max(1e-9, 3 * nmse(own, plain))


@pytest.mark.parametrize("version", [1, 2])
def test_beside_llama2c_files(tmp_path, rng, version):
    shape = Shape(128, 192, 2, 4, 2, 96, 80)
    held = checkpoints.write(tmp_path / "model.bin", shape, checkpoints.random_weights(rng, shape), version=version)
    pairs = adapters.random_pairs(rng, shape)
    adapter = adapters.write(tmp_path / "adapter", pairs)
    tokens = some_tokens(rng, shape)
    expected = forward(shape, adapters.merged(shape, held, pairs), tokens)
    for rows in both_roles(opened(tmp_path / "model.bin", adapter), tokens):
        assert nmse(rows, expected) <= (1e-9 if version == 1 else 0.02)


def test_beside_a_hugging_face_directory(tmp_path, rng, model):
    """Whose q and k have their rows in the order of the adapter's: the bits of the base in llama2.c's order."""
    path, shape, _ = model
    llama2c.convert(path, tmp_path / "hf", threads=1)
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    tokens = some_tokens(rng, shape)
    base, other = (both_roles(opened(place, adapter), tokens) for place in (path, tmp_path / "hf"))
    for rows, expected in zip(other, base, strict=True):
        assert np.array_equal(rows, expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_types_of_adapters(tmp_path, rng, model, dtype):
    """An adapter of 16 bits gives the bits of the same numbers as F32."""
    path, shape, _ = model
    pairs = adapters.random_pairs(rng, shape)
    for key, pair in pairs.items():
        bits = [x.astype("<f2").astype("f8") if dtype == "F16" else _upper_half(x) for x in pair]
        pairs[key] = (bits[0], bits[1])
    one = opened(path, adapters.write(tmp_path / "one", pairs))
    two = opened(path, adapters.write(tmp_path / "two", pairs, dtype=dtype))
    tokens = some_tokens(rng, shape)
    for first, second in zip(both_roles(one, tokens), both_roles(two, tokens), strict=True):
        assert np.array_equal(first, second)


def _upper_half(x):
    return (x.astype("<f4").view("<u4") & 0xFFFF0000).view("<f4").astype("f8")


def test_scale(tmp_path, rng, model):
    """lora_alpha, patterns, rank-stabilised LoRA and the caller's scale, and several adapters at once."""
    path, shape, weights = model
    tokens = some_tokens(rng, shape)
    first, second = (
        adapters.random_pairs(rng, shape, 3),
        adapters.random_pairs(rng, shape, 5, only=["attn_q", "ffn_up"]),
    )
    one = adapters.write(tmp_path / "one", first, lora_alpha=6)
    two = adapters.write(
        tmp_path / "two", second, r=64, lora_alpha=9, use_rslora=True,
        rank_pattern={"mlp.up_proj": 5, "q_proj": 5}, alpha_pattern={r"layers\.1\.self_attn\.q_proj": 2.5},
    )  # fmt: skip
    expected = adapters.merged(shape, weights, first, -0.5 * 6 / 3)
    for key, pair in second.items():
        alpha = 2.5 if key == "blk.1.attn_q" else 9
        expected = adapters.merged(shape, expected, {key: pair}, alpha / np.sqrt(5))
    transformer = opened(path, [(one, -0.5), two / "adapter_model.safetensors"])
    assert transformer.config["lora_rank"] == 3 * 3 + 5
    for rows in both_roles(transformer, tokens):
        assert nmse(rows, forward(shape, expected, tokens)) <= 1e-9


def test_nothing_added_gives_the_bits_of_the_base(tmp_path, rng, model):
    path, shape, _ = model
    tokens = some_tokens(rng, shape)
    pairs = adapters.random_pairs(rng, shape)
    zero = {key: (a, 0 * b) for key, (a, b) in pairs.items()}
    base = both_roles(opened(path), tokens)
    for lora in (adapters.write(tmp_path / "zero", zero), [(adapters.write(tmp_path / "one", pairs), 0)], [], None):
        for rows, expected in zip(both_roles(opened(path, lora), tokens), base, strict=True):
            assert np.array_equal(rows, expected)


def test_orders_of_rows(rng):
    rows = rng.standard_normal((24, 3)).astype(np.float32)
    assert np.array_equal(adjacent_rows(rows, 4), adapters.adjacent(rows, 4))
    assert np.array_equal(half_rows(adjacent_rows(rows, 4), 4), rows)


# ---- The same bits for every thread, batch and cut ----


@pytest.fixture(params=[0, 2, "Q4_K"])
def adapted(request, tmp_path, rng, isa):
    """A transformer with two adapters of odd ranks, beside weights of each numeric path."""
    path = tmp_path / "model"
    if isinstance(request.param, str):
        ggufs.write(path, WIDE, ggufs.random_tensors(rng, WIDE, request.param))
    else:
        checkpoints.write(path, WIDE, checkpoints.random_weights(rng, WIDE), version=request.param)
    one = adapters.write(tmp_path / "one", adapters.random_pairs(rng, WIDE, 7, size=0.5))
    two = adapters.write(tmp_path / "two", adapters.random_pairs(rng, WIDE, 16, only=["attn_v", "ffn_down"], size=0.5))
    return opened(path, [one, (two, 0.5)], isa=isa)


def test_threads_and_cuts(adapted, rng, isa):
    tokens = some_tokens(rng, WIDE, 20 if isa == "scalar" else 80)
    first = Session(adapted, threads=1, chunk=100).prefill_all(tokens)
    for threads, chunk in ((2, 100), (3, 100), (4, 7), (2, 1), (4, 32)):
        rows = Session(adapted, threads=threads, chunk=chunk).prefill_all(tokens)
        assert np.array_equal(rows, first), (threads, chunk)
    stepped = []
    for threads in (1, 2, 3, 4):
        session = Session(adapted, threads=threads)
        session.prefill(tokens[:5])
        stepped.append(np.stack([session.step(token) for token in tokens[5:15]]))
        branch = session.fork(9)
        assert np.array_equal(branch.step(tokens[9]), stepped[-1][4])
    for rows in stepped[1:]:
        assert np.array_equal(rows, stepped[0])


def test_rows_beside_others(adapted, rng):
    tokens = rng.integers(0, WIDE.vocab_size, (5, 12)).tolist()
    alone = []
    for ids in tokens:
        session = Session(adapted)
        session.prefill(ids[:5])
        alone.append([session.step(token) for token in ids[5:]])
    sessions, batch = [Session(adapted) for _ in tokens], Batch(adapted, rows=32, threads=3)
    for session, ids in zip(sessions, tokens, strict=True):
        session.prefill(ids[:5])
    for i in range(5, 12):
        spans = [(session, [ids[i]], ROLE_GENERATED, False) for session, ids in zip(sessions, tokens, strict=True)]
        if i == 8:
            spans.insert(0, (Session(adapted), tokens[0][:9], ROLE_PROMPT, True))
        rows = batch.step(spans)[9 if i == 8 else 0 :]
        for row, expected in zip(rows, alone, strict=True):
            assert np.array_equal(row, expected[i - 5])


def test_every_level_gives_the_same_bits(tmp_path, rng, model):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    tokens = some_tokens(rng, shape)
    levels = [both_roles(opened(path, adapter, isa=isa), tokens) for isa in llama2c.available_isas()]
    for level in levels[1:]:
        assert np.array_equal(level[0], levels[0][0]) and np.array_equal(level[1], levels[0][1])


# ---- Figures, options, records ----


def test_figures_include_adapters(tmp_path, rng, model):
    path, shape, _ = model
    pairs = adapters.random_pairs(rng, shape, 3)
    base, with_adapter = opened(path), opened(path, adapters.write(tmp_path / "adapter", pairs))
    values = sum(a.size + b.size for a, b in pairs.values())
    assert (base.config["lora_rank"], with_adapter.config["lora_rank"]) == (0, 9)
    for name, unit in (("weight_bytes", 4), ("token_bytes", 4), ("token_macs", 1)):
        assert getattr(with_adapter, name) - getattr(base, name) == unit * values
    assert batch_bytes(path, 7) > 0  # of the file, without adapters


def test_options_and_pickle(tmp_path, rng, model, monkeypatch):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    monkeypatch.chdir(tmp_path)
    llm = llama2c.load("model.bin", lora=["adapter", ("adapter", 0.5)])
    assert llm.options["lora"] == (("adapter", 1.0), ("adapter", 0.5)) and llm.config.lora_rank == 24
    raw = pickle.dumps(llm)
    monkeypatch.chdir("/")
    again = pickle.loads(raw)
    assert again.options["lora"] == ((str(adapter), 1.0), (str(adapter), 0.5))
    assert np.array_equal(again.logits([1, 2, 3]), llm.logits([1, 2, 3]))
    assert llama2c.load(path, lora=()).options["lora"] is None


def test_quantised_on_loading(tmp_path, rng, monkeypatch):
    """--quantize makes the file that it would make without the adapter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ggufs.write(tmp_path / "model.gguf", BLOCKS, ggufs.random_tensors(rng, BLOCKS, "F16"))
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, BLOCKS))
    llama2c.quantize(tmp_path / "model.gguf", tmp_path / "q8.gguf", "Q8_0")
    tokens = some_tokens(rng, BLOCKS)
    beside = llama2c.load(tmp_path / "model.gguf", quantize="q8_0", lora=adapter)
    assert np.array_equal(beside.logits(tokens), llama2c.load(tmp_path / "q8.gguf", lora=adapter).logits(tokens))


def test_specifications(tmp_path):
    assert adapters_of(None) == adapters_of([]) == ()
    assert adapters_of(tmp_path) == adapters_of([(tmp_path, 1)]) == ((str(tmp_path), 1.0),)
    with pytest.raises(ValueError, match="expected a finite number"):
        adapters_of([("a", float("nan"))])
    arguments = parser().parse_args(["run", "m", "--lora", "a", "--lora-scaled", "b", "-0.5", "--lora", "c"])
    assert arguments.lora == [("a", 1.0), ("b", -0.5), ("c", 1.0)]


@pytest.mark.parametrize("scale", ["much", "nan"])
def test_bad_scales_on_the_command_line(capfd, scale):
    with pytest.raises(SystemExit) as raised:
        main(["run", "m", "--lora-scaled", "a", scale])
    assert raised.value.code == 2 and "--lora-scaled" in capfd.readouterr().err


def test_record_and_replay(tmp_path, rng, capfd):
    ggufs.write_byte_level(tmp_path / "model.gguf", rng)
    shape = Shape(32, 64, 1, 2, 1, 259, 64)
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    command = ["run", str(tmp_path / "model.gguf"), "abc", "-n", "20", "-s", "3"]
    path = str(tmp_path / "run.json")
    assert main([*command, "--lora-scaled", str(adapter), "0.5", "--record", path]) == 0
    with_adapter = capfd.readouterr().out
    assert main(command) == 0
    assert capfd.readouterr().out != with_adapter
    record = Record.load(path)
    assert [(item.path, item.scale) for item in record.lora] == [(str(adapter), 0.5)]
    assert [file.name for file in record.lora[0].files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert main(["replay", path, "--threads", "2"]) == 0
    moved = tmp_path / "moved"
    shutil.move(adapter, moved)
    assert main(["replay", path]) == 1
    assert main(["replay", path, "--lora", str(moved)]) == 0
    adapters.write(moved, adapters.random_pairs(rng, shape))
    with pytest.raises(FormatError, match="not the adapter of the record"):
        llama2c.replay(path, lora=moved)
    with pytest.raises(FormatError, match="0 adapters named, but the record has 1"):
        llama2c.replay(path, lora=[])


def test_records_of_before(tmp_path, rng):
    """A record without the key is one without adapters."""
    ggufs.write_byte_level(tmp_path / "model.gguf", rng)
    record = llama2c.record(llama2c.load(tmp_path / "model.gguf"), "abc", max_tokens=5, seed=1)
    content = json.loads(record.to_json())
    assert content.pop("lora") == []
    assert Record.from_json(json.dumps(content)) == record


# ---- Bad input ----


CONFIGS = [
    ({"peft_type": "IA3"}, "peft_type is"),
    ({"peft_type": None}, "peft_type: missing"),
    ({"use_dora": True}, "DoRA"),
    ({"lora_bias": True}, "biases"),
    ({"bias": "all"}, "bias is"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is"),
    ({"init_lora_weights": "pissa_niter_16"}, "not the model's"),
    ({"r": 0}, "r: expected 1 or more"),
    ({"r": "4"}, "r: expected an integer"),
    ({"r": 5}, r"lora_A.weight has shape \[4, 160\], expected \[5, 160\]"),
    ({"lora_alpha": True}, "lora_alpha: expected a finite number"),
    ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern: expected"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern: expected"),
    ({"alpha_pattern": {"(": 8}}, "no regular expression"),
]


@pytest.mark.parametrize(("config", "message"), CONFIGS)
def test_configurations_that_are_refused(tmp_path, rng, model, config, message):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape), **config)
    with pytest.raises(FormatError, match=message) as raised:
        llama2c.load(path, lora=adapter)
    assert str(adapter) in str(raised.value)


def test_no_json(tmp_path, rng, model):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    for text in (b"", b"[]", b"\xff", b"{"):
        (adapter / "adapter_config.json").write_bytes(text)
        with pytest.raises(FormatError, match=r"adapter_config\.json: "):
            llama2c.load(path, lora=adapter)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
TENSORS = [
    ({"base_model.model.lm_head.lora_A.weight": (4, 160)}, UnsupportedError, "lm_head"),
    ({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 105)}, UnsupportedError, "embed_tokens"),
    ({"base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight": (4, 160)}, UnsupportedError, "qkv_proj"),
    ({f"{Q}magnitude_vector": (160,)}, UnsupportedError, "magnitude"),
    ({f"{Q}A.weight": (4, 160)}, FormatError, "no lora_B beside it"),
    ({f"{Q}B.weight": (160, 4)}, FormatError, "no lora_A beside it"),
    ({f"{Q}A.weight": (4, 80), f"{Q}B.weight": (160, 4)}, FormatError, r"shape \[4, 80\], expected \[4, 160\]"),
    ({f"{Q}A.weight": (4, 160), f"{Q}B.weight": (80, 4)}, FormatError, r"shape \[80, 4\], expected \[160, 4\]"),
    ({f"{Q}A.weight": (4, 160), f"{Q}A.default.weight": (4, 160)}, FormatError, "twice"),
    ({Q.replace("0", "2") + "A.weight": (4, 160)}, FormatError, "the model has 2 layers"),
    ({}, FormatError, "no tensors"),
]


@pytest.mark.parametrize(("shapes", "kind", "message"), TENSORS)
def test_tensors_that_are_refused(tmp_path, rng, model, shapes, kind, message):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    tensors = {name: np.zeros(size, np.float32) for name, size in shapes.items()}
    write_safetensors(adapter / "adapter_model.safetensors", tensors, overwrite=True)
    with pytest.raises(kind, match=message) as raised:
        llama2c.load(path, lora=adapter)
    assert str(adapter / "adapter_model.safetensors") in str(raised.value)


def test_types_that_are_refused(tmp_path, rng, model):
    path, shape, _ = model
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    tensors = {f"{Q}A.weight": np.zeros((4, 160), np.int8), f"{Q}B.weight": np.zeros((160, 4), np.int8)}
    write_safetensors(adapter / "adapter_model.safetensors", tensors, overwrite=True)
    with pytest.raises(UnsupportedError, match="is of type I8; F32, F16 and BF16 are supported"):
        llama2c.load(path, lora=adapter)


def test_files_that_are_not_there(tmp_path, rng, model):
    path, shape, _ = model
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        llama2c.load(path, lora=tmp_path)
    adapter = adapters.write(tmp_path / "adapter", adapters.random_pairs(rng, shape))
    os.rename(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match="a pickle"):
        llama2c.load(path, lora=adapter)
    os.remove(adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        llama2c.load(path, lora=adapter)


def test_the_core_checks(model):
    path = str(model[0])
    a, b = np.zeros((2, 160), np.float32), np.zeros((160, 2), np.float32)
    for adapter, message in (
        (("attn_norm", 0, a, b), "expected a matrix of a layer"),
        (("output", 0, a, b), "expected a matrix of a layer"),
        (("attn_q", 2, a, b), "in layer 2, expected 0 to 1"),
        (("attn_q", -1, a, b), "in layer -1"),
        (("attn_k", 0, a, b), r"expected \[80\]\[rank\], \[rank\]\[160\]"),
        (("attn_q", 0, a[:1], b), "expected .rank, cols. and .rows, rank."),
        (("attn_q", 0, a[:0], np.zeros((160, 0), np.float32)), r"\[160\]\[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Transformer(path, adapters=[adapter])
    with pytest.raises(ValueError, match="float"):
        Transformer(path, adapters=[("attn_q", 0, a.astype("f8"), b)])
