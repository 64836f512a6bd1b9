"""Reader of Hugging Face directories: a Llama or Mistral as `save_pretrained` of transformers writes it.

    config.json --configuration--> shape, constants, RoPE --+
    *.safetensors --headers--> names, types, offsets -------+--> ModelTable, which the core opens and maps

Nothing is converted: the files' own F32, F16 and BF16 are computed from, and the two halves in which a head's rows of
q_proj and k_proj stand are told to the core (ModelTable.rope_halves).
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llama2c import schema
from llama2c._core import FormatError, UnsupportedError
from llama2c.formats.safetensors import SafetensorsHeader, SafetensorsTensor, read_header, short_name
from llama2c.formats.table import ModelTable, TableEntry

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MOST = 0x7FFFFFFF  # of the core's counts
_LARGEST_HEAD = 1 << 16  # so that no claim makes a long list of frequencies
_LONGEST = 100_000_000  # bytes of a JSON file
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors")

MISTRAL_WINDOW = 4096  # what transformers takes where the key is missing; null means none

_GLOBALS = {
    "model.embed_tokens.weight": "token_embd",
    "model.norm.weight": "output_norm",
    "lm_head.weight": "output",
}
_OF_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.o_proj.weight": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,8})\.(.+)", re.DOTALL)
_UNUSED = "rotary_emb.inv_freq"  # old files have RoPE's frequencies, which follow from the configuration


def is_hf(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a directory, or of a safetensors file, as Hugging Face has them."""
    return os.path.isdir(path) or os.fspath(path).endswith(".safetensors")


def directory_of(path: str | os.PathLike[str]) -> Path:
    """The directory of such a path."""
    return Path(path) if os.path.isdir(path) else Path(path).parent


def read_table(path: str | os.PathLike[str]) -> ModelTable:
    """What a directory holds, or a safetensors file with its config.json beside it.

    Raises OSError, FormatError or UnsupportedError, which name the file, the key or tensor and what was expected.
    """
    os.stat(path)
    folder = directory_of(path)
    if not (folder / CONFIG).is_file():
        raise FormatError(f"{os.fspath(path)}: no {folder / CONFIG}: not a Hugging Face directory")
    settings = _settings(folder / CONFIG)
    headers, others = _headers(os.fspath(path), folder)
    entries = [
        _entry(tensor, file, header.path)
        for file, header in enumerate(headers)
        for tensor in header.tensors.values()
        if not _is_unused(tensor.name, tied=settings["tied"])
    ]
    _check_all_there(path, entries, settings)
    return ModelTable(
        "safetensors",
        tuple(header.path for header in headers),
        (str(folder / CONFIG), *others),
        tuple(entries),
        rope_halves=True,
        **settings,
    )


# ---- config.json ----


class _Keys:
    """The keys of a JSON object; an error names the file, the key and what was expected."""

    def __init__(self, path: Path, values: Mapping[str, object], prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix

    def wrong(self, key: str, expected: str) -> FormatError:
        value = schema.shown(self.values.get(key))
        got = f"is {value}" if key in self.values else "is missing"
        return FormatError(f"{self.path}: key {self.prefix}{key} {got}, expected {expected}")

    def refused(self, key: str, supported: str) -> UnsupportedError:
        value = schema.shown(self.values.get(key))
        return UnsupportedError(f"{self.path}: key {self.prefix}{key} is {value}; supported is {supported}")

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """An integer; where the key is missing or null, the default."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= _MOST:
            raise self.wrong(key, f"an integer from {low} to {_MOST}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, likewise."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise self.wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where it is missing or null."""
        value = self.values.get(key) or False
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def inner(self, key: str) -> "_Keys":
        """An object; an empty one where it is missing or null."""
        value = self.values.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.wrong(key, "an object or null")
        return _Keys(self.path, value, f"{self.prefix}{key}.")


def _settings(path: Path) -> dict[str, Any]:
    """The fields of a ModelTable that config.json tells."""
    keys = _Keys(path, _json(path))
    kind = keys.values.get("model_type")
    if not isinstance(kind, str):
        raise keys.wrong("model_type", '"llama" or "mistral"')
    if kind not in ("llama", "mistral"):
        raise keys.refused("model_type", '"llama" or "mistral"')
    if keys.values.get("hidden_act", "silu") != "silu":
        raise keys.refused("hidden_act", '"silu"')
    for key in ("attention_bias", "mlp_bias"):
        if keys.flag(key):
            raise keys.refused(key, "false")
    if keys.values.get("quantization_config") is not None:
        raise keys.refused("quantization_config", "weights of F32, F16 and BF16 only")
    dim, heads = keys.integer("hidden_size"), keys.integer("num_attention_heads")
    if keys.values.get("head_dim") is None and dim % heads:
        raise keys.wrong("num_attention_heads", f"a divisor of hidden_size, {dim}")
    head_dim = keys.integer("head_dim", dim // heads)
    if head_dim > _LARGEST_HEAD:
        raise FormatError(f"{path}: heads of size {head_dim}, expected at most {_LARGEST_HEAD}")
    window = 0  # transformers has Llama see all positions, whatever the file says
    if kind == "mistral":
        window = keys.integer("sliding_window", 0, low=0) if "sliding_window" in keys.values else MISTRAL_WINDOW
    return {
        "dim": dim,
        "hidden_dim": keys.integer("intermediate_size"),
        "n_layers": keys.integer("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": head_dim,
        "vocab_size": keys.integer("vocab_size"),
        "context": keys.integer("max_position_embeddings"),
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "tied": keys.flag("tie_word_embeddings"),
        "window": window,
        **_rope(keys, head_dim),
    }


def _rope(keys: _Keys, head_dim: int) -> dict[str, Any]:
    """RoPE's base and how its waves are stretched; transformers 5 has "rope_parameters" for both."""
    name = "rope_parameters" if keys.values.get("rope_parameters") is not None else "rope_scaling"
    scaling = keys.inner(name)
    holder = keys if scaling.values.get("rope_theta") is None else scaling
    theta = holder.number("rope_theta", 10000.0)
    if theta < 1:
        raise holder.wrong("rope_theta", "a number from 1")
    if scaling.number("partial_rotary_factor", keys.number("partial_rotary_factor", 1.0)) != 1:
        raise (scaling if "partial_rotary_factor" in scaling.values else keys).refused("partial_rotary_factor", "1")
    key = "rope_type" if "rope_type" in scaling.values else "type"
    kind = scaling.values.get(key, "default")
    if kind == "linear":
        return {"rope_theta": theta, "rope_factor": scaling.number("factor")}
    if kind == "llama3":
        return {"rope_theta": theta, "rope_freqs": _stretched(scaling, theta, head_dim)}
    if kind != "default":
        raise scaling.refused(key, '"default", "linear" or "llama3"')
    return {"rope_theta": theta}


def _stretched(scaling: _Keys, theta: float, head_dim: int) -> tuple[float, ...]:
    """By what Llama 3.1 divides each frequency: 1 for waves that fit `high_freq_factor` times and more into the context
    of the training, `factor` for those that fit less than `low_freq_factor` times; between them the share of the
    unstretched frequency is linear in the number of waves."""
    factor, low, high = (scaling.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise scaling.wrong("high_freq_factor", f"more than low_freq_factor, {low:g}")
    trained = scaling.integer("original_max_position_embeddings")
    divisors = []
    for pair in range(head_dim // 2):
        waves = trained * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        share = min(max((waves - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / (share + (1 - share) / factor))
    return tuple(divisors)


def _json(path: Path) -> dict[str, object]:
    """A file that holds a JSON object."""
    if path.stat().st_size > _LONGEST:
        raise FormatError(f"{path}: {path.stat().st_size} bytes, expected at most {_LONGEST}")
    try:
        value = schema.parse(path.read_bytes(), unique=True)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected an object, got {schema.shown(value)}")
    return value


# ---- Tensors ----


def _headers(path: str, folder: Path) -> tuple[list[SafetensorsHeader], tuple[str, ...]]:
    """The headers of the files with the weights, and the path of the index if there is one."""
    part = _PART.search(path)
    if part is not None and not os.path.isdir(path):
        raise UnsupportedError(f"{path}: it is part {int(part[1])} of {int(part[2])}: open the directory")
    whole = folder / WHOLE if os.path.isdir(path) else Path(path)
    if whole.is_file():
        return [read_header(str(whole))], ()
    index = folder / INDEX
    if not index.is_file():
        raise FormatError(f"{path}: neither {WHOLE} nor {INDEX}: weights in other formats are not opened")
    return _indexed(index), (str(index),)


def _indexed(index: Path) -> list[SafetensorsHeader]:
    files = _Keys(index, _json(index)).inner("weight_map").values
    if not files:
        raise FormatError(f"{index}: key weight_map: expected to each tensor the name of its file")
    for tensor, name in files.items():
        _check_name(index, tensor, name)
    headers = {name: read_header(str(index.parent / name)) for name in sorted(set(map(str, files.values())))}
    for tensor, name in files.items():
        if tensor not in headers[str(name)].tensors:
            raise FormatError(f"{index}: weight_map: {short_name(tensor)} is not in {name}")
    for name, header in headers.items():
        for tensor in header.tensors:
            if files.get(tensor) != name and not tensor.endswith(_UNUSED):
                raise FormatError(f"{header.path}: tensor {short_name(tensor)}: not in this file according to {index}")
    return list(headers.values())


def _check_name(index: Path, tensor: str, name: object) -> None:
    """A file of the index lies beside it, under a plain name; the names come from who knows where."""
    place = f"{index}: weight_map: the file of {short_name(tensor)}"
    plain = isinstance(name, str) and re.fullmatch(r"[^/\\:\x00-\x1f]+\.safetensors", name) is not None
    if not plain:
        raise FormatError(f"{place} is {schema.shown(name)}, expected the name of a safetensors file beside it")
    if not (index.parent / str(name)).is_file():
        raise FormatError(f"{place} is {schema.shown(name)}, which is not there")


def _is_unused(name: str, *, tied: bool) -> bool:
    """Whether the model is the same without a tensor: transformers overwrites a classifier that is to be tied."""
    return name.endswith(_UNUSED) or (tied and name == "lm_head.weight")


def _entry(tensor: SafetensorsTensor, file: int, path: str) -> TableEntry:
    """The tensor in the table."""
    name = tensor.name
    place = f"{path}: tensor {short_name(name)}"
    found = _LAYER.fullmatch(name)
    role = _OF_LAYER.get(found[2]) if found else _GLOBALS.get(name)
    if role is None:
        raise UnsupportedError(f"{place} is none that a Llama has here")
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedError(f"{place} is of type {tensor.dtype}; supported are F32, F16 and BF16")
    wanted = 1 if role.endswith("norm") else 2
    if len(tensor.shape) != wanted:
        raise FormatError(f"{place} has shape {list(tensor.shape)}, expected {wanted} dimensions")
    layer = int(found[1]) if found else 0
    return TableEntry(name, role, layer, tensor.dtype, tensor.shape, file, tensor.offset, tensor.bytes)


def _check_all_there(path: str | os.PathLike[str], entries: Iterable[TableEntry], settings: Mapping[str, Any]) -> None:
    """Missing tensors by their names here; all else is the core's to check."""
    names = {entry.name for entry in entries}

    def expected() -> Iterable[str]:
        yield from (name for name in _GLOBALS if not _is_unused(name, tied=settings["tied"]))
        for layer in range(settings["n_layers"]):
            yield from (f"model.layers.{layer}.{name}" for name in _OF_LAYER)

    for name in expected():
        if name not in names:
            raise FormatError(f"{os.fspath(path)}: tensor {name} is missing")
