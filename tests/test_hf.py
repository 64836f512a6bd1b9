"""Hugging Face directories: the bits of the same weights in GGUF, and a message for everything that is not right."""

import json
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import hf_models
import numpy as np
import oracle
import pytest
from hf_models import random_model, write, write_gguf
from oracle import Shape

import llama2c
from llama2c import FormatError, Session, TokenizerError, Transformer, UnsupportedError
from llama2c._core import batch_bytes, session_bytes
from llama2c.cli import main
from llama2c.formats.hf import read_table
from llama2c.formats.safetensors import write_safetensors
from llama2c.weights import model_paths, open_weights

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = Shape(64, 96, 2, 4, 2, 48, 64)


def llama3(shape, *, old=False):
    """The keys of Llama 3.1's RoPE as transformers 5, or an older one, writes them, and the same in GGUF."""
    scaling = {key: value for key, value in LLAMA3.items() if not old or key != "rope_theta"}
    theta = {"rope_scaling": scaling, "rope_theta": LLAMA3["rope_theta"]} if old else {"rope_parameters": scaling}
    freqs = hf_models.stretch(LLAMA3, shape.head_dim)
    assert freqs[0] == 1 and 1 < freqs[1] < freqs[2] == 8
    return {"config": theta, "metadata": {"llama.rope.freq_base": 500000.0}, "freqs": tuple(map(float, freqs))}


def linear(scaling):
    return {
        "config": scaling,
        "metadata": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
    }


ODD = Shape(90, 75, 2, 5, 1, 37, 64, tied=False)  # heads of 18: 9 pairs
CASES = {
    "gqa": (PLAIN, {}),
    "untied": (replace(PLAIN, tied=False), {}),
    "odd": (ODD, {}),
    "heads of their own size": (PLAIN, {"head_dim": 22}),
    "llama3": (PLAIN, llama3(PLAIN)),
    "llama3, older": (PLAIN, llama3(PLAIN, old=True)),
    "linear": (PLAIN, linear({"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}})),
    "linear, older": (PLAIN, linear({"rope_scaling": {"type": "linear", "factor": 2.5}})),
    "theta": (PLAIN, {"config": {"rope_theta": 1e6}, "metadata": {"llama.rope.freq_base": 1e6}}),
    "mistral": (
        PLAIN,
        {
            "config": {"model_type": "mistral", "sliding_window": 7},
            "metadata": {"llama.attention.sliding_window": 7},
        },
    ),
    "defaults": (
        Shape(64, 96, 1, 4, 4, 48, 64, tied=False, norm_eps=1e-6),
        {
            "config": {
                **dict.fromkeys(("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "hidden_act")),
                "sliding_window": 3,  # which Llama does not have
            },
            "metadata": {"llama.attention.layer_norm_rms_epsilon": 1e-6},
        },
    ),
}


def logits_of(transformer, tokens):
    """Of the tokens as a prompt, and as generated ones."""
    session = Session(transformer, threads=2)
    prompt = session.prefill_all(tokens)
    session.rewind(0)
    return np.stack([prompt, np.stack([session.step(int(token)) for token in tokens])])


def same_bits(one, other, rng):
    assert one.config | {"format": ""} == other.config | {"format": ""}
    tokens = rng.integers(0, one.config["vocab_size"], 40)
    assert logits_of(one, tokens).tobytes() == logits_of(other, tokens).tobytes()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_gguf(tmp_path, rng, case, kind):
    shape, more = CASES[case]
    model = random_model(rng, shape, kind, **json.loads(json.dumps(more)))
    ours = open_weights(write(tmp_path / "model", model))
    assert ours.config["format"] == "safetensors" and ours.config["weight_type"] == kind
    assert ours.config["kv_type"] == ("f32" if kind == "F32" else "f16")
    path = str(write_gguf(tmp_path / "model.gguf", model))
    other = Transformer(path)
    same_bits(ours, other, rng)
    assert session_bytes(ours, 64) == session_bytes(path, 64) and batch_bytes(ours, 8) == batch_bytes(path, 8)
    for name in model.weights:
        *block, role = name.split(".")
        place = (role, int(block[1]) if block else 0)
        rows = ours.weight_shape(*place)[0]
        assert ours.weight_rows(*place, 0, rows).tobytes() == other.weight_rows(*place, 0, rows).tobytes()


def test_levels_and_threads(tmp_path, rng, isa):
    model = random_model(rng, ODD, "BF16")
    ours = open_weights(write(tmp_path / "model", model), isa=isa)
    same_bits(ours, Transformer(str(write_gguf(tmp_path / "model.gguf", model)), isa=isa), rng)


@pytest.mark.parametrize("case", ["gqa", "untied", "odd", "theta", "mistral"])
def test_the_paper(tmp_path, rng, case):
    """float64 over the same weights; the window and the base are the shape's here."""
    shape, more = CASES[case]
    config = more.get("config", {})
    shape = replace(shape, rope_theta=config.get("rope_theta", 10000.0), window=config.get("sliding_window", 0))
    model = random_model(rng, shape, **more)
    tokens = rng.integers(0, shape.vocab_size, 30)
    got = logits_of(open_weights(write(tmp_path / "model", model)), tokens)
    expected = oracle.forward(shape, model.weights, tokens.tolist())
    assert oracle.nmse(got[0], expected) < 1e-9 and oracle.nmse(got[1], expected) < 1e-9


def test_shards_and_the_one_file(tmp_path, rng):
    model = random_model(rng, replace(PLAIN, tied=False), "F16")
    whole = write(tmp_path / "whole", model)
    shards = write(tmp_path / "shards", model, shards=3)
    same_bits(open_weights(shards), open_weights(whole), rng)
    same_bits(open_weights(whole / "model.safetensors"), open_weights(whole), rng)
    same_bits(open_weights(shards, mmap=False), open_weights(whole), rng)
    names = ["config.json", "model.safetensors.index.json", *(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3))]
    assert [Path(path).name for path in model_paths(shards)] == names
    assert [Path(path).name for path in model_paths(whole)] == ["config.json", "model.safetensors"]
    with pytest.raises(UnsupportedError, match="it is part 2 of 3: open the directory"):
        open_weights(shards / "model-00002-of-00003.safetensors")


def test_tensors_that_are_not_needed(tmp_path, rng):
    """A tied model's classifier counts as little as it does there, and so do RoPE's frequencies."""
    model = random_model(rng, PLAIN)
    tensors = hf_models.tensors_of(model)
    tensors["lm_head.weight"] = np.full((PLAIN.vocab_size, PLAIN.dim), np.nan, np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    folder = write(tmp_path / "model", model, tensors=tensors)
    same_bits(open_weights(folder), open_weights(write(tmp_path / "plain", model)), rng)


@pytest.mark.parametrize("case", ["gqa", "odd", "llama3", "linear", "mistral", "heads of their own size"])
def test_quantize(tmp_path, rng, case):
    """The GGUF file of a directory is the same model, in its type to the bit."""
    shape, more = CASES[case]
    folder = write(tmp_path / "model", random_model(rng, shape, **json.loads(json.dumps(more))))
    out = tmp_path / "out.gguf"
    done = llama2c.quantize(folder, out, "F32")
    assert done.error == 0 and done.bytes == done.source_bytes
    same_bits(open_weights(folder), Transformer(str(out)), rng)
    with pytest.raises(ValueError, match="it is the file to read"):
        llama2c.quantize(folder, folder / "model.safetensors", "F32", overwrite=True)


# ---- Whatever takes a model ----


@pytest.fixture
def folder(tmp_path, rng, monkeypatch):
    """A directory with a tokenizer."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shape = Shape(64, 96, 2, 4, 2, 259, 64)
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    folder = write(tmp_path / "tiny", random_model(rng, shape, "BF16"))
    table = b"".join(struct.pack("<fi", 0.0, len(piece)) + piece for piece in pieces)
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 6) + table)
    return folder


def test_a_model_with_everything(folder, tmp_path):
    llm = llama2c.load(folder)
    assert llm.config.context == 64 and llm.tokenizer_path == str(folder / "tokenizer.bin")
    text = str(llm.generate("Once", max_tokens=20, seed=1))
    assert str(pickle.loads(pickle.dumps(llm)).generate("Once", max_tokens=20, seed=1)) == text
    assert str(llama2c.generate("Once", model=folder, max_tokens=20, seed=1)) == text
    assert str(llama2c.load(folder / "model.safetensors").generate("Once", max_tokens=20, seed=1)) == text

    record = llama2c.record(llm, "Once", max_tokens=20, seed=1)
    assert [file.name for file in record.model.files] == ["config.json", "model.safetensors"]
    assert str(record) == text and llama2c.replay(record).identical
    moved = shutil.copytree(folder, tmp_path / "moved")
    named = {"tokenizer": moved / "tokenizer.bin"}
    assert llama2c.replay(record, model=moved, **named).identical
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    with pytest.raises(FormatError, match=r"config\.json: not the model of the record"):
        llama2c.replay(record, model=moved, **named)


def test_quantize_on_loading(folder, tmp_path):
    cache = tmp_path / "cache" / "llama2c"
    first = llama2c.load(folder, quantize="q8_0")
    [entry] = cache.glob("*.gguf")
    assert entry.name.startswith("tiny-Q8_0-") and first.config.weight_type == "Q8_0"
    llama2c.load(folder, quantize="q8_0")
    assert len(list(cache.glob("*.gguf"))) == 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert llama2c.load(folder, quantize="q8_0").config.norm_eps == 1e-6
    assert len(list(cache.glob("*.gguf"))) == 2


def test_the_command_line(folder, tmp_path, capsys):
    assert main(["info", str(folder), "--json"]) == 0
    model = json.loads(capsys.readouterr().out)["model"]
    assert model["format"] == "safetensors" and model["weight_type"] == "BF16" and len(model["tensors"]) == 20
    assert model["tokenizers_found"] == [str(folder / "tokenizer.bin")]
    assert model["file_bytes"] == sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors"))
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj.weight" in shown and "64 x 64" in shown and "safetensors" in shown
    assert main(["run", str(folder), "Once", "-n", "8", "-s", "1"]) == 0
    (tmp_path / "text").write_text("Once upon a time " * 20)
    assert main(["perplexity", str(folder), str(tmp_path / "text"), "-c", "32"]) == 0
    assert main(["quantize", str(folder), str(tmp_path / "q.gguf"), "Q4_0"]) == 0
    assert llama2c.load(tmp_path / "q.gguf").tokenizer.encode("a") == llama2c.load(folder).tokenizer.encode("a")
    capsys.readouterr()
    assert main(["run", str(tmp_path), "Once"]) == 1
    assert f"llama2c: error: {tmp_path}: no {tmp_path / 'config.json'}" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_read(folder, tmp_path, monkeypatch):
    """tests/test_tokenizer_json.py has those that are."""
    monkeypatch.chdir(tmp_path)
    (folder / "tokenizer.bin").unlink()
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(
        TokenizerError, match=r'tokenizer\.json: model\.type is "Unigram"; supported are .* name one with'
    ):
        _ = llama2c.load(folder).tokenizer


# ---- What is not right ----

GONE = object()  # a key that is left out

CONFIGS = {
    "type": ({"model_type": "qwen2"}, UnsupportedError, 'key model_type is "qwen2"; supported is "llama" or "mistral"'),
    "no type": ({"model_type": GONE}, FormatError, "key model_type is missing, expected"),
    "activation": ({"hidden_act": "gelu"}, UnsupportedError, 'key hidden_act is "gelu"; supported is "silu"'),
    "attention bias": ({"attention_bias": True}, UnsupportedError, "key attention_bias is true; supported is false"),
    "mlp bias": ({"mlp_bias": True}, UnsupportedError, "key mlp_bias is true; supported is false"),
    "bias": ({"mlp_bias": "no"}, FormatError, 'key mlp_bias is "no", expected true or false'),
    "quantized": ({"quantization_config": {"bits": 4}}, UnsupportedError, "key quantization_config is"),
    "no size": ({"hidden_size": GONE}, FormatError, "key hidden_size is missing, expected an integer from 1"),
    "null size": ({"hidden_size": None}, FormatError, "key hidden_size is null, expected an integer"),
    "text": ({"num_hidden_layers": "2"}, FormatError, 'key num_hidden_layers is "2", expected an integer'),
    "true": ({"num_hidden_layers": True}, FormatError, "key num_hidden_layers is true, expected an integer"),
    "huge": ({"vocab_size": 1 << 31}, FormatError, "key vocab_size is 2147483648, expected an integer from 1 to 21474"),
    "negative": ({"intermediate_size": -96}, FormatError, "key intermediate_size is -96"),
    "heads": (
        {"num_attention_heads": 5},
        FormatError,
        "key num_attention_heads is 5, expected a divisor of hidden_size",
    ),
    "shared": ({"num_key_value_heads": 3}, FormatError, "4 heads share 3 of keys and values, expected a divisor"),
    "odd heads": ({"head_dim": 15}, FormatError, "4 heads of size 15, expected an even size"),
    "huge heads": ({"head_dim": 1 << 30}, FormatError, "heads of size 1073741824, expected at most 65536"),
    "layers": ({"num_hidden_layers": 3}, FormatError, "tensor model.layers.2.input_layernorm.weight is missing"),
    "fewer": ({"num_hidden_layers": 1}, FormatError, "no attn_norm of layer 1 in this model"),
    "no limit": (
        {"num_hidden_layers": 1 << 30},
        FormatError,
        "tensor model.layers.2.input_layernorm.weight is missing",
    ),
    "vocabulary": (
        {"vocab_size": 50},
        FormatError,
        "model.embed_tokens.weight has 48 rows of 64 values, expected 50 of 64",
    ),
    "classifier": ({"tie_word_embeddings": False}, FormatError, "tensor lm_head.weight is missing"),
    "eps": ({"rms_norm_eps": -1e-5}, FormatError, "key rms_norm_eps is -1e-05, expected a positive number"),
    "large eps": ({"rms_norm_eps": 2}, FormatError, "norm_eps 2, "),
    "window": ({"model_type": "mistral", "sliding_window": -1}, FormatError, "key sliding_window is -1"),
    "theta": ({"rope_theta": 0}, FormatError, "key rope_theta is 0, expected a positive number"),
    "tiny theta": (
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e-324}},
        FormatError,
        "rope_parameters.rope_theta is 5e-324",
    ),
    "huge factor": (
        {"rope_parameters": LLAMA3 | {"factor": 1e300}},
        FormatError,
        "of RoPE's frequencies is inf, expected a positive one",
    ),
    "scaling": ({"rope_scaling": "linear"}, FormatError, 'key rope_scaling is "linear", expected an object or null'),
    "yarn": (
        {"rope_scaling": {"type": "yarn"}},
        UnsupportedError,
        'key rope_scaling.type is "yarn"; supported is "def',
    ),
    "dynamic": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2}},
        UnsupportedError,
        'key rope_parameters.rope_type is "dynamic"',
    ),
    "partial": ({"partial_rotary_factor": 0.5}, UnsupportedError, "key partial_rotary_factor is 0.5; supported is 1"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, FormatError, "key rope_scaling.factor is missing, expected"),
    "waves": (
        {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}},
        FormatError,
        "key rope_parameters.high_freq_factor is 1.0, expected more than low_freq_factor, 1",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_are_refused(tmp_path, rng, name):
    changes, kind, message = CONFIGS[name]
    model = random_model(rng, PLAIN)
    folder = write(tmp_path / "model", model)
    config = hf_models.config_of(model) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not GONE}))
    refused(folder, kind, message)


def refused(folder, kind, message):
    with pytest.raises(FormatError) as caught:
        open_weights(folder)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(str(folder)) and message in str(caught.value)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def changed(**changes):
    """Tensors by their names with dots for double underscores; GONE: left out."""

    def change(folder, tensors):
        for name, value in changes.items():
            tensors[name.replace("__", ".")] = value
        kept = {name: value for name, value in tensors.items() if value is not GONE}
        write_safetensors(folder / "model.safetensors", kept, overwrite=True)

    return change


def written(name, text):
    def change(folder, _):
        (folder / name).write_bytes(text if isinstance(text, bytes) else json.dumps(text).encode())

    return change


def cut(folder, _):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def without(name):
    return lambda folder, _: (folder / name).unlink()


def index(change):
    """The directory in two shards, and another index."""

    def apply(folder, tensors):
        (folder / "model.safetensors").unlink()
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for number, name in enumerate(names):
            write_safetensors(folder / name, list(tensors.items())[number::2])
        value = change({tensor: names[number % 2] for number, tensor in enumerate(tensors)})
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))

    return apply


NORM = "model.layers.1.input_layernorm.weight"
TRAVERSALS = (
    *("../model.safetensors", "/etc/a.safetensors", "a/b.safetensors", "a\\b.safetensors", "C:a.safetensors"),
    *("..", "", "a\0.safetensors", "model.bin", 7, None, ["a.safetensors"]),
)
PLAIN_NAME = "expected the name of a safetensors file beside it"
MODELS = {
    "missing": (changed(**{NORM: GONE}), FormatError, f": tensor {NORM} is missing"),
    "unknown": (changed(score__weight=np.ones(3, "f4")), UnsupportedError, "score.weight is none that a Llama has"),
    "bias": (
        changed(model__layers__0__self_attn__q_proj__bias=np.ones(64, "f4")),
        UnsupportedError,
        "tensor model.layers.0.self_attn.q_proj.bias is none",
    ),
    "leading zero": (changed(**{NORM.replace("1", "01"): np.ones(64, "f4")}), UnsupportedError, "layers.01.input"),
    "strange name": (changed(**{"a\nb": np.ones(64, "f4")}), UnsupportedError, '"a\\nb" is none'),
    "shape": (changed(**{NORM: np.ones(63, "f4")}), FormatError, f"{NORM} has 1 rows of 63 values, expected 1 of 64"),
    "dimensions": (changed(**{NORM: np.ones((1, 64), "f4")}), FormatError, "has shape [1, 64], expected 1 dimensions"),
    "transposed": (
        changed(model__layers__0__mlp__down_proj__weight=np.ones((96, 64), "f4")),
        FormatError,
        "model.layers.0.mlp.down_proj.weight has 96 rows of 64 values, expected 64 of 96",
    ),
    "type": (changed(**{NORM: np.ones(64, "i4")}), UnsupportedError, "is of type I32; supported are F32, F16 and BF16"),
    "cut off": (cut, FormatError, "cut off?"),
    "no weights": (without("model.safetensors"), FormatError, "neither model.safetensors nor model.safetensors.index."),
    "no config": (without("config.json"), FormatError, "not a Hugging Face directory"),
    "bad config": (written("config.json", b"{"), FormatError, "config.json: not JSON"),
    "no utf-8": (written("config.json", b'{"a": "\xff"}'), FormatError, "config.json: not JSON"),
    "config twice": (written("config.json", b'{"a":1,"a":2}'), FormatError, 'key "a" is there twice'),
    "list": (written("config.json", [1]), FormatError, "config.json: expected an object, got [1]"),
    "no map": (index(lambda files: {}), FormatError, "key weight_map: expected to each tensor the name"),
    "map": (index(lambda files: {"weight_map": [1]}), FormatError, "key weight_map is [1], expected an object"),
    "missing file": (
        index(lambda files: {"weight_map": {**files, NORM: "b.safetensors"}}),
        FormatError,
        f'weight_map: the file of {NORM} is "b.safetensors", which is not there',
    ),
    "other file": (
        index(lambda files: {"weight_map": dict.fromkeys(files, "model-00001-of-00002.safetensors")}),
        FormatError,
        "is not in model-00001-of-00002.safetensors",
    ),
    "too few": (
        index(lambda files: {"weight_map": {name: file for name, file in files.items() if name != NORM}}),
        FormatError,
        f"tensor {NORM}: not in this file according to",
    ),
    "twice": (
        lambda folder, tensors: [
            index(lambda files: {"weight_map": files})(folder, tensors),
            [
                write_safetensors(folder / f"model-0000{n}-of-00002.safetensors", tensors, overwrite=True)
                for n in (1, 2)
            ],
        ],
        FormatError,
        "not in this file according to",
    ),
    **{
        f"traversal {number}": (
            index(lambda files, name=name: {"weight_map": {**files, NORM: name}}),
            FormatError,
            PLAIN_NAME,
        )
        for number, name in enumerate(TRAVERSALS)
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(tmp_path, rng, name):
    change, kind, message = MODELS[name]
    model = random_model(rng, PLAIN)
    folder = write(tmp_path / "model", model)
    change(folder, hf_models.tensors_of(model))
    refused(folder, kind, message)


def test_what_is_not_there(tmp_path):
    for path in (tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError) as caught:
            llama2c.load(path)
        assert caught.value.filename == str(path)


# ---- The core believes no table ----


def entry(table, name, **changes):
    """The table with one entry changed."""
    number = next(number for number, item in enumerate(table.entries) if item.role == name)
    changed = replace(table.entries[number], **changes)
    return replace(table, entries=(*table.entries[:number], changed, *table.entries[number + 1 :]))


TABLES = {
    "role": (lambda t: entry(t, "attn_q", role="attn_x"), FormatError, "no attn_x of layer 0 in this model"),
    "layer": (lambda t: entry(t, "attn_q", layer=2), FormatError, "no attn_q of layer 2"),
    "negative layer": (lambda t: entry(t, "attn_q", layer=-1), FormatError, "no attn_q of layer -1"),
    "layer of a global": (lambda t: entry(t, "token_embd", layer=1), FormatError, "no token_embd of layer 1"),
    "tied": (lambda t: entry(t, "token_embd", role="output"), FormatError, "no output of layer 0"),
    "twice": (lambda t: entry(t, "attn_v", role="attn_k"), FormatError, "is there twice"),
    "one less": (lambda t: replace(t, entries=t.entries[1:]), FormatError, "19 tensors, but 2 layers need 20"),
    "no entries": (lambda t: replace(t, entries=(), paths=()), FormatError, "0 tensors, but 2 layers need 20"),
    "shape": (lambda t: entry(t, "attn_k", shape=(64, 64)), FormatError, "has 64 rows of 64 values, expected 32 of 64"),
    "vector": (lambda t: entry(t, "attn_k", shape=(2048,)), FormatError, "has 1 rows of 2048 values"),
    "type": (lambda t: entry(t, "attn_k", type="F64"), UnsupportedError, "is of type F64; supported are F32"),
    "no type": (lambda t: entry(t, "attn_k", type=""), UnsupportedError, "is of type ; supported"),
    "blocks": (lambda t: entry(t, "attn_k", type="Q4_K"), FormatError, "no whole blocks of Q4_K"),
    "odd": (lambda t: entry(t, "attn_k", offset=1002), FormatError, "lies at offset 1002, expected a multiple of 4"),
    "offset": (
        lambda t: entry(t, "attn_k", offset=2**64 - 4),
        FormatError,
        f"from offset {2**64 - 4} on, but the file",
    ),
    "end": (
        lambda t: entry(t, "attn_k", offset=os.stat(t.paths[0]).st_size // 4 * 4 - 4),
        FormatError,
        "but the file has",
    ),
    "file": (lambda t: entry(t, "attn_k", file=1), ValueError, "lies in file 1 of 1"),
    "dim": (lambda t: replace(t, dim=0), FormatError, "dim 0, "),
    "layers": (lambda t: replace(t, n_layers=1 << 20), FormatError, "1048576 layers"),
    "heads": (lambda t: replace(t, n_heads=0), FormatError, "0 heads share 2"),
    "theta": (lambda t: replace(t, rope_theta=float("nan")), FormatError, "rope_theta nan"),
    "factor": (lambda t: replace(t, rope_factor=0.0), FormatError, "rope_factor 0"),
    "huge heads": (
        lambda t: replace(t, head_dim=1 << 30),
        FormatError,
        "4 heads of size 1073741824, expected an even size",
    ),
    "divisors": (lambda t: replace(t, rope_freqs=(1.0,)), ValueError, "1 divisors of frequencies, expected 8"),
    "divisor": (
        lambda t: replace(t, rope_freqs=(1.0,) * 7 + (0.0,)),
        FormatError,
        "divisor 7 of RoPE's frequencies is 0",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_are_refused(tmp_path, rng, name):
    change, kind, message = TABLES[name]
    table = read_table(write(tmp_path / "model", random_model(rng, PLAIN)))
    with pytest.raises(kind) as caught:
        Transformer("it", table=change(table))
    assert type(caught.value) is kind and message in str(caught.value)


def test_quantised_entries(tmp_path, rng):
    """The table takes whatever the core computes: a GGUF file described from outside is the same model."""
    path = tmp_path / "model.gguf"
    folder = write(tmp_path / "model", random_model(rng, PLAIN))
    llama2c.quantize(folder, path, "Q8_0")
    header = llama2c._core.read_gguf(path)
    table = read_table(folder)
    by_name = {tensor["name"]: tensor for tensor in header["tensors"]}
    entries = []
    for item in table.entries:
        name = f"blk.{item.layer}.{item.role}" if item.name.startswith("model.layers") else item.role
        tensor = by_name[f"{name}.weight"]
        entries.append(replace(item, type=tensor["type"], offset=tensor["offset"], bytes=tensor["bytes"]))
    described = replace(table, paths=(str(path),), entries=tuple(entries), rope_halves=False)
    ours = Transformer("it", table=described)
    assert ours.config["blocks"] and ours.config["weight_type"] == "Q8_0"
    same_bits(ours, Transformer(str(path)), rng)
