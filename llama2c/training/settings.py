"""The settings of a training run: dataclasses whose fields are keys of a TOML file and flags of `llama2c train`."""

import dataclasses
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from llama2c._core import FormatError
from llama2c.schema import read

T = typing.TypeVar("T")


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _require(name: str, value: float, low: float, high: float = math.inf, *, open_end: bool = False) -> None:
    if not low <= value <= high or (open_end and value == high):
        bound = f"{low:g} or more" if high == math.inf else f"{low:g} to {'below ' if open_end else ''}{high:g}"
        raise ValueError(f"{name} is {value:g}, expected {bound}")


@dataclass(frozen=True)
class ModelSettings:
    """Shape and constants of a model."""

    vocab_size: int = _setting(0, "tokens of the vocabulary (0: those of the data's tokenizer)")
    dim: int = _setting(288, "width of the residual stream")
    n_layers: int = _setting(6, "layers")
    n_heads: int = _setting(6, "query heads")
    n_kv_heads: int = _setting(0, "heads of keys and values (0: as many as query heads)")
    head_dim: int = _setting(0, "size of a head (0: dim / n_heads)")
    hidden_dim: int = _setting(0, "width of the feed-forward layer (0: 8/3 of dim, rounded up to 32)")
    context: int = _setting(256, "tokens of a window, and positions of the model")
    tied: bool = _setting(True, "the classifier is the embedding table")
    norm_eps: float = _setting(1e-5, "epsilon of the normalisations")
    rope_theta: float = _setting(10000.0, "base of the rotary embedding")

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "context"):
            _require(name, getattr(self, name), 1)
        _require("norm_eps", self.norm_eps, 0, 0.1)
        _require("rope_theta", self.rope_theta, 1, 1e12)
        for name in ("vocab_size", "n_kv_heads", "head_dim", "hidden_dim"):
            _require(name, getattr(self, name), 0)
        if self.head_dim == 0:
            if self.dim % self.n_heads:
                raise ValueError(f"dim is {self.dim}, expected a multiple of n_heads, {self.n_heads}")
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, expected an even number")
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads is {self.n_heads}, expected a multiple of n_kv_heads, {self.n_kv_heads}")
        object.__setattr__(self, "hidden_dim", self.hidden_dim or -(-8 * self.dim // 3 // 32) * 32)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: W + alpha / rank B A, of which only A and B are trained."""

    rank: int = _setting(0, "rank of LoRA adapters (0: none, all weights are trained)")
    alpha: float = _setting(0.0, "their scale is alpha / rank (0: twice the rank)")
    targets: tuple[str, ...] = _setting(
        ("q", "k", "v", "o", "gate", "up", "down"), "the matrices that get adapters: q k v o gate up down"
    )

    def __post_init__(self) -> None:
        _require("rank", self.rank, 0)
        _require("alpha", self.alpha, 0)
        object.__setattr__(self, "alpha", self.alpha or 2.0 * self.rank)
        known = ("q", "k", "v", "o", "gate", "up", "down")
        for target in self.targets:
            if target not in known:
                raise ValueError(f"targets has {target!r}, expected some of {', '.join(known)}")
        if not self.targets:
            raise ValueError("targets is empty")


@dataclass(frozen=True)
class TrainSettings:
    """How to train."""

    steps: int = _setting(5000, "steps of the optimizer")
    batch_size: int = _setting(16, "windows that go through the model together, in all processes")
    accumulate: int = _setting(1, "such batches whose gradients make one step")
    learning_rate: float = _setting(1e-3, "the highest, after the warm-up (AdamW)")
    min_learning_rate: float = _setting(0.1, "the last, as a part of the highest; a cosine leads to it")
    warmup: int = _setting(100, "steps in which the learning rate rises")
    weight_decay: float = _setting(0.1, "decay of matrices; vectors have none")
    beta1: float = _setting(0.9, "of AdamW")
    beta2: float = _setting(0.95, "of AdamW")
    clip: float = _setting(1.0, "the norm that gradients are scaled down to (0: any)")
    dropout: float = _setting(
        0.0, "part of the values that is dropped after the embedding, attention and feed-forward, in 256ths"
    )
    attention_dropout: float = _setting(0.0, "part of the attention's probabilities that is dropped (slow on CPUs)")
    average: float = _setting(
        0.0, "evaluate and keep a moving average of the weights, with this decay (0: the weights)"
    )
    seed: int = _setting(1337, "of weights, windows and dropout")
    precision: str = _setting(
        "auto", 'of the products: "f32", "bf16" (autocast), "auto": bf16 where the device multiplies it faster'
    )
    device: str = _setting("auto", 'a device of torch; "auto": cuda if there is one, else cpu')
    threads: int = _setting(0, "threads of a CPU process (0: torch's choice)")
    compile: bool = _setting(False, "let torch.compile make the kernels; it needs a C++ compiler")
    evaluate_every: int = _setting(250, "steps between evaluations; the best model is kept, and the run saved")
    evaluate_windows: int = _setting(0, "validation windows (0: all)")
    log_every: int = _setting(10, "steps between lines of metrics.jsonl")
    tensorboard: bool = _setting(False, "write TensorBoard's files too (package tensorboard)")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "log_every"):
            _require(name, getattr(self, name), 1)
        for name in ("warmup", "weight_decay", "clip", "threads", "evaluate_windows"):
            _require(name, getattr(self, name), 0)
        _require("seed", self.seed, 0, 0x7FFFFFFF)
        _require("min_learning_rate", self.min_learning_rate, 0, 1)
        for name in ("beta1", "beta2", "average"):
            _require(name, getattr(self, name), 0, 1, open_end=True)
        for name in ("dropout", "attention_dropout"):
            _require(name, getattr(self, name), 0, 0.99)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate:g}, expected more than 0")
        if self.precision not in ("auto", "f32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}, expected auto, f32 or bf16")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        low = self.min_learning_rate
        return self.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


@dataclass(frozen=True)
class Settings:
    """A training run."""

    data: str = _setting("", "directory of tokens, made by `llama2c data tokenize`")
    out: str = _setting("", "directory of the run, made if it is not there")
    init_from: str = _setting("", "a model to start from, any that llama2c loads (default: random weights)")
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)


SECTIONS = ("model", "train", "lora")


def flags() -> list[tuple[str, str, Any]]:
    """Section ("" for none), flag without dashes, and field of every setting."""
    found = [("", f.name.replace("_", "-"), f) for f in fields(Settings) if f.name not in SECTIONS]
    hints = typing.get_type_hints(Settings)
    for section in SECTIONS:
        prefix = "lora-" if section == "lora" else ""
        found += [(section, prefix + f.name.replace("_", "-"), f) for f in fields(hints[section])]
    return found


def read_settings(path: str | os.PathLike[str] | None, changes: Mapping[tuple[str, str], Any]) -> Settings:
    """The settings of a TOML file (None: the defaults), some of them changed: by section and name.

    Raises OSError, and ValueError naming file and key.
    """
    values: dict[str, Any] = {}
    name = "the settings" if path is None else os.fspath(path)
    if path is not None:
        with open(path, "rb") as file:
            try:
                values = tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise FormatError(f"{name}: {error}") from None
    for (section, key), value in changes.items():
        place = values.setdefault(section, {}) if section else values
        if not isinstance(place, dict):
            raise FormatError(f"{name}: {section}: expected a table")
        place[key] = value
    try:
        return read(Settings, _with_defaults(Settings, values, ""))
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None


def _with_defaults(kind: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All fields of a dataclass, those that `values` does not have by their defaults. Unknown keys are errors."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise FormatError(f"{where}{key}: unknown; expected one of {', '.join(known)}")
    full: dict[str, Any] = {}
    for key, f in known.items():
        if dataclasses.is_dataclass(hints[key]):
            section = values.get(key, {})
            if not isinstance(section, dict):
                raise FormatError(f"{where}{key}: expected a table")
            full[key] = _with_defaults(typing.cast(type[Any], hints[key]), section, f"{where}{key}.")
        elif key in values:
            full[key] = _plain(hints[key], values[key])
        else:
            full[key] = _plain(hints[key], f.default)
    return full


def _plain(hint: Any, value: Any) -> Any:
    """A value as JSON would have it: an integer where a float may stand, a list for a tuple."""
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, types.GenericAlias) and isinstance(value, tuple):
        return list(value)
    return value


def to_toml(settings: Settings) -> str:
    """The settings as the text of a TOML file, each with what it means."""
    lines = []
    for section in ("", *SECTIONS):
        values = getattr(settings, section) if section else settings
        lines += [f"\n[{section}]"] if section else []
        for f in fields(values):
            if f.name not in SECTIONS:
                lines.append(f"{f.name} = {_toml(getattr(values, f.name))}  # {f.metadata['help']}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        import json

        # TOML's basic strings have JSON's escapes, but for surrogates and DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
