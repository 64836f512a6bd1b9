"""Downloads of texts to train on; they need the package huggingface_hub, the extra `hub`."""

import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from llama2c._core import FormatError
from llama2c.new_file import NewFile
from llama2c.tokenizers import StrPath

REPOSITORY = "roneneldan/TinyStories"
ARCHIVE = "TinyStories_all_data.tar.gz"

# Called with each file when it is whole.
Progress = Callable[[Path], None]


def download_tinystories(out: StrPath, *, progress: Progress | None = None) -> list[Path]:
    """The JSON files of TinyStories in a directory, and their paths.

    The archive goes into huggingface_hub's cache; a download that was interrupted is continued, and files that are
    there already are kept. Raises RuntimeError if huggingface_hub is not installed or the download fails, OSError, or
    FormatError for a broken archive.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise RuntimeError("downloads need huggingface_hub: pip install 'llama2c[hub]'") from None
    try:
        archive = hf_hub_download(repo_id=REPOSITORY, filename=ARCHIVE, repo_type="dataset")
    except Exception as error:  # each version of it has others
        raise RuntimeError(f"{REPOSITORY}: {ARCHIVE} cannot be downloaded: {error}") from error
    return extract_json(archive, out, progress=progress)


def extract_json(archive: StrPath, out: StrPath, *, progress: Progress | None = None) -> list[Path]:
    """Extract the .json files of a tar archive; the paths of all, those that were there with their size included.

    Each appears when it is whole. Raises OSError, also before a file that the disk has no room for, or FormatError for
    a broken archive or a name outside of `out`.
    """
    name, folder = os.fspath(archive), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    try:
        with tarfile.open(name) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".json"):
                    paths.append(_extract(tar, member, folder))
                    if progress is not None:
                        progress(paths[-1])
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FormatError(f"{name}: {error}") from None
    if not paths:
        raise FormatError(f"{name}: no .json file in it")
    return paths


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> Path:
    member = tarfile.data_filter(member, os.fspath(folder))  # raises for a place outside
    path = folder / member.name
    if path.is_file() and path.stat().st_size == member.size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(path.parent).free
    if room < member.size:
        raise OSError(f"{path}: it needs {member.size} bytes, the disk has {room}")
    content = tar.extractfile(member)
    written = 0
    with NewFile(path, overwrite=True) as file:
        while content is not None and (block := content.read(1 << 20)):
            file.write(block)
            written += len(block)
        if written != member.size:
            raise tarfile.ReadError(f"{member.name} has {written} bytes, expected {member.size}")
    return path
