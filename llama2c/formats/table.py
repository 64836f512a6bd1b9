"""What a reader of a format that the core does not know makes of a model's files: `Transformer` opens it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TableEntry:
    """A tensor in the files."""

    name: str  # what the file calls it
    role: str  # what the core calls it: "token_embd", "attn_q", ...
    layer: int  # 0 for a tensor that no layer owns
    type: str  # GGUF's name of it: "F32", "F16", "BF16", ...
    shape: tuple[int, ...]  # rows and columns; a norm is a vector
    file: int  # index in ModelTable.paths
    offset: int  # in that file
    bytes: int


@dataclass(frozen=True)
class ModelTable:
    """A model in such files. The core holds every statement against the files, and owns nothing of this afterwards."""

    format: str  # its name, for config.format
    paths: tuple[str, ...]  # the files with the weights
    others: tuple[str, ...]  # the files besides that make the model what it is: its configuration
    entries: tuple[TableEntry, ...]
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context: int
    norm_eps: float
    rope_theta: float
    tied: bool = False
    window: int = 0  # positions that a token sees, 0: all
    rope_factor: float = 1.0  # positions are divided by it
    rope_freqs: tuple[float, ...] = ()  # [head_dim / 2] divisors of RoPE's frequencies, or none
    rope_halves: bool = False  # RoPE turns row i of a head's with i + head_dim / 2, not 2 i with 2 i + 1
