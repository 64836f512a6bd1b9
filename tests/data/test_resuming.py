"""A dataset that was stopped goes on; what is there and stays right is not made again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpus import contents, encoded, jsonl, tokens_of, words

from llama2c.training.shards import MANIFEST
from llama2c.training.tokenizing import tokenize

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}


def test_only_what_is_missing_is_made_again(tmp_path, collection, model):
    folder, _ = collection
    out = tmp_path / "d"

    def again(**options) -> tuple[int, int]:
        result = tokenize([folder], out, tokenizer=model, workers=1, **options)
        return result.made, result.kept

    assert again() == (5, 0)
    whole, made = contents(out), times(out)
    assert again() == (0, 5)
    assert times(out) == made
    [a, b, *_] = sorted(made)
    (out / a).unlink()
    (out / b).write_bytes(whole[b][:-1])
    assert again() == (2, 3)
    assert contents(out) == whole
    (out / MANIFEST).unlink()
    (out / "tokenizer.model").unlink()
    assert again() == (5, 0)  # what the shards are is not known without it
    assert contents(out) == whole

    (folder / "a.json").write_text('[{"story": "other"}]')
    with pytest.raises(FileExistsError, match="of other files, options or another tokenizer"):
        again()
    assert contents(out) == whole
    assert again(overwrite=True) == (1, 4)
    assert len(contents(out)) == len(whole)  # nothing is left of the old shard
    assert again(overwrite=True, eos=True) == (5, 0)
    (out / MANIFEST).write_text("{}")
    with pytest.raises(FileExistsError):
        again(eos=True)
    assert again(eos=True, overwrite=True) == (5, 0)
    assert len(contents(out)) == len(whole)


def test_output_beside_the_input(tmp_path, collection, model):
    folder, texts = collection
    for out in (folder, folder / "tokens"):
        for _ in range(2):
            dataset = tokenize([folder], out, tokenizer=model, workers=1).dataset
            assert tokens_of(dataset, "train") == encoded(model, texts)
        (folder / MANIFEST).unlink(missing_ok=True)


def test_another_tokenizer_in_the_directory_is_not_replaced(tmp_path, collection, model):
    folder, _ = collection
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tokenizer.model").write_text("someone's")
    with pytest.raises(FileExistsError):
        tokenize([folder], tmp_path / "d", tokenizer=model, workers=1)
    tokenize([folder], tmp_path / "d", tokenizer=model, workers=1, overwrite=True)


@POSIX
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_kill_loses_nothing(tmp_path, model, fixed, name, code):
    folder, out = tmp_path / "texts", tmp_path / "d"
    folder.mkdir()
    text = words(fixed, 2000)
    for number in range(20):
        (folder / f"{number:02}.jsonl").write_text(jsonl(*[{"text": f"{text} {number}"}] * 10))
    command = [sys.executable, "-m", "llama2c", "data", "tokenize", folder, "-z", model, "--out", out, "--workers", "2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, cwd="/", **options) as process:
        while not list(out.glob("*.part.json")) and process.poll() is None:
            time.sleep(0.001)
        if name == "SIGINT":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.kill()
        assert process.communicate(timeout=60)[0] == b""  # the pipe closes when the workers have ended, too
    assert process.returncode == code
    assert not (out / MANIFEST).exists()
    for path in out.glob("*.npy"):
        np.load(path, mmap_mode="r")  # whole
    (out / "x-0123456789ab-train-000.npy.tmp-1").write_bytes(b"as a killed process leaves it")
    result = tokenize([folder], out, tokenizer=model, workers=1)
    assert result.kept >= 1
    assert result.made >= 1
    tokenize([folder], tmp_path / "fresh", tokenizer=model, workers=1)
    assert contents(out) == contents(tmp_path / "fresh")
