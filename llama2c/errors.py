"""The exceptions of llama2c; each is also a built-in one, so `except ValueError` and the like catch them."""

from llama2c._core import BusyError, CancelledError, ContextError, ExhaustedError, FormatError, UnsupportedError

__all__ = [
    "BusyError",
    "CancelledError",
    "ContextError",
    "ExhaustedError",
    "FormatError",
    "TokenizerError",
    "UnsupportedError",
]


class TokenizerError(ValueError):
    """No tokenizer was found, or the one given is not the model's."""

    __module__ = "llama2c"
