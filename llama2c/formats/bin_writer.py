"""Writer of llama2.c's files: checkpoints of versions 0, 1 and 2 (bin.c tells the layout), and tokenizer.bin."""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama2c._core import FormatError, Tokenizer, UnsupportedError
from llama2c.new_file import NewFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = 0x616B3432  # "ak42"
_HEADER = 256  # bytes, of versions 1 and 2
_V0_LAYER = (
    ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    ("ffn_norm", "ffn_gate", "ffn_down", "ffn_up"),
)
_TABLES = ""  # stands for version 0's cosines and sines among the names
_POSITIONS = 4096  # of these tables that are computed at once


@dataclass(frozen=True)
class Int8Groups:
    """Rows of a matrix of version 2."""

    values: "NDArray[np.int8]"
    scales: "NDArray[np.float32]"  # one for each group of values

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the file."""
        return self.values.nbytes + self.scales.nbytes


def encode_int8(x: "NDArray[np.float32]", group_size: int) -> tuple[Int8Groups, float, float]:
    """Rows as int8 with a scale for each group, rounded as llama2.c's export does; their squared error, x squared."""
    import numpy as np

    if not np.isfinite(x).all():
        raise ValueError("a weight is not finite")
    groups = x.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    values = np.rint(groups / np.where(scales > 0, scales, np.float32(1))[:, None])
    error = values.astype("f8") * scales[:, None] - groups
    return (
        Int8Groups(values.astype(np.int8), scales.astype("<f4")),
        float((error * error).sum()),
        float((groups.astype("f8") ** 2).sum()),
    )


def group_size_of(config: dict[str, Any]) -> int:
    """The size of version 2's groups: 64, or the power of two below that divides rows. Raises UnsupportedError."""
    size = math.gcd(64, config["dim"], config["hidden_dim"])
    if size < 4:
        raise UnsupportedError(
            f"dim is {config['dim']}, hidden_dim {config['hidden_dim']}: version 2 of llama2.c needs multiples of 4"
        )
    return size


class BinWriter:
    """A checkpoint whose tensors are written one after another, in the order of `names`; it appears when it is whole.

    config: of a Transformer. Raises OSError naming the file, ValueError when the data are not what the names tell.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: dict[str, Any], version: int, *, overwrite: bool = False
    ) -> None:
        self._config = config
        self._order = list(_order(config, version))
        self.names = [name for name in self._order if name != _TABLES]
        self._left = 0  # values of the tensor at hand
        self._scales: list[NDArray[np.float32]] = []
        self._file = NewFile(path, overwrite=overwrite)
        try:
            self._file.write(_header(config, version))
        except BaseException:
            self._file.discard()
            raise

    def write(self, data: "NDArray[np.uint8] | Int8Groups") -> None:
        """The next rows: float32 as bytes, or int8 groups, whose scales stand behind all rows of their matrix."""
        if self._left == 0:
            self._left = self._values_of_next()
        if isinstance(data, Int8Groups):
            self._file.write(data.values.reshape(-1).data.cast("B"))
            self._scales.append(data.scales)
            self._left -= data.values.size
        else:
            self._file.write(data.reshape(-1).data.cast("B"))
            self._left -= data.nbytes // 4
        if self._left < 0:
            raise ValueError("more rows than the tensor has")
        if self._left == 0:
            for scales in self._scales:
                self._file.write(scales.data.cast("B"))
            self._scales.clear()
            if self._order and self._order[0] == _TABLES:
                self._order.pop(0)
                self._write_tables()

    def _values_of_next(self) -> int:
        if not self._order:
            raise ValueError("more rows than the file has")
        *_, role = self._order.pop(0).removesuffix(".weight").split(".")
        c = self._config
        q_dim, kv_dim = c["n_heads"] * c["head_dim"], c["n_kv_heads"] * c["head_dim"]
        rows: int = {
            **dict.fromkeys(("token_embd", "output"), c["vocab_size"]),
            **dict.fromkeys(("attn_q", "attn_output"), q_dim),
            **dict.fromkeys(("attn_k", "attn_v"), kv_dim),
            **dict.fromkeys(("ffn_gate", "ffn_up", "ffn_down"), c["hidden_dim"]),
        }.get(role, 1)
        return rows * int(c["dim"])

    def _write_tables(self) -> None:
        """Cosines, then sines, [context][head_dim / 2] each. llama2.c's readers pass over them; old ones took them."""
        import numpy as np

        pairs, context = self._config["head_dim"] // 2, self._config["context"]
        frequencies = 10000.0 ** (-np.arange(pairs) / pairs)
        for function in (np.cos, np.sin):
            for start in range(0, context, _POSITIONS):
                positions = np.arange(start, min(start + _POSITIONS, context))
                self._file.write(function(positions[:, None] * frequencies).astype("<f4").data.cast("B"))

    def __enter__(self) -> "BinWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._order and self._left == 0:
            self._file.close()
            return
        self._file.discard()
        if kind is None:
            raise ValueError("fewer rows than the file has")


def _order(config: dict[str, Any], version: int) -> Iterator[str]:
    """Names of the tensors, GGUF's, in the order of the file."""

    def layers(*roles: str) -> Iterator[str]:
        for role in roles:
            yield from (f"blk.{layer}.{role}.weight" for layer in range(config["n_layers"]))

    first, second = _V0_LAYER
    if version == 0:
        yield "token_embd.weight"
        yield from layers(*first, *second)
        yield from ("output_norm.weight", _TABLES)
    else:
        yield from layers(first[0], second[0])
        yield from ("output_norm.weight", "token_embd.weight")
        yield from layers(*first[1:], *second[1:])
    if not config["tied"]:
        yield "output.weight"


def _header(config: dict[str, Any], version: int) -> bytes:
    vocab_size = config["vocab_size"] if version or config["tied"] else -config["vocab_size"]
    shape = [config[name] for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads")]
    fields = struct.pack("<7i", *shape, vocab_size, config["context"])
    if version == 0:
        return fields
    head = struct.pack("<Ii", _MAGIC, version) + fields + struct.pack("<B", config["tied"])
    if version == 2:
        head += struct.pack("<i", group_size_of(config))
    return head.ljust(_HEADER, b"\0")


# ---- tokenizer.bin ----


def tokenizer_bin(tokenizer: Tokenizer) -> bytes | None:
    """A vocabulary as tokenizer.bin has it; None for one that would not be the same when read back."""
    records = []
    for token in range(len(tokenizer)):
        piece, score, _ = tokenizer.piece(token)
        if token in (1, 2) and piece in (b"<s>", b"</s>"):
            piece = b"\n" + piece + b"\n"  # as llama2.c writes them
        records.append((piece, score))
    longest = max(len(piece) for piece, _ in records)
    data = struct.pack("<i", longest)
    data += b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in records)
    try:
        read = Tokenizer.from_bin(data)
    except FormatError:
        return None
    return data if _same(read, tokenizer) else None


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    def settings(t: Tokenizer) -> tuple[Any, ...]:
        return (len(t), t.unk, t.bos, t.eos, t.add_space_prefix, t.add_bos, t.add_eos)

    def piece(t: Tokenizer, token: int) -> tuple[bytes, float, int]:
        text, score, kind = t.piece(token)
        return text.strip(b"\n") if token in (1, 2) else text, score, kind

    return settings(one) == settings(other) and all(
        piece(one, token) == piece(other, token) for token in range(len(one))
    )
