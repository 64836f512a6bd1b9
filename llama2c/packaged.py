"""The model that the package carries: a small Llama trained on Shakespeare's plays (data/shakespeare.md)."""

from pathlib import Path

NAME = "shakespeare.gguf"


def packaged_model() -> str:
    """Path of the packaged model, the default of `load`, `generate` and of the commands."""
    return str(Path(__file__).resolve().parent / "data" / NAME)
