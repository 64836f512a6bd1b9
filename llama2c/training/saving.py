"""Models in and out of training: weights from any file that llama2c loads; safetensors and config.json in the layout of
Hugging Face, adapters in that of PEFT.
"""

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from llama2c.formats.hf_writer import CONFIG, WEIGHTS, hf_config, hf_name
from llama2c.formats.safetensors import write_safetensors
from llama2c.lora import half_rows
from llama2c.tokenizers import copy_tokenizer_file, load_tokenizer, tokenizer_files
from llama2c.training.lora import adapter_tensors
from llama2c.training.model import Llama, frequencies
from llama2c.training.run_folder import write
from llama2c.training.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from llama2c._core import Tokenizer
    from llama2c.training.shards import Dataset

TARGETS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"} | {
    name: f"ffn_{name}" for name in ("gate", "up", "down")
}


@dataclass(frozen=True)
class SavedAs:
    """What config.json tells besides the shape."""

    context: int  # positions
    window: int = 0  # positions that a token sees, 0: all


def model_settings(settings: Settings, dataset: "Dataset") -> tuple[Settings, SavedAs]:
    """The settings with the shape that the data or the first model give. Raises ValueError if they do not fit."""
    model = settings.model
    if settings.init_from:
        model, saved_as = _first_model(settings, dataset)
    elif settings.lora.rank:
        raise ValueError("lora.rank is set without init_from: adapters belong to a model")
    else:
        model = dataclasses.replace(model, vocab_size=model.vocab_size or dataset.vocab_size)
        saved_as = SavedAs(model.context)
    if model.vocab_size != dataset.vocab_size:
        raise ValueError(
            f"the model has {model.vocab_size} tokens, the data {settings.data} {dataset.vocab_size}: "
            "not made by the model's tokenizer"
        )
    return dataclasses.replace(settings, model=model), saved_as


def _first_model(settings: Settings, dataset: "Dataset") -> tuple[ModelSettings, SavedAs]:
    """The shape of init_from."""
    import llama2c

    model, path, plain = settings.model, settings.init_from, ModelSettings()
    with llama2c.load(path) as llm:
        c = llm.config
        with contextlib.suppress(llama2c.TokenizerError):
            _check_tokenizer(llm.tokenizer, dataset, path)
    if model.context > c.context:
        raise ValueError(f"model.context is {model.context}, but {path} has {c.context} positions")
    if 0 < c.window < model.context:
        raise ValueError(f"model.context is {model.context}, but {path} has a window of {c.window}: train within it")
    shape = {f.name: getattr(c, f.name) for f in dataclasses.fields(ModelSettings) if f.name != "context"}
    for name, value in shape.items():
        if getattr(model, name) not in (value, getattr(plain, name)):
            raise ValueError(f"model.{name} is {getattr(model, name)}, but {path} has {value}")
    return dataclasses.replace(model, **shape), SavedAs(c.context, c.window)


def _check_tokenizer(tokenizer: "Tokenizer", dataset: "Dataset", path: str) -> None:
    """Raises ValueError if the data were made by another one."""
    other = load_tokenizer(dataset.tokenizer_path)
    if len(tokenizer) == len(other):
        for token in range(len(tokenizer)):
            if tokenizer.token_bytes(token) != other.token_bytes(token):
                raise ValueError(
                    f"{path}: its token {token} is {tokenizer.token_bytes(token)!r}, that of the data {dataset.path} "
                    f"{other.token_bytes(token)!r}: not made by the model's tokenizer"
                )


@torch.no_grad()
def load_weights(model: Llama, path: str) -> None:
    """The weights of any model that llama2c loads, as f32."""
    import llama2c

    with llama2c.load(path) as llm:
        if not np.allclose(llm.transformer.rope_frequencies, frequencies(model.settings).numpy(), rtol=1e-6):
            raise llama2c.UnsupportedError(f"{path}: its RoPE frequencies are scaled, which training does not know")
        for name, tensor in model.tensors():
            *block, role = name.removesuffix(".weight").split(".")
            rows, _ = llm.transformer.weight_shape(role, int(block[1]) if block else 0)
            source = llm.transformer.weight_rows(role, int(block[1]) if block else 0, 0, rows)
            tensor.copy_(torch.from_numpy(source).view(tensor.shape))


def _array(weights: torch.Tensor, heads: int | None) -> "NDArray[np.float32]":
    """Weights as float32; the rows of q and k, which have heads, in the order of Hugging Face."""
    array: NDArray[np.float32] = weights.detach().float().cpu().numpy()
    return np.ascontiguousarray(array if heads is None else half_rows(array, heads))


def _heads(model: Llama, role: str) -> int | None:
    c = model.settings
    return {"attn_q": c.n_heads, "attn_k": c.n_kv_heads}.get(role)


def save_model(model: Llama, folder: Path, tokenizer: str, saved_as: SavedAs) -> None:
    """Write model.safetensors (F32), config.json and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = ((hf_name(name), _array(tensor, _heads(model, name.split(".")[-2]))) for name, tensor in model.tensors())
    write_safetensors(folder / WEIGHTS, tensors, metadata={"format": "pt"}, overwrite=True)
    vocabulary = load_tokenizer(tokenizer)
    config = dataclasses.asdict(model.settings) | dataclasses.asdict(saved_as)
    write(folder / CONFIG, hf_config(config, "F32", vocabulary.bos, vocabulary.eos).encode())
    for name, path in tokenizer_files(tokenizer).items():
        copy_tokenizer_file(path, folder / name, overwrite=True)


def save_adapter(model: Llama, settings: Settings, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, target, a, b in adapter_tensors(model):
        role = TARGETS[target]
        name = f"base_model.model.{hf_name(f'blk.{layer}.{role}.weight').removesuffix('.weight')}"
        tensors[f"{name}.lora_A.weight"] = _array(a, None)
        tensors[f"{name}.lora_B.weight"] = _array(b, _heads(model, role))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.init_from,
        "r": settings.lora.rank,
        "lora_alpha": settings.lora.alpha,
        "target_modules": [f"{target}_proj" for target in settings.lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    write_safetensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"}, overwrite=True)
    write(folder / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
