"""The cache of models quantised when loaded: made once, whole or not there, mapped the second time."""

import os
import pickle
import signal
import subprocess
import sys
import time

import ggufs
import numpy as np
import pytest
from oracle import Shape

import llama2c
from llama2c import cache
from llama2c.cli import main

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, locks and HOME of POSIX")
SHAPE = Shape(256, 512, 2, 4, 2, 64, 128)
TOKENS = [1, 5, 9, 60]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache's directory, which is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "llama2c"


@pytest.fixture
def model(tmp_path, rng):
    ggufs.write(tmp_path / "model.gguf", SHAPE, ggufs.random_tensors(rng, SHAPE, "F32"))
    return tmp_path / "model.gguf"


def test_the_second_start_maps_the_file(folder, model, tmp_path, monkeypatch):
    llama2c.quantize(model, tmp_path / "q.gguf", "Q4_K_M")
    expected = llama2c.load(tmp_path / "q.gguf").logits(TOKENS)
    with llama2c.load(model, quantize="q4_k") as llm:
        assert np.array_equal(llm.logits(TOKENS), expected)
        assert llm.path == str(model) and llm.config.weight_type == "Q4_K"
        again = pickle.loads(pickle.dumps(llm))
        assert np.array_equal(again.logits(TOKENS), expected)
    [entry] = cache.cache_entries()
    assert os.listdir(folder) == [entry.path.name]
    assert entry.path.name.startswith("model-Q4_K_M-")

    def never(*_, **__):
        raise AssertionError("quantised again")

    monkeypatch.setattr(cache, "quantize", never)
    second = llama2c.load(str(model), quantize="Q4_K_M")
    assert np.array_equal(second.logits(TOKENS), expected)
    assert second.transformer.path == str(entry.path)


def test_another_type_or_content_is_another_entry(folder, model, rng):
    llama2c.load(model, quantize="q8_0")
    llama2c.load(model, quantize="q4_0")
    assert len(cache.cache_entries()) == 2
    status = model.stat()
    with model.open("r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(np.float32([0.25, 0.5]).tobytes())
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time: the samples tell
    llama2c.load(model, quantize="q8_0")
    assert len(cache.cache_entries()) == 3
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    llama2c.load(model, quantize="q8_0")
    assert len(cache.cache_entries()) == 4


def test_a_model_of_that_type_is_taken_as_it_is(folder, model, tmp_path):
    llama2c.quantize(model, tmp_path / "q.gguf", "Q5_K_S")
    assert llama2c.load(tmp_path / "q.gguf", quantize="q5_k_s").transformer.path == str(tmp_path / "q.gguf")
    assert not folder.exists()


@pytest.mark.parametrize("mmap", [True, False])
def test_no_cache(folder, model, tmp_path, monkeypatch, mmap):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    llm = llama2c.load(model, quantize="Q6_K", cache=False, mmap=mmap)
    assert not folder.exists() and not os.listdir(temporary)
    assert np.isfinite(llm.logits(TOKENS)).all()
    assert llm.config.weight_type == "Q6_K"
    with pytest.raises(ValueError, match="no type 'Q9'"):
        llama2c.load(model, quantize="Q9")


def test_a_checkpoint_keeps_its_tokenizer(folder, data_file):
    plain = llama2c.load(data_file("models/stories260K.bin"), tokenizer=data_file("models/tok512.bin"))
    llm = llama2c.load(data_file("models/stories260K.bin"), tokenizer=data_file("models/tok512.bin"), quantize="q8_0")
    assert llm.tokenizer.encode("Once upon") == plain.tokenizer.encode("Once upon")
    ids = plain.tokenizer.encode("Once upon a time, there was a little girl")
    difference = llm.logits(ids) - plain.logits(ids)
    assert (difference**2).sum() < 2e-3 * (plain.logits(ids) ** 2).sum()


@POSIX
def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.cache_folder() == tmp_path / ".cache" / "llama2c"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / ".cache" / "llama2c"


def test_the_commands(folder, model, data_file, capfd):
    path, vocabulary = str(data_file("models/stories260K.bin")), str(data_file("models/tok512.bin"))
    assert main(["cache", "list"]) == 0
    assert capfd.readouterr().out == f"{folder}: 0 files, 0 B\n"
    command = ["run", path, "-z", vocabulary, "-t", "0", "-n", "20", "--quantize", "q8_0"]
    assert main([*command, "--no-cache"]) == 0
    first = capfd.readouterr().out
    assert not folder.exists()
    assert main(command) == 0
    assert capfd.readouterr().out == first
    assert main(["cache", "list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and "stories260K-Q8_0-" in lines[0] and lines[1].startswith(f"{folder}: 1 file, 3")
    (folder / "x.gguf.tmp-1").write_bytes(b"left behind")
    assert main(["cache", "clear"]) == 0
    assert capfd.readouterr().out.endswith(" KiB, removed\n")
    assert not os.listdir(folder)
    with pytest.raises(SystemExit) as stopped:
        main(["run", path, "--quantize", "Q9"])
    assert stopped.value.code == 2
    assert "argument --quantize: no type 'Q9'; there are" in capfd.readouterr().err


LOAD = """
import sys, zlib, llama2c
from llama2c import cache
made = []
real = cache.quantize
cache.quantize = lambda *a, **k: (made.append(1), real(*a, **k))
llm = llama2c.load(sys.argv[1], quantize="q3_k_m", threads=1)
print(len(made), zlib.crc32(llm.logits([1, 2, 3]).tobytes()))
"""


def start(path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LOAD, str(path)], stdout=subprocess.PIPE, text=True, cwd="/")


@POSIX
@pytest.mark.slow
def test_starts_at_once(folder, model):
    """One process makes the entry, the others wait for it."""
    processes = [start(model) for _ in range(4)]
    told = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(int(made) for made, _ in told) == 1
    assert len({crc for _, crc in told}) == 1
    assert len(os.listdir(folder)) == 1


@POSIX
@pytest.mark.slow
def test_kills(folder, data_file):
    """A start that is killed leaves no entry; the one after it makes it, and removes what was left."""
    model = data_file("golden/llama3rope-f32.gguf")
    for _ in range(2):
        process = start(model)
        for _ in range(2000):
            if folder.exists() and list(folder.glob("*.tmp-*")):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not cache.cache_entries()
        assert len(list(folder.glob("*.tmp-*"))) == 1
    assert start(model).communicate()[0].startswith("1 ")
    assert [name.rpartition(".")[2] for name in os.listdir(folder)] == ["gguf"]
