"""Reader of PEFT's LoRA adapters: adapter_config.json and adapter_model.safetensors.

Tensors "base_model.model.model.layers.<n>.self_attn.q_proj.lora_A.weight" [rank][in] and "...lora_B.weight" [out][rank]
change a matrix W into W + s B A; s is lora_alpha / rank, or with use_rslora lora_alpha / sqrt(rank).
"""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama2c import schema
from llama2c._core import FormatError, UnsupportedError
from llama2c.formats.safetensors import SafetensorsTensor, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# GGUF's names of the matrices.
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAME = re.compile(r"base_model\.model\.(model\.layers\.([0-9]{1,9})\.(\w+\.\w+))\.lora_([AB])(\.default)?\.weight")
# Initialisations that take something out of the base model's weights, which these files do not hold.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class AdapterMatrix:
    """What is added to one matrix: b @ a."""

    tensor: str  # GGUF's name: "attn_q"
    layer: int
    a: "NDArray[np.float32]"  # [rank, cols]
    b: "NDArray[np.float32]"  # [rows, rank], scaled; of q and k in the order of the rows that the file has


@dataclass(frozen=True)
class _Config:
    """The keys of adapter_config.json that change what is computed."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    use_qalora: bool = False
    lora_bias: bool = False
    bias: str = "none"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r: expected 1 or more, got {self.r}")


def adapter_paths(path: str | os.PathLike[str]) -> list[str]:
    """The two files of an adapter, named by its directory or by its adapter_model.safetensors."""
    name = os.fspath(path)
    if os.path.isfile(name) and not name.endswith(".safetensors"):
        raise FormatError(f"{name}: not an adapter: expected its directory, or its {WEIGHTS}")
    if os.path.isdir(name):
        return [os.path.join(name, CONFIG), os.path.join(name, WEIGHTS)]
    return [os.path.join(os.path.dirname(name), CONFIG), name]


def read_adapter(
    path: str | os.PathLike[str], shapes: dict[str, tuple[int, int]], n_layers: int, *, scale: float = 1.0
) -> list[AdapterMatrix]:
    """The matrices of an adapter, in the order of layers and of MATRICES.

    path: its directory, or its adapter_model.safetensors, beside which adapter_config.json lies.
    shapes: [rows, cols] of the model's matrices by GGUF's names.
    scale: multiplies the adapter's own.

    Raises OSError; FormatError and UnsupportedError name the file, the key or tensor, and what was expected.
    """
    config_path, weights_path = adapter_paths(path)
    config = _read_config(config_path)
    pickled = Path(weights_path).with_suffix(".bin")
    if not os.path.exists(weights_path) and pickled.is_file():
        raise UnsupportedError(f"{pickled}: a pickle, which may run any code: expected {WEIGHTS}, as PEFT saves now")
    header = read_header(weights_path)
    found: dict[tuple[int, str], dict[str, SafetensorsTensor]] = {}
    modules: dict[tuple[int, str], str] = {}
    for name, tensor in header.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[3] not in MATRICES:
            raise UnsupportedError(
                f"{weights_path}: tensor {name[:200]}: expected LoRA of {', '.join(MATRICES)} alone, "
                "as base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
            )
        place = (int(match[2]), MATRICES[match[3]])
        if place[0] >= n_layers:
            raise FormatError(f"{weights_path}: tensor {name}: the model has {n_layers} layers, not this adapter's")
        if match[4] in found.setdefault(place, {}):
            raise FormatError(f"{weights_path}: tensor {name} is there twice")
        found[place][match[4]] = tensor
        modules[place] = match[1]
    if not found:
        raise FormatError(f"{weights_path}: no tensors, expected an adapter's")
    order = list(MATRICES.values())
    matrices = []
    for place in sorted(found, key=lambda place: (place[0], order.index(place[1]))):
        rank, factor = _rank_and_scale(config_path, config, modules[place])
        rows, cols = shapes[place[1]]
        a = _read(weights_path, found[place], "A", (rank, cols))
        b = _read(weights_path, found[place], "B", (rows, rank))
        # in f64, so that the scale adds one rounding and no more
        matrices.append(AdapterMatrix(place[1], place[0], a, (b.astype("f8") * (factor * scale)).astype("f4")))
    return matrices


def _read_config(path: str) -> dict[str, Any]:
    """The keys of adapter_config.json, those that are read here checked."""
    try:
        value = schema.parse(Path(path).read_bytes())
        if not isinstance(value, dict):
            raise FormatError("expected an object")
        # PEFT takes null for what is off
        keys = {key: item for key, item in value.items() if item is not None}
        _refuse(schema.read(_Config, keys), keys)
    except FormatError as error:
        raise type(error)(f"{path}: {error}") from None
    return keys


def _refuse(config: _Config, keys: dict[str, Any]) -> None:
    """Raises UnsupportedError for what would change the result and is not computed."""
    if config.peft_type != "LORA":
        raise UnsupportedError(f'peft_type is "{config.peft_type[:40]}"; "LORA" is supported')
    for flag, what in (("use_dora", "DoRA"), ("use_qalora", "QALoRA"), ("lora_bias", "biases of lora_B")):
        if getattr(config, flag):
            raise UnsupportedError(f"{flag} is true: {what} is not supported")
    if config.bias != "none":
        raise UnsupportedError(f'bias is "{config.bias[:40]}": Llama has none here, expected "none"')
    for key in ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"):
        if keys.get(key):
            raise UnsupportedError(f"{key} is {str(keys[key])[:100]}: expected an adapter of matrices alone")
    start = str(keys.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGED_BASE):
        raise UnsupportedError(
            f'init_lora_weights is "{start[:40]}": trained beside weights that are not the model\'s; '
            "PEFT's save_pretrained can convert it to plain LoRA"
        )
    _check_pattern(keys, "rank_pattern", lambda number: type(number) is int and number > 0)
    _check_pattern(keys, "alpha_pattern", _is_number)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -1e30 < value < 1e30  # type: ignore[operator]


def _check_pattern(keys: dict[str, Any], key: str, is_right: Callable[[object], bool]) -> None:
    """Raises FormatError unless it is an object of regular expressions and right numbers."""
    pattern = keys.get(key, {})
    if not isinstance(pattern, dict) or not all(is_right(number) for number in pattern.values()):
        raise FormatError(f"{key}: expected an object of numbers, got {str(pattern)[:100]}")
    for name in pattern:
        try:
            re.compile(name)
        except re.error as error:
            raise FormatError(f"{key}: {name[:40]!r} is no regular expression: {error}") from None


def _rank_and_scale(path: str, config: dict[str, Any], module: str) -> tuple[int, float]:
    """Of a module, "model.layers.0.self_attn.q_proj": by the first pattern that its name ends in, else those of all."""

    def of(pattern: str, otherwise: str) -> Any:
        items = config.get(pattern, {}).items()
        fitting = (number for key, number in items if re.match(rf"(.*\.)?({key})$", module))
        return next(fitting, config[otherwise])

    rank = of("rank_pattern", "r")
    return rank, of("alpha_pattern", "lora_alpha") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read(path: str, pair: dict[str, SafetensorsTensor], which: str, shape: tuple[int, int]) -> "NDArray[np.float32]":
    import numpy as np

    other = next(iter(pair.values()))
    if which not in pair:
        raise FormatError(f"{path}: tensor {other.name}: no lora_{which} beside it")
    tensor = pair[which]
    if tensor.shape != shape:
        raise FormatError(f"{path}: tensor {tensor.name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedError(
            f"{path}: tensor {tensor.name} is of type {tensor.dtype}; F32, F16 and BF16 are supported"
        )
    stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[tensor.dtype]
    values = np.fromfile(path, stored, math.prod(shape), offset=tensor.offset).reshape(shape)
    if tensor.dtype == "BF16":
        return (values.astype("u4") << 16).view("f4")
    return values.astype("f4")
