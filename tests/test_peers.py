"""The comparison with peers, without any: what is asked, what is told, and engines that fail in all ways."""

import dataclasses
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ggufs
import pytest
from oracle import Shape

import llama2c

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SHAPE = Shape(32, 64, 2, 4, 2, 300, 64, tied=False)
FAKE = """
import json, os, sys, time
engine, job = sys.argv[1], json.loads(sys.argv[2])
def answer(**values):
    print(json.dumps(values), flush=True)
if engine == "openvino-genai":
    answer(error="RuntimeError: not\\n  a | vocabulary")
    sys.exit(1)
answer(version="1.0", weights=job["type"] or "int8")
for line in sys.stdin:
    test = json.loads(line)
    decode = test["test"] == "decode"
    if engine == "llama-cpp-python" and test["batch"] > 1:
        answer(error="ValueError: one sequence")
    elif engine == "ctranslate2" and decode and not test["depth"]:
        sys.exit("out of luck")
    elif engine == "transformers" and decode:
        time.sleep(600)
    else:
        answer(seconds=0.25 if engine == "llama2c" else 0.5)
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/compare_peers.py, with the fake engines."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("compare_peers")
    worker = tmp_path / "fake_worker.py"
    worker.write_text(FAKE)
    monkeypatch.setattr(module, "WORKER", worker)
    monkeypatch.setattr(module, "PROBE_BYTES", 1 << 20)
    return module


@pytest.fixture
def report(peers) -> ModuleType:
    return importlib.import_module("peer_report")


@pytest.fixture
def model(tmp_path, rng) -> Path:
    path = tmp_path / "tiny-Q8_0.gguf"
    ggufs.write(path, SHAPE, ggufs.random_tensors(rng, SHAPE, "Q8_0"))
    return path


def all_peers(peers: ModuleType, *, but: str = "") -> list[str]:
    return [f"--peer={engine}={sys.executable}" for engine in peers.PEERS if engine != but]


@pytest.fixture
def start(peers, tmp_path) -> Iterator[Callable[..., Any]]:
    """A function that starts an engine's worker, for any model or for none."""
    workers = []

    def start(engine: str, model: Path | None = None) -> Any:
        shape = {} if model is None else llama2c.Transformer(str(model)).config
        job = {"model": str(model), "shape": shape, "threads": 1}
        workers.append(peers.Worker(peers.Column(engine, sys.executable), job, timeout=60, folder=tmp_path))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


# --- what is asked


def test_arguments(peers, model):
    given = [
        *all_peers(peers),
        "--skip",
        "openvino-genai",
        "--type=transformers=float32",
        "--type=transformers=bfloat16",
    ]
    options = peers.arguments([*given, "-p", "16,512", "-n", "8", "-d", "0,100", "-b", "1,4", str(model)])
    assert [column.name for column in options.columns] == [
        "llama2c",
        "llama-cpp-python",
        "ctranslate2",
        "transformers float32",
        "transformers bfloat16",
    ]
    assert [test.label for test in options.tests] == [
        "prefill 16",
        "prefill 512",
        "decode",
        "decode, 4 sequences",
        "decode at 100",
        "decode at 100, 4 sequences",
    ]
    assert options.absent == []


def test_a_peer_of_this_interpreter_needs_no_option(peers, model, monkeypatch):
    here = {"transformers", "torch"}
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name in here or None)
    options = peers.arguments([str(model)])
    assert [(column.engine, column.python) for column in options.columns] == [
        ("llama2c", sys.executable),
        ("transformers", sys.executable),
    ]
    assert options.absent == ["llama-cpp-python", "openvino-genai", "ctranslate2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no peer to compare with"),
        (["--peer", "llama.cpp=python"], "expected ENGINE=..., ENGINE one of llama-cpp-python"),
        (["--peer", "transformers"], "expected ENGINE=..."),
        (["--peer", "transformers=/no/such/python"], "no such program"),
        (["-p", "0", "-n", "0", f"--peer=transformers={sys.executable}"], "nothing to measure"),
        (["-b", "0"], "0, expected at least 1"),
        (["-r", "0"], "0, expected at least 1"),
        (["-d", "1,x"], "invalid list of integers value"),
        (["--memory", "fast"], "fast, expected GB/s"),
        (["--timeout", "-1"], "-1, expected seconds"),
        (["--json", "/no/such/directory/a.json"], "no such directory"),
        (["--plot", "a.txt"], "expected .svg"),
        (["--plot", "a.svg"], r"needs matplotlib: pip install 'llama2c\[benchmark\]'"),
        (["absent.gguf"], "absent.gguf: no such file"),
    ],
)
def test_arguments_that_are_refused(peers, model, monkeypatch, capsys, given, message):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        peers.arguments([*given, str(model)])
    assert re.search(message, capsys.readouterr().err)


# --- what is told


def test_results_are_rates_and_ratios_of_rounds(report):
    test = report.Test("decode", 10, batch=2)
    ours, theirs, failed = (
        report.Outcome([1.0, 2.0, 4.0]),
        report.Outcome([2.0, 2.0, 12.0]),
        report.Outcome([1.0], "why"),
    )
    mine, other, bad = report.results(test, {"llama2c": ours, "b": theirs, "c": failed})
    assert mine["tokens_per_second"] == {"median": 10, "min": 5, "max": 20} and mine["ratio"] is None
    assert other["ratio"] == {"median": 2, "min": 1, "max": 3}
    assert bad["tokens_per_second"] is None and bad["ratio"] is None and bad["error"] == "why" and bad["seconds"] == [1]


def test_no_ratio_without_ours(report):
    outcomes = {"llama2c": report.Outcome([], "why"), "b": report.Outcome([1.0])}
    assert [row["ratio"] for row in report.results(report.Test("prefill", 5), outcomes)] == [None, None]


def test_share_of_the_limits(report):
    limits = [report.Limits(40.0, 0.5, "f32"), report.Limits(50.0, 0.4, "f32")]
    model = {"token_bytes": 2_000_000_000, "token_macs": 1e9}
    decode = report.our_share(report.Test("decode", 4, batch=4), 40.0, model, limits)
    assert decode == {"used": 20.0, "unit": "GB/s", "share_min": 0.4, "share_max": 0.5}
    prefill = report.our_share(report.Test("prefill", 4), 100.0, model, limits)
    assert prefill == {"used": 0.2, "unit": "TFLOP/s f32", "share_min": 0.4, "share_max": 0.5}


def test_table_is_aligned_markdown(report):
    text = report.aligned([["a", "long head"], ["longer cell", "1"]])
    assert text.splitlines() == [
        "| a           | long head |",
        "|-------------|-----------|",
        "| longer cell | 1         |",
    ]
    assert report.one_line("a |\n b" + "c" * 999) == "a / b" + "c" * 154 + "…"
    assert [report.number(x) for x in (12345.6, 99.94, 1.234)] == ["12,346", "99.9", "1.23"]


# --- whole runs


def test_a_run(peers, model, tmp_path, capsys):
    out = tmp_path / "run.json"
    given = [
        *all_peers(peers, but="transformers"),
        "--skip=transformers",
        "--type=ctranslate2=int8_float32",
        "--pause=0",
    ]
    code = peers.main([*given, "-p7", "-n4", "-d0,9", "-b1,2", "-r2", "-t1", f"--json={out}", str(model)])
    assert code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(cells) == 5 * 4 and len(set(map(len, lines))) == 1
    rows = {(cell[0], cell[1].split()[0]): cell[2:] for cell in cells}
    assert rows["prefill 7", "llama2c"][:3] == ["int8", "28.0 (28.0–28.0)", ""]
    assert "TFLOP/s" in rows["prefill 7", "llama2c"][3] and "GB/s" in rows["decode at 9", "llama2c"][3]
    assert rows["prefill 7", "llama-cpp-python"] == ["int8", "14.0 (14.0–14.0)", "**2.00** (2.00–2.00)", ""]
    assert rows["decode, 2 sequences", "llama-cpp-python"] == ["int8", "—", "", "ValueError: one sequence"]
    assert rows["decode at 9", "openvino-genai"] == ["—", "—", "", "RuntimeError: not a / vocabulary"]
    assert rows["decode", "ctranslate2"] == ["int8_float32", "—", "", "ended with status 1: out of luck"]
    # started again after its end
    assert rows["decode at 9", "ctranslate2"] == ["int8_float32", "8.00 (8.00–8.00)", "**2.00** (2.00–2.00)", ""]

    told = json.loads(out.read_text(encoding="utf-8"))
    assert (told["format"], told["version"], told["rounds"], told["threads"]) == ("llama2c peer comparison", 1, 2, 1)
    (part,) = told["models"]
    assert part["model"] == "tiny-Q8_0.gguf" and part["shape"]["dim"] == 32 and len(part["limits"]) == 2
    assert [engine["column"] for engine in part["engines"]][3] == "ctranslate2 int8_float32"
    assert part["engines"][2]["error"] == "RuntimeError: not\n  a | vocabulary"
    assert [test["test"] for test in part["tests"]] == ["prefill", *["decode"] * 4]
    first = part["tests"][0]["results"][0]
    assert first["seconds"] == [0.25, 0.25] and set(first) == {
        "column",
        "error",
        "seconds",
        "tokens_per_second",
        "ratio",
        "share",
    }


def test_plot(report, tmp_path):
    pytest.importorskip("matplotlib")
    test = report.Test("prefill", 4)
    outcomes = {"llama2c": report.Outcome([1.0, 2.0]), "b": report.Outcome([2.0, 2.0]), "c": report.Outcome([], "why")}
    engines = [{"column": name, "engine": name, "weights": None, "type": None} for name in outcomes]
    entry = {**dataclasses.asdict(test), "results": report.results(test, outcomes)}
    report.plot({"models": [{"model": "m", "engines": engines, "tests": [entry]}]}, tmp_path / "a.svg")
    assert "</svg>" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_an_engine_that_hangs(peers, report, start):
    worker = start("transformers")
    assert worker.seconds(report.Test("prefill", 1)) == 0.5
    worker.timeout = 0.1
    with pytest.raises(peers.PeerError, match=r"no answer in 0\.1 s"):
        worker.seconds(report.Test("decode", 1))
    worker.timeout = 60
    assert worker.seconds(report.Test("prefill", 1)) == 0.5  # another process
    worker.close()
    worker.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_engine_that_is_killed(peers, start):
    peers.WORKER.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert start("llama2c").error == "ended by SIGKILL"


def test_an_engine_that_babbles(peers, start):
    peers.WORKER.write_text("print('hello')")
    assert start("llama2c").error == "not an answer: hello"


def test_turns(peers, report):
    """Each round is begun by the next engine, after one round that does not count."""
    turns = []

    class Engine:
        def __init__(self, name: str) -> None:
            self.column = peers.Column(name, "python")

        def seconds(self, test) -> float:
            turns.append(self.column.name)
            if len(turns) == 6:
                raise peers.PeerError("tired")
            return float(len(turns))

    engines = [Engine(name) for name in ("llama2c", "b", "c")]
    outcomes, _ = peers.measure(engines, report.Test("prefill", 1), rounds=2, pause=0)
    assert turns == ["llama2c", "b", "c", "b", "c", "llama2c", "c", "b"]
    assert outcomes["llama2c"] == report.Outcome([], "tired")
    assert outcomes["b"].seconds == [4, 8] and outcomes["c"].seconds == [5, 7]


# --- the worker itself


def test_our_worker(peers, report, model, start, monkeypatch):
    monkeypatch.setattr(peers, "WORKER", BENCHMARKS / "peer_worker.py")
    worker = start("llama2c", model)
    assert worker.error is None and worker.weights.startswith("Q8_0, ")
    for test in (report.Test("prefill", 9), report.Test("decode", 3, 5, 2), report.Test("decode", 3)):
        assert [worker.seconds(test) > 0 for _ in range(2)] == [True, True]
    with pytest.raises(peers.PeerError, match="ValueError"):
        worker.seconds(report.Test("prefill", 0))
    assert worker.seconds(report.Test("prefill", 9)) > 0


def test_an_engine_that_is_not_there(peers, start, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "WORKER", BENCHMARKS / "peer_worker.py")
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no llama.cpp')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert start("llama-cpp-python").error == "ImportError: no llama.cpp"


def test_the_command_and_its_worker_know_the_same_engines(peers):
    assert set(importlib.import_module("peer_worker").ENGINES) == {"llama2c", *peers.PEERS}


def test_rounds_by_the_memorys_state(peers, report, model, monkeypatch, capsys, tmp_path):
    """Rounds between two probes on one side of the bound are told apart, and one in which it changed is left out."""
    reads = iter([50, 50, 51, 52, 90, 91, 92, 93, 94, 50])
    monkeypatch.setattr("llama2c._core.probe_bandwidth", lambda size, **_: next(reads) if size == 1 << 18 else 60.0)
    file = tmp_path / "r.json"
    others = [f"--skip={engine}" for engine in peers.PEERS if engine != "llama-cpp-python"]  # one may be installed
    arguments = [*all_peers(peers), *others, "-p0", "-n4", "-r5", "--pause=0", "--memory=65"]
    assert peers.main([*arguments, f"--json={file}", str(model)]) == 0
    tests = json.loads(file.read_text())["models"][0]["tests"]
    assert [test["memory"] for test in tests] == ["below 65 GB/s (2 rounds)", "from 65 GB/s (2 rounds)"]
    assert [len(test["results"][1]["seconds"]) for test in tests] == [2, 2]
    shares = [test["results"][0]["share"] for test in tests]
    assert shares[1]["used"] / shares[1]["share_max"] == pytest.approx(90)
    assert "decode, memory from 65 GB/s (2 rounds)" in capsys.readouterr().out
