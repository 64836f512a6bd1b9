"""Opens tokenizer files, and finds the one that belongs to a checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llama2c._core import FormatError, Tokenizer, UnsupportedError, is_gguf, read_gguf_entries
from llama2c.errors import TokenizerError
from llama2c.formats.hf import directory_of, is_hf
from llama2c.new_file import NewFile

if TYPE_CHECKING:
    from llama2c.formats.tiktoken_model import TiktokenTable
    from llama2c.formats.tokenizer_json import JsonTable

StrPath = str | os.PathLike[str]


def load_tokenizer(path: StrPath) -> Tokenizer:
    """The tokenizer in a GGUF file, a llama2.c `tokenizer.bin`, a SentencePiece `.model` (BPE) or Llama 3's, or a
    Hugging Face `tokenizer.json` (byte-level BPE).

    A `.json` is told by its suffix, a `.model` by its suffix and first line. Raises OSError, or FormatError that names
    the file, the place and what was expected.
    """
    if os.fspath(path).endswith(".model"):
        from llama2c.formats.sentencepiece_model import read_sentencepiece
        from llama2c.formats.tiktoken_model import is_tiktoken, read_tiktoken

        if is_tiktoken(path):
            return _from_tiktoken(path, read_tiktoken(path))
        table = read_sentencepiece(path)
        return Tokenizer.from_table(
            table.pieces,
            table.scores,
            table.types,
            unk=table.unk,
            bos=table.bos,
            eos=table.eos,
            add_space_prefix=table.add_space_prefix,
        )
    if os.fspath(path).endswith(".json"):
        from llama2c.formats.tokenizer_json import read_tokenizer_json

        return _from_json(path, read_tokenizer_json(path))
    if is_gguf(path):
        return Tokenizer.from_gguf(path)
    data = Path(path).read_bytes()
    try:
        return Tokenizer.from_bin(data)
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _from_tiktoken(path: StrPath, table: "TiktokenTable") -> Tokenizer:
    try:
        return Tokenizer.from_bpe(
            table.pieces, table.types, None, pre=table.pre, bos=table.bos, eos=table.eos, ignore_merges=True
        )
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def _from_json(path: StrPath, table: "JsonTable") -> Tokenizer:
    try:
        return Tokenizer.from_bpe(
            table.pieces,
            table.types,
            table.merges,
            pre=table.pre,
            bos=table.bos,
            eos=table.eos,
            ignore_merges=table.ignore_merges,
        )
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from None


def candidates(checkpoint: StrPath, vocab_size: int) -> Iterator[Path]:
    """Where a checkpoint's tokenizer may lie: in its directory, then, as llama2.c has it, in the current one."""
    for directory in (directory_of(checkpoint), Path()):
        for name in (
            "tokenizer.bin",
            f"tok{vocab_size}.bin",
            "tokenizer.model",
            f"tok{vocab_size}.model",
            "tokenizer.gguf",
        ):
            yield directory / name
        if directory != Path() and is_hf(checkpoint):
            yield directory / "tokenizer.json"


def tokenizer_files(path: StrPath) -> dict[str, Path]:
    """The files of a tokenizer by the names under which candidates() finds them in another directory."""
    source = Path(path)
    if is_gguf(source):
        return {"tokenizer.gguf": source}
    if source.suffix != ".json":
        return {"tokenizer.model" if source.suffix == ".model" else "tokenizer.bin": source}
    settings = source.with_name("tokenizer_config.json")  # which tells the token that ends a text
    return {"tokenizer.json": source} | ({settings.name: settings} if settings.is_file() else {})


def copy_tokenizer_file(source: StrPath, path: StrPath, *, overwrite: bool = False) -> None:
    """A copy, which appears when it is whole; of a GGUF file the vocabulary alone. Raises OSError, FormatError."""
    if is_gguf(source):
        from llama2c.formats.gguf_writer import GGUFWriter, encode_value

        entries = [entry for entry in read_gguf_entries(source) if entry[0].startswith("tokenizer.")]
        with GGUFWriter(path, [("general.architecture", encode_value("llama")), *entries], [], overwrite=overwrite):
            return
    with open(source, "rb") as original, NewFile(path, overwrite=overwrite) as file:
        while block := original.read(1 << 20):
            file.write(block)


def find_tokenizer(checkpoint: StrPath, vocab_size: int) -> tuple[Tokenizer, str]:
    """A GGUF file's own tokenizer, else the first of the candidates that exists and has the model's size; its path.

    Raises TokenizerError listing all.
    """
    if is_gguf(checkpoint):
        own = checked(Tokenizer.from_gguf(checkpoint), vocab_size, "its tokenizer", checkpoint)
        return own, os.fspath(checkpoint)
    seen = []
    for path in dict.fromkeys(candidates(checkpoint, vocab_size)):
        if not path.is_file():
            seen.append(f"{path} (not there)")
            continue
        try:
            tokenizer = load_tokenizer(path)
        except UnsupportedError as error:
            seen.append(str(error))
            continue
        if len(tokenizer) == vocab_size:
            return tokenizer, os.fspath(path)
        seen.append(f"{path} ({len(tokenizer)} tokens)")
    raise TokenizerError(
        f"{os.fspath(checkpoint)}: no tokenizer of {vocab_size} tokens found; looked at {', '.join(seen)}; "
        "name one with tokenizer=... or --tokenizer"
    )


def checked(tokenizer: Tokenizer, vocab_size: int, name: str, checkpoint: StrPath) -> Tokenizer:
    """The tokenizer itself, if it has as many tokens as the model. Raises TokenizerError."""
    if len(tokenizer) != vocab_size:
        raise TokenizerError(
            f"{name} has {len(tokenizer)} tokens, but the model {os.fspath(checkpoint)} has {vocab_size}: "
            "not its tokenizer"
        )
    return tokenizer
