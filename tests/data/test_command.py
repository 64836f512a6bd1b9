"""`llama2c data`: the command, its help and wrong arguments."""

import json
import re

import pytest
from corpus import jsonl, stories

from llama2c.cli import main
from llama2c.training.shards import open_dataset


def test_command(tmp_path, capfd, fixed):
    (tmp_path / "s.jsonl").write_text(jsonl(*[{"story": text} for text in stories(fixed, 40)], 7))
    source, model, out = (str(tmp_path / name) for name in ("s.jsonl", "o.model", "d"))
    assert main(["data", "vocab", model, source, "--size", "300", "--max-sentences", "30"]) == 0
    captured = capfd.readouterr()
    assert re.fullmatch(rf"{re.escape(model)}: 300 tokens, learnt from 30 of \d+ lines\n", captured.out)
    assert captured.err == f"llama2c: 1 bad record left out\n  {source}:41: expected an object, got a number\n"
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--validation", "0.25"]) == 0
    captured = capfd.readouterr()
    assert captured.err == f"llama2c: 1 bad record left out\n  {source}:41: expected an object, got a number\n"
    table = captured.out
    assert re.search(r"^  train +1 +30 ", table, re.M)
    assert re.search(r"^  validation +1 +10 ", table, re.M)
    assert main(["data", "info", out, "--check"]) == 0
    assert capfd.readouterr().out == table
    assert main(["data", "info", out, "--json"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["splits"]["train"]["tokens"] == open_dataset(out).tokens("train")
    assert figures["bad_records"] == 1
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--validation", "0.25"]) == 0
    assert capfd.readouterr().out == f"1 of 1 files were done already\n{table}"
    assert main(["data", "tokenize", source, "-z", model, "--out", out]) == 1
    assert "replaced only if told (overwrite, --force)" in capfd.readouterr().err
    assert main(["data", "tokenize", source, "-z", model, "--out", out, "--force", "--eos", "--strip"]) == 0
    assert "  validation       0 " in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["data"],
        ["data", "vocab", "o.model", "t.txt"],
        ["data", "vocab", "o.model", "t.txt", "--size", "0"],
        ["data", "tokenize", "t.txt", "--out", "d"],
        ["data", "tokenize", "t.txt", "-z", "x", "--out", "d", "--validation", "0.1", "--validation-input", "x"],
        ["data", "download", "other", "--out", "d"],
    ],
)
def test_wrong_arguments(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.fullmatch(r"llama2c: error: .* \(see llama2c data.* --help\)\n", capfd.readouterr().err)


@pytest.mark.parametrize("action", [[], ["vocab"], ["tokenize"], ["info"], ["download"]])
def test_help(action, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["data", *action, "--help"])
    assert stopped.value.code == 0
    assert max(map(len, capfd.readouterr().out.splitlines())) <= 120
