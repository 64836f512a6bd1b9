"""llama2c beside llama.cpp (llama-cpp-python), on the same GGUF files, alternating in one run.

    python benchmarks/compare_llamacpp.py --peer PEER/bin/python model-Q8_0.gguf model-Q4_0.gguf

PEER is a virtual environment with llama-cpp-python. Both engines stay loaded and take turns: a prompt, then decoding,
for `--rounds` rounds. Each row has medians, and the median of the rounds' ratios with its range; bandwidth is probed
before and after.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SEED = 1


def ids(count: int, vocab_size: int) -> list[int]:
    import numpy as np

    return [int(i) for i in np.random.default_rng(SEED).integers(3, vocab_size, count)]


def ours(path: str, threads: int, context: int) -> tuple[Callable[[list[int]], None], Callable[[int], None], int]:
    """(take a prompt from position 0, take one token, vocabulary)"""
    import llama2c

    transformer = llama2c.Transformer(path)
    session = llama2c.Session(transformer, threads=threads, context=context)

    def prompt(tokens: list[int]) -> None:
        session.rewind(0)
        session.prefill(tokens)

    return prompt, session.step, transformer.config["vocab_size"]


def theirs(path: str, threads: int, context: int) -> tuple[Callable[[list[int]], None], Callable[[int], None], int]:
    import llama_cpp

    llm = llama_cpp.Llama(path, n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)

    def prompt(tokens: list[int]) -> None:
        llm.reset()
        llm.eval(tokens)

    return prompt, lambda token: llm.eval([token]), llm.n_vocab()


def work(engine: str, path: str, threads: int, prompt_tokens: int, tokens: int) -> None:
    """Answers each line of the standard input with the seconds of one round, as JSON."""
    import time

    open_engine = ours if engine == "llama2c" else theirs
    prompt, step, vocab_size = open_engine(path, threads, prompt_tokens + tokens + 8)
    sequence = ids(prompt_tokens + tokens, vocab_size)
    for _ in sys.stdin:
        start = time.perf_counter()
        prompt(sequence[:prompt_tokens])
        middle = time.perf_counter()
        prompt(sequence[:4])  # decoding at no depth
        begin = time.perf_counter()
        for token in sequence[:tokens]:
            step(token)
        print(json.dumps([middle - start, time.perf_counter() - begin]), flush=True)


class Engine:
    """A process that holds one model open."""

    def __init__(self, python: str, arguments: list[str]) -> None:
        command = [python, str(Path(__file__).resolve()), *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def round(self) -> list[float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds: list[float] = json.loads(self.process.stdout.readline())
        return seconds

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(path: Path, options: argparse.Namespace) -> None:
    from llama2c import Transformer
    from llama2c._core import probe_bandwidth

    shape = [str(path), str(options.threads), str(options.prompt), str(options.tokens)]
    engines = [
        Engine(sys.executable, ["--work", "llama2c", *shape]),
        Engine(options.peer, ["--work", "llama_cpp", *shape]),
    ]
    probes = [probe_bandwidth(1 << 29, threads=options.threads)]
    try:
        rounds = [[engine.round() for engine in engines] for _ in range(options.rounds + 1)][1:]  # one to warm up
    finally:
        for engine in engines:
            engine.close()
    probes.append(probe_bandwidth(1 << 29, threads=options.threads))
    token_bytes = Transformer(path).token_bytes
    for number, (name, count) in enumerate((("prefill", options.prompt), ("decode", options.tokens))):
        mine, other = ([count / each[engine][number] for each in rounds] for engine in (0, 1))
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        share = ""
        if name == "decode":
            gbs = statistics.median(mine) * token_bytes / 1e9
            share = f" | {gbs:.1f} GB/s, {gbs / max(probes):.0%} to {gbs / min(probes):.0%}"
        print(
            f"| {path.stem} | {name} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} "
            f"| **{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f}){share} |",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        engine, path, *numbers = sys.argv[2:]
        work(engine, path, *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter that has llama-cpp-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to decode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    print("| model | phase | llama2c, tok/s | llama.cpp, tok/s | ratio | share of the read probe |")
    print("|---|---|---|---|---|---|")
    for path in options.files:
        compare(path, options)


if __name__ == "__main__":
    main()
