"""llama2c beside its peers on the same models, alternating in one run: a table, and with --json and --plot files of it.

    python benchmarks/compare_peers.py --peer llama-cpp-python=PEER/bin/python -p 512 -d 0,1024 -b 1,8 model-Q8_0.gguf

Peers: llama-cpp-python, openvino-genai, ctranslate2, transformers; each from the virtual environment whose interpreter
--peer names, or from this one if it is installed here. Every engine is a process that holds the model open
(peer_worker.py); in each round of a test they take turns, every round begun by another one. What an engine cannot do
is told in the table and the others go on. The ratios are the result: the medians of the rounds' ratios.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer_report import FORMAT, OURS, VERSION, Limits, Outcome, Test, by_memory, our_share, plot, results, table

WORKER = Path(__file__).resolve().parent / "peer_worker.py"
PROBE_BYTES = 1 << 29
# what an engine's worker imports besides NumPy
PEERS = {
    "llama-cpp-python": ("llama_cpp",),
    "openvino-genai": ("openvino_genai", "openvino", "gguf"),
    "ctranslate2": ("ctranslate2", "transformers", "tokenizers", "torch"),
    "transformers": ("transformers", "torch"),
}


class PeerError(Exception):
    """An engine that gave no answer, or a reason instead of one."""


@dataclasses.dataclass(frozen=True)
class Column:
    """An engine, the interpreter that has it, and the type its weights shall have (None: its own choice)."""

    engine: str
    python: str
    type: str | None = None

    @property
    def name(self) -> str:
        """Its name in the report."""
        return self.engine if self.type is None else f"{self.engine} {self.type}"


class Worker:
    """An engine's process with a model open. It is started again, for the next test, after it died or hung."""

    def __init__(self, column: Column, job: dict[str, Any], *, timeout: float, folder: Path) -> None:
        self.column, self.timeout = column, timeout
        self.version: str | None = None
        self.weights: str | None = None
        self.error: str | None = None  # why it never opened the model
        self._command = [column.python, str(WORKER), column.engine, json.dumps({**job, "type": column.type})]
        self._log = folder / f"{column.name.replace(' ', '-')}.log"
        threads = str(job["threads"])
        self._environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),  # removed even if the process is killed
            "HF_HUB_OFFLINE": "1",
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        try:
            self._start()
        except PeerError as error:
            self.error = str(error)
            self.close()

    def _start(self) -> None:
        with open(self._log, "w", encoding="utf-8") as log:
            try:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    text=True,
                    encoding="utf-8",
                )
            except OSError as error:
                raise PeerError(f"{self.column.python}: {error.strerror}") from None
        # A thread reads, so that a process that hangs can be waited for with a limit on every system.
        self._answers = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(self._process, self._answers), daemon=True)
        self._reader.start()
        greeting = self._answer()
        self.version, self.weights = greeting["version"], greeting["weights"]

    @staticmethod
    def _read(process: "subprocess.Popen[str]", answers: "queue.SimpleQueue[str | None]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put(None)

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self.timeout)
        except queue.Empty:
            self.close()
            raise PeerError(f"no answer in {self.timeout:g} s") from None
        if line is None:
            raise PeerError(self._epitaph())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            self.close()
            raise PeerError(f"not an answer: {line.rstrip()}") from None
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def _epitaph(self) -> str:
        """How the process ended."""
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.close()
            return "stopped answering"
        self.close()
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with status {code}" + (f": {said[-1]}" if said else "")

    def seconds(self, test: Test) -> float:
        """Of one run of the test. Raises PeerError."""
        if self.error is not None:
            raise PeerError(self.error)
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dataclasses.asdict(test)) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise PeerError(self._epitaph()) from None
        seconds = float(self._answer()["seconds"])
        if not seconds > 0:
            raise PeerError(f"it took {seconds:g} s")
        return seconds

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        assert self._reader is not None and process.stdin is not None and process.stdout is not None
        self._reader.join(10)
        if not self._reader.is_alive():  # else a child of the process has the pipe
            process.stdout.close()
        try:
            process.stdin.close()
        except OSError:  # a request that was never read
            pass


def measure(
    workers: list[Worker], test: Test, *, rounds: int, pause: float, read: Callable[[], float] = lambda: 0.0
) -> tuple[dict[str, Outcome], list[tuple[float, float]]]:
    """The rounds of a test, after one to warm up, and what `read` gave before and after each.

    An engine that fails is out of the test.
    """
    reads = []
    outcomes = {worker.column.name: Outcome() for worker in workers}
    for number in range(-1, rounds):
        first = (number + 1) % len(workers)
        before = read() if number >= 0 else 0.0
        for worker in (*workers[first:], *workers[:first]):
            outcome = outcomes[worker.column.name]
            if outcome.error is not None:
                continue
            try:
                seconds = worker.seconds(test)
            except PeerError as error:
                outcome.error = str(error)
                continue
            if number >= 0:
                outcome.seconds.append(seconds)
            time.sleep(pause)
        if number >= 0:
            reads.append((before, read()))
    return outcomes, reads


def probe(threads: int, isa: str) -> Limits:
    from llama2c._core import probe_bandwidth, probe_flops

    read = probe_bandwidth(PROBE_BYTES, threads=threads, isa=isa)
    return Limits(read, probe_flops(threads=threads, isa=isa), "bf16" if isa == "amx" else "f32")


def compare(path: Path, columns: list[Column], tests: list[Test], options: argparse.Namespace) -> dict[str, Any]:
    """One model's part of the report."""
    from llama2c import Transformer
    from llama2c._core import probe_bandwidth

    transformer = Transformer(str(path))
    model = {
        "model": path.name,
        "shape": dict(transformer.config),
        "weight_bytes": transformer.weight_bytes,
        "token_bytes": transformer.token_bytes,
        "token_macs": transformer.token_macs,
    }
    isa = transformer.isa
    job = {"model": str(path.resolve()), "shape": model["shape"], "threads": options.threads}
    limits = [probe(options.threads, isa)]

    def read() -> float:
        return probe_bandwidth(PROBE_BYTES // 4, threads=options.threads, repetitions=2, isa=isa)

    workers: list[Worker] = []
    entries = []
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        try:
            for column in columns:  # one after the other: converting takes memory
                tell(f"{path.name}: {column.name} opens it")
                own = {"throughput": options.throughput} if column.engine == OURS else {}
                workers.append(Worker(column, {**job, **own}, timeout=options.timeout, folder=Path(folder)))
            for test in tests:
                tell(f"{path.name}: {test.label}")
                if options.memory is None:
                    measured, _ = measure(workers, test, rounds=options.rounds, pause=options.pause)
                    entries.append((test, results(test, measured), []))
                    continue
                measured, reads = measure(workers, test, rounds=options.rounds, pause=options.pause, read=read)
                parts = by_memory(test, measured, reads, options.memory)
                entries += [(part, results(part, outcomes), gbs) for part, outcomes, gbs in parts]
        finally:
            for worker in workers:
                worker.close()
    limits.append(probe(options.threads, isa))
    for test, rows, gbs in entries:
        beside = [dataclasses.replace(limits[0], read_gbs=each) for each in gbs] or limits
        for row in rows:
            rate = row["tokens_per_second"]
            if row["column"] == OURS and rate is not None:
                row["share"] = our_share(test, rate["median"], model, beside)
    engines = [
        {
            "column": worker.column.name,
            "engine": worker.column.engine,
            "type": worker.column.type,
            "version": worker.version,
            "weights": worker.weights,
            "error": worker.error,
        }
        for worker in workers
    ]
    return {
        **model,
        "engines": engines,
        "limits": [dataclasses.asdict(each) for each in limits],
        "tests": [{**dataclasses.asdict(test), "results": rows} for test, rows, _ in entries],
    }


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def count(least: int) -> Any:
    """A converter of integers from `least` on."""

    def convert(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}, expected at least {least}")
        return value

    convert.__name__ = "integer"
    return convert


def counts(least: int) -> Any:
    """A converter of integers with commas between."""

    def convert(text: str) -> list[int]:
        return [count(least)(part) for part in text.split(",")]

    convert.__name__ = "list of integers"
    return convert


def amount(unit: str) -> Callable[[str], float]:
    """A type for argparse: a number of 0 or more."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not value >= 0:
            raise argparse.ArgumentTypeError(f"{text}, expected {unit}")
        return value

    return convert


def pair(text: str) -> tuple[str, str]:
    """ENGINE=VALUE"""
    engine, sign, value = text.partition("=")
    if engine not in PEERS or not sign or not value:
        raise argparse.ArgumentTypeError(f"{text!r}, expected ENGINE=..., ENGINE one of {', '.join(PEERS)}")
    return engine, value


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options; `columns`, `tests` and `absent` made of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="MODEL", help="GGUF files")
    parser.add_argument(
        "--peer",
        type=pair,
        action="append",
        default=[],
        metavar="ENGINE=PYTHON",
        help="the interpreter that has a peer",
    )
    parser.add_argument("--skip", choices=PEERS, action="append", default=[], help="a peer to leave out")
    parser.add_argument(
        "--type",
        type=pair,
        action="append",
        default=[],
        metavar="ENGINE=TYPE",
        help="what an engine that does not take the file's weights computes with: transformers float32 or bfloat16 "
        "(its default), ctranslate2 int8 (its default) or float32; given twice, it runs with both",
    )
    parser.add_argument(
        "--throughput", action="store_true", help="our side takes the fastest products, as Engine(throughput=True) does"
    )
    parser.add_argument("-p", dest="prompts", type=counts(0), default=[512], help="prompt tokens; 0: none (512)")
    parser.add_argument("-n", dest="tokens", type=count(0), default=32, help="tokens to decode; 0: none (32)")
    parser.add_argument("-d", dest="depths", type=counts(0), default=[0], help="positions already taken (0)")
    parser.add_argument("-b", dest="batches", type=counts(1), default=[1], help="sequences at once (1)")
    parser.add_argument("-r", dest="rounds", type=count(1), default=5, help="rounds of a test (5)")
    parser.add_argument("-t", "--threads", type=count(1), default=2, help="of every engine (2)")
    parser.add_argument(
        "--pause",
        type=amount("seconds"),
        default=0.3,
        help="seconds after each turn, in which the engine's waiting threads go to sleep (0.3)",
    )
    parser.add_argument(
        "--memory",
        type=amount("GB/s"),
        metavar="GB/S",
        help="probe the memory before and after each round, and tell rounds in which it was faster and slower apart: "
        "for machines whose memory is shared with others",
    )
    parser.add_argument("--timeout", type=amount("seconds"), default=600.0, help="seconds for an engine's answer (600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the table, .svg or .png; needs matplotlib")
    options = parser.parse_args(argv)
    for path in options.files:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    for path in (options.json, options.plot):
        if path is not None and not path.resolve().parent.is_dir():
            parser.error(f"{path}: no such directory")
    if options.plot is not None:
        if options.plot.suffix not in (".svg", ".png", ".pdf"):
            parser.error(f"--plot {options.plot}: expected .svg, .png or .pdf")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install 'llama2c[benchmark]'")

    pythons = dict(options.peer)
    for engine, python in pythons.items():
        if shutil.which(python) is None:
            parser.error(f"--peer {engine}={python}: no such program")
    for engine, modules in PEERS.items():
        if engine not in pythons and all(importlib.util.find_spec(module) for module in modules):
            pythons[engine] = sys.executable
    options.absent = [engine for engine in PEERS if engine not in pythons and engine not in options.skip]
    present = [engine for engine in PEERS if engine in pythons and engine not in options.skip]
    if not present:
        parser.error("no peer to compare with: --peer names an interpreter that has one")
    types: dict[str, list[str | None]] = {}
    for engine, kind in options.type:
        types.setdefault(engine, []).append(kind)
    options.columns = [Column(OURS, sys.executable)]
    options.columns += [
        Column(engine, pythons[engine], kind) for engine in present for kind in types.get(engine, [None])
    ]
    options.tests = [Test("prefill", tokens) for tokens in options.prompts if tokens]
    if options.tokens:
        options.tests += [
            Test("decode", options.tokens, depth, batch) for depth in options.depths for batch in options.batches
        ]
    if not options.tests:
        parser.error("nothing to measure: -p 0 and -n 0")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 1 if llama2c itself could not do a test."""
    options = arguments(argv)
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "python": platform.python_version(),
        "threads": options.threads,
        "rounds": options.rounds,
        "absent": options.absent,
        "models": [],
    }
    for path in options.files:
        report["models"].append(compare(path, options.columns, options.tests, options))
        print(table(report["models"][-1], report) + "\n", flush=True)
        if options.json is not None:  # after each model: a run is long, and may be ended
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        plot(report, options.plot)
    ours = [row for model in report["models"] for test in model["tests"] for row in test["results"][:1]]
    return int(any(row["error"] for row in ours))


def processor() -> str:
    """Its name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and temporary models go, too
    sys.exit(main())
