"""The cache of models that were quantised when they were loaded, in $XDG_CACHE_HOME/llama2c, else ~/.cache/llama2c.

An entry is a GGUF file named after its source, its type and a hash that stands for the source's content. It appears
when it is whole; of several processes that want it, one makes it and the others wait.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llama2c import __version__
from llama2c.formats.gguf_source import open_source
from llama2c.new_file import remove_leftovers
from llama2c.quantization import Progress, planned, quantize
from llama2c.recipes import ALIASES, recipe_of
from llama2c.tokenizers import StrPath
from llama2c.weights import model_name, model_paths

if sys.platform != "win32":
    import fcntl

_HEAD, _PAGE, _PAGES = 1 << 16, 1 << 12, 64  # bytes that the hash reads of a file: its head, pages all over it


def cache_folder() -> Path:
    """Where the entries lie; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the specification has relative paths ignored
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "llama2c"


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache."""

    path: Path
    bytes: int
    made: float  # seconds since 1970


def cache_entries() -> list[CacheEntry]:
    """What is in the cache, by name."""
    found = []
    for path in sorted(cache_folder().glob("*.gguf")):
        with contextlib.suppress(FileNotFoundError):  # another process clears
            status = path.stat()
            found.append(CacheEntry(path, status.st_size, status.st_mtime))
    return found


def clear_cache() -> list[CacheEntry]:
    """Remove all entries, and what killed processes have left; returns the entries. Models in use keep their pages."""
    entries = cache_entries()
    for entry in entries:
        entry.path.unlink(missing_ok=True)
    folder = cache_folder()
    for leftover in folder.glob("*.gguf.tmp-*"):
        remove_leftovers(str(leftover).rpartition(".tmp-")[0])
    for lock in folder.glob("*.gguf.lock"):
        lock.unlink(missing_ok=True)
    return entries


@contextlib.contextmanager
def quantized(
    path: StrPath,
    type: str,
    *,
    cache: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[str]:
    """The path of a model with its weights in a type, for the time of a `with`: open it there.

    It is the model's own if all weights are of their types already, else that of a file in the cache, which is made if
    it is not there. cache=False: that of a temporary file, which is removed at the end. Raises what quantize() raises.
    """
    recipe = recipe_of(type)
    entry = _entry(path, type)
    if cache and entry.is_file():
        yield str(entry)
        return
    source = open_source(path)
    if all(tensor.type == kind for tensor, kind in planned(source, recipe)):
        yield os.fspath(path)
    elif cache:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _alone(f"{entry}.lock"):
            if not entry.is_file():
                quantize(path, entry, type, threads=threads, overwrite=True, progress=progress)
        yield str(entry)
    else:
        folder = tempfile.mkdtemp(prefix="llama2c-")
        try:
            temporary = os.path.join(folder, entry.name)
            quantize(path, temporary, type, threads=threads, progress=progress)
            yield temporary
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _entry(path: StrPath, type: str) -> Path:
    upper = type.upper()
    name = ALIASES.get(upper, upper)
    digest = hashlib.sha256(f"{__version__} {name}".encode())
    for part in model_paths(path):
        _add(digest, part)
    return cache_folder() / f"{model_name(path)}-{name}-{digest.hexdigest()[:16]}.gguf"


def _add(digest: "hashlib._Hash", path: str) -> None:
    """Size, time and samples of a file: what tells one version of a model from another without reading all of it."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
        digest.update(file.read(_HEAD))
        for page in range(_PAGES):
            file.seek(max(0, status.st_size - _PAGE) * page // (_PAGES - 1))
            digest.update(file.read(_PAGE))


@contextlib.contextmanager
def _alone(lock: str) -> Iterator[None]:
    """One process at a time, however it ends; on Windows, which has no such locks here, all at once."""
    with open(lock, "wb") as file:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(lock)
