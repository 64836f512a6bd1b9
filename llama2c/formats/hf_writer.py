"""Writer of Hugging Face directories of a Llama: model.safetensors and config.json."""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama2c._core import UnsupportedError
from llama2c.formats.gguf_source import Source, SourceTensor
from llama2c.lora import half_rows
from llama2c.new_file import NewFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG, WEIGHTS = "config.json", "model.safetensors"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # by GGUF's and safetensors' names

_GLOBALS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
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
# Llama 3.1's and 3.2's scaling of RoPE, of which GGUF files keep only what it makes of the frequencies.
_LLAMA3 = tuple(
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)


def hf_name(name: str) -> str:
    """What Hugging Face calls a tensor, given GGUF's name: "blk.0.attn_q.weight"."""
    *block, role = name.removesuffix(".weight").split(".")
    return f"model.layers.{block[1]}.{_LAYER[role]}.weight" if block else f"{_GLOBALS[role]}.weight"


class HalvedSource(Source):
    """A model with the rows of q and k in Hugging Face's order: a rotated pair of a head is (i, i + head_dim / 2)."""

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.float32]":
        """Rows [start, stop) as float32."""
        rows: NDArray[np.float32] = self._halved(tensor, start, stop, super().rows)
        return rows

    def stored(self, tensor: SourceTensor, start: int, stop: int) -> "NDArray[np.uint8]":
        """The bytes of rows [start, stop) as they are; of GGUF only."""
        rows: NDArray[np.uint8] = self._halved(tensor, start, stop, super().stored)
        return rows

    def _halved(self, tensor: SourceTensor, start: int, stop: int, read: Any) -> Any:
        if tensor.name.split(".")[-2] not in ("attn_q", "attn_k"):
            return read(tensor, start, stop)
        size: int = self.transformer.config["head_dim"]
        first, last = start // size, -(-stop // size)
        heads = read(tensor, first * size, last * size).reshape((last - first) * size, -1)
        return half_rows(heads, last - first)[start - first * size : stop - first * size]


class SafetensorsWriter:
    """A safetensors file whose tensors' bytes are written one after another; it appears when all are there.

    tensors: name, dtype, shape and bytes each; the wider types come first, so that each is aligned. Raises OSError
    naming the file; ValueError when the bytes are not what was told.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tensors: Sequence[tuple[str, str, tuple[int, ...], int]],
        *,
        overwrite: bool = False,
    ) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # which transformers asks for
        at = 0
        for name, dtype, shape, size in tensors:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._left = at
        self._file = NewFile(path, overwrite=overwrite)
        try:
            self._file.write(struct.pack("<Q", len(text)) + text)
        except BaseException:
            self._file.discard()
            raise

    def write(self, data: Any) -> None:
        """The next rows, in the bytes of their type."""
        import numpy as np

        array = np.ascontiguousarray(data)
        self._left -= array.nbytes
        self._file.write(array.reshape(-1).data.cast("B"))

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._left == 0:
            self._file.close()
            return
        self._file.discard()
        if kind is None:
            raise ValueError(f"{-self._left:+} bytes more than the header tells")


# ---- config.json ----


def hf_config(c: Mapping[str, Any], kind: str, bos: int, eos: int, *, scaling: dict[str, Any] | None = None) -> str:
    """The content of config.json for a Transformer's config and weights of type `kind`. scaling: see rope_scaling()."""
    mistral = 0 < c["window"] < c["context"]
    name = "mistral" if mistral else "llama"
    values = {
        "architectures": [f"{name.capitalize()}ForCausalLM"],
        "model_type": name,
        "hidden_act": "silu",
        "hidden_size": c["dim"],
        "intermediate_size": c["hidden_dim"],
        "num_hidden_layers": c["n_layers"],
        "num_attention_heads": c["n_heads"],
        "num_key_value_heads": c["n_kv_heads"],
        "head_dim": c["head_dim"],
        "vocab_size": c["vocab_size"],
        "max_position_embeddings": c["context"],
        "rms_norm_eps": c["norm_eps"],
        "rope_theta": c["rope_theta"],
        "rope_scaling": scaling,
        "tie_word_embeddings": c["tied"],
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos if bos >= 0 else None,
        "eos_token_id": eos if eos >= 0 else None,
        "torch_dtype": DTYPES[kind],
    }
    values |= {"sliding_window": c["window"]} if mistral else {}
    return json.dumps(values, indent=2) + "\n"


def rope_scaling(source: Source) -> dict[str, Any] | None:
    """What gives the model's frequencies in config.json. Raises UnsupportedError if nothing that is known does."""
    theta = source.transformer.config["rope_theta"]
    frequencies = source.transformer.rope_frequencies
    plain = [theta ** (-i / len(frequencies)) for i in range(len(frequencies))]
    if _equal(frequencies, plain):
        return None
    factor = plain[0] / frequencies[0]
    if _equal(frequencies, [frequency / factor for frequency in plain]):
        return {"rope_type": "linear", "factor": float(f"{factor:.7g}")}
    for scaling in _LLAMA3:
        if _equal(frequencies, [_llama3(frequency, scaling) for frequency in plain]):
            return scaling
    raise UnsupportedError(f"{source.path}: its RoPE frequencies are none that config.json is known to tell")


def _llama3(frequency: float, scaling: dict[str, Any]) -> float:
    """Long waves are stretched by the factor, short ones not, and between there is a ramp."""
    low, high, factor = (scaling[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    share = min(max((turns - low) / (high - low), 0.0), 1.0)
    return float((1 - share) * frequency / factor + share * frequency)


def _equal(one: Sequence[float], other: Sequence[float]) -> bool:
    """To the precision of GGUF's divisors, which are f32."""
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True))
