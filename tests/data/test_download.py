"""Archives that are downloaded, whole and broken."""

import io
import os
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from llama2c import FormatError
from llama2c.cli import main
from llama2c.training.documents import input_files, read_documents
from llama2c.training.download import download_tinystories, extract_json


def archive(path: Path, members: dict[str, bytes], *, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def hub(monkeypatch) -> types.ModuleType:
    """A huggingface_hub whose downloads are set by .archive."""
    module = types.ModuleType("huggingface_hub")
    module.calls = []

    def hf_hub_download(**options: str) -> str:
        module.calls.append(options)
        if isinstance(module.archive, Exception):
            raise module.archive
        return str(module.archive)

    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_download(tmp_path, hub, capfd):
    content = {"data00.json": b'[{"story": "a"}]', "./data01.json": b"[]", "README.md": b"no", "more/x.json": b"{}"}
    hub.archive = archive(tmp_path / "all.tar.gz", content)
    out = tmp_path / "o"
    assert main(["data", "download", "tinystories", "--out", str(out)]) == 0
    assert hub.calls == [
        {"repo_id": "roneneldan/TinyStories", "filename": "TinyStories_all_data.tar.gz", "repo_type": "dataset"}
    ]
    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {"data00.json", "data01.json", "more/x.json"}
    assert capfd.readouterr().out.splitlines()[-1] == f"{out}: 3 files, 20 B"
    assert [document for file in input_files([out]) for document in read_documents(file, bad=lambda _: None)] == ["a"]
    before = (out / "data00.json").stat().st_mtime_ns
    (out / "data01.json").write_bytes(b"half of it, or so")
    assert len(download_tinystories(out)) == 3
    assert (out / "data00.json").stat().st_mtime_ns == before
    assert (out / "data01.json").read_bytes() == b"[]"


def test_download_that_fails(tmp_path, hub, monkeypatch, capfd):
    hub.archive = KeyError("no network")
    with pytest.raises(RuntimeError, match=r"TinyStories_all_data.tar.gz cannot be downloaded: 'no network'"):
        download_tinystories(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["data", "download", "tinystories", "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "llama2c: error: downloads need huggingface_hub: pip install 'llama2c[hub]'\n"


def test_archives_that_are_wrong(tmp_path, monkeypatch):
    out = tmp_path / "o"
    with pytest.raises(FormatError, match=r"none.tar: no .json file in it"):
        extract_json(archive(tmp_path / "none.tar", {"a.txt": b""}, mode="w"), out)
    with pytest.raises(FormatError, match="outside"):
        extract_json(archive(tmp_path / "out.tar", {"../a.json": b"[]"}, mode="w"), out)
    assert not (tmp_path / "a.json").exists()
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("link.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(FormatError, match=r"no \.json file"):
        extract_json(tmp_path / "link.tar", out)
    noise = np.random.default_rng(1).bytes(100_000)
    whole = archive(tmp_path / "all.tar.gz", {"a.json": noise}).read_bytes()
    for name, content in ("cut.tar.gz", whole[:50_000]), ("no.tar.gz", b"no archive"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            extract_json(tmp_path / name, out)
    assert os.listdir(out) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"a.json: it needs 100000 bytes, the disk has 10"):
        extract_json(tmp_path / "all.tar.gz", out)
