"""Runs Llama models on the CPU.

    llm = llama2c.load("llama-2-7b.Q4_K_M.gguf")
    print(llm.generate("Once upon a time", seed=42))

`load` gives a `Llama` with `generate`, `stream`, `logits`, `score`, `session`; `Engine` computes many generations at
once. Below lie the classes of the C core: `Transformer` (weights), `Session` (one timeline of keys and values), `Pool`
(their memory), `Batch`, `Sampler`, `Tokenizer`.
"""

from typing import TYPE_CHECKING

from llama2c._checkout import package_path

__version__ = "0.1.0"
__path__ = package_path(__path__)

from llama2c._core import (
    ROLE_GENERATED,
    ROLE_PROMPT,
    Batch,
    BusyError,
    CancelledError,
    ContextError,
    ExhaustedError,
    FormatError,
    Pool,
    Sampler,
    Session,
    Tokenizer,
    Transformer,
    UnsupportedError,
    available_isas,
)

if TYPE_CHECKING:
    from llama2c.chat import Conversation
    from llama2c.conversion import convert
    from llama2c.engine import Engine
    from llama2c.errors import TokenizerError
    from llama2c.generation import Generation, Piece, Timings
    from llama2c.generation import generate_once as generate
    from llama2c.model import Config, Llama, load
    from llama2c.quantization import Quantization, QuantizedTensor, quantize
    from llama2c.recording import Replay, record, replay
    from llama2c.records import Record
    from llama2c.scoring import Perplexity, Score, perplexity
    from llama2c.sequence import Sequence
    from llama2c.tokenizers import load_tokenizer

__all__ = [
    "ROLE_GENERATED",
    "ROLE_PROMPT",
    "Batch",
    "BusyError",
    "CancelledError",
    "Config",
    "ContextError",
    "Conversation",
    "Engine",
    "ExhaustedError",
    "FormatError",
    "Generation",
    "Llama",
    "Perplexity",
    "Piece",
    "Pool",
    "Quantization",
    "QuantizedTensor",
    "Record",
    "Replay",
    "Sampler",
    "Score",
    "Sequence",
    "Session",
    "Timings",
    "Tokenizer",
    "TokenizerError",
    "Transformer",
    "UnsupportedError",
    "available_isas",
    "convert",
    "generate",
    "load",
    "load_tokenizer",
    "perplexity",
    "quantize",
    "record",
    "replay",
]

# Names that are looked up when first used: importing llama2c stays cheap.
_LAZY = {
    "Config": ("model", "Config"),
    "Conversation": ("chat", "Conversation"),
    "Engine": ("engine", "Engine"),
    "Generation": ("generation", "Generation"),
    "Llama": ("model", "Llama"),
    "Perplexity": ("scoring", "Perplexity"),
    "Piece": ("generation", "Piece"),
    "Quantization": ("quantization", "Quantization"),
    "QuantizedTensor": ("quantization", "QuantizedTensor"),
    "Record": ("records", "Record"),
    "Replay": ("recording", "Replay"),
    "Score": ("scoring", "Score"),
    "Sequence": ("sequence", "Sequence"),
    "Timings": ("generation", "Timings"),
    "TokenizerError": ("errors", "TokenizerError"),
    "convert": ("conversion", "convert"),
    "generate": ("generation", "generate_once"),
    "load": ("model", "load"),
    "load_tokenizer": ("tokenizers", "load_tokenizer"),
    "perplexity": ("scoring", "perplexity"),
    "quantize": ("quantization", "quantize"),
    "record": ("recording", "record"),
    "replay": ("recording", "replay"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module 'llama2c' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(f"llama2c.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
