"""Models in and out of training: weights from any file that llama2c loads; safetensors and config.json in the layout of
Hugging Face, adapters in that of PEFT.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from llama2c.formats.safetensors import write_safetensors
from llama2c.training.lora import adapter_tensors
from llama2c.training.model import Llama
from llama2c.training.run_folder import write
from llama2c.training.settings import ModelSettings, Settings

if TYPE_CHECKING:
    from llama2c.training.shards import Dataset

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
TARGETS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"} | {
    name: f"ffn_{name}" for name in ("gate", "up", "down")
}


def model_settings(settings: Settings, dataset: "Dataset") -> Settings:
    """The settings with the shape that the data or the first model give. Raises ValueError if they do not fit."""
    model = settings.model
    if settings.init_from:
        import llama2c

        with llama2c.load(settings.init_from) as llm:
            c = llm.config
        if model.context > c.context:
            raise ValueError(f"model.context is {model.context}, but {settings.init_from} has {c.context} positions")
        shape = {f.name: getattr(c, f.name) for f in dataclasses.fields(ModelSettings) if f.name != "context"}
        model = dataclasses.replace(model, **shape)
    elif model.vocab_size == 0:
        model = dataclasses.replace(model, vocab_size=dataset.vocab_size)
    if model.vocab_size < dataset.vocab_size:
        raise ValueError(
            f"the model has {model.vocab_size} tokens, the data {settings.data} {dataset.vocab_size}: "
            "not made by the model's tokenizer"
        )
    return dataclasses.replace(settings, model=model)


@torch.no_grad()
def load_weights(model: Llama, path: str) -> None:
    """The weights of any model that llama2c loads, as f32."""
    import llama2c

    with llama2c.load(path) as llm:
        for name, tensor in model.tensors():
            *block, role = name.removesuffix(".weight").split(".")
            rows, _ = llm.transformer.weight_shape(role, int(block[1]) if block else 0)
            source = llm.transformer.weight_rows(role, int(block[1]) if block else 0, 0, rows)
            tensor.copy_(torch.from_numpy(source).view(tensor.shape))


def halves(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of attn_q or attn_k from pairs of neighbours to pairs half a head apart, as Hugging Face turns them."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _hugging_face(name: str, weights: torch.Tensor, head_dim: int) -> tuple[str, NDArray[np.float32]]:
    array: NDArray[np.float32] = weights.detach().float().cpu().numpy()
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name], np.ascontiguousarray(array)
    _, layer, role, _ = name.split(".")
    if role in ("attn_q", "attn_k"):
        array = halves(array, head_dim)
    return f"model.layers.{layer}.{NAMES[role]}.weight", np.ascontiguousarray(array)


def save_model(model: Llama, folder: Path, tokenizer: str) -> None:
    """Write model.safetensors (F32), config.json and the tokenizer."""
    c = model.settings
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": c.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    write_safetensors(
        folder / "model.safetensors",
        (_hugging_face(name, tensor, c.head_dim) for name, tensor in model.tensors()),
        metadata={"format": "pt"},
        overwrite=True,
    )
    write(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    shutil.copyfile(tokenizer, folder / Path(tokenizer).name)


def save_adapter(model: Llama, settings: Settings, folder: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, target, a, b in adapter_tensors(model):
        role = TARGETS[target]
        rows = b.detach().float().cpu().numpy()
        if role in ("attn_q", "attn_k"):
            rows = halves(rows, model.settings.head_dim)
        name = f"base_model.model.model.layers.{layer}.{NAMES[role]}"
        tensors[f"{name}.lora_A.weight"] = a.detach().float().cpu().numpy()
        tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(rows)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.init_from,
        "r": settings.lora.rank,
        "lora_alpha": settings.lora.alpha,
        "target_modules": [NAMES[TARGETS[target]].rpartition(".")[2] for target in settings.lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    write_safetensors(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"}, overwrite=True)
    write(folder / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
