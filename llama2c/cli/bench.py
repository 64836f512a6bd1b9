"""`llama2c bench`: prefill and decode, beside what the machine could do at best in the same run."""

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llama2c._core import (
    ROLE_GENERATED,
    ROLE_PROMPT,
    Batch,
    Transformer,
    available_isas,
    probe_bandwidth,
    probe_flops,
)
from llama2c.cli import MAX_THREADS, add_engine_options, add_model, integer
from llama2c.cli.quantize import fill_cache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KV_BYTES = {"f32": 4, "f16": 2, "q8": 1}  # an element of the keys and values
PROBE_BYTES = 1 << 29
SEED = 1
EPILOG = """\
examples:
  llama2c bench                                    the packaged model
  llama2c bench model.bin                          a prompt of 512, then 64 tokens
  llama2c bench model.bin -p 0 -n 64 -b 1,4,8      decode for 1, 4 and 8 sequences at once
  llama2c bench model.bin -p 0 -n 32 -d 0,1024     decode at depth 0 and 1024
  llama2c bench model.bin -t 1,2 --isa avx2 --json

GB/s counts the weights read and, for decode, the keys and values; TFLOP/s two operations for each weight. The shares
are of the read bandwidth (2 MiB pages) and the multiply-add rate probed in the same run, with the same threads: that of
f32, at level amx that of the bf16 tiles which take prompts.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "bench",
        help="measure prefill and decode",
        description="Measure how fast prompts are taken (prefill) and tokens generated (decode).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(command, "CKPT")
    command.add_argument(
        "-p",
        dest="prompts",
        type=numbers,
        default=[512],
        metavar="N",
        help="prompt tokens; 0: no prefill (default: 512)",
    )
    command.add_argument(
        "-n",
        dest="tokens",
        type=numbers,
        default=[64],
        metavar="N",
        help="tokens to generate; 0: no decode (default: 64)",
    )
    command.add_argument(
        "-d",
        dest="depths",
        type=numbers,
        default=[0],
        metavar="DEPTH",
        help="positions already taken (default: 0)",
    )
    command.add_argument(
        "-b",
        dest="batches",
        type=numbers,
        default=[1],
        metavar="BATCH",
        help="sequences at once (default: 1)",
    )
    command.add_argument(
        "-t",
        "--threads",
        type=numbers,
        metavar="THREADS",
        help="threads of a step (default: OMP_NUM_THREADS, else the physical cores)",
    )
    command.add_argument(
        "-r",
        dest="reps",
        type=integer(1),
        default=5,
        metavar="REPS",
        help="repetitions; the median is shown (default: 5)",
    )
    command.add_argument(
        "--throughput", action="store_true", help="whatever products are fastest, as Engine(throughput=True) takes them"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_engine_options(command)
    command.set_defaults(run=run, error=command.error)


def numbers(text: str) -> list[int]:
    """One number or several with commas between."""
    return [integer(0)(part) for part in text.split(",")]


numbers.__name__ = "list of integers"


@dataclass(frozen=True)
class Row:
    """One measurement. Rates are medians over the repetitions; spread is half of max - min, relative."""

    test: str  # "prefill" or "decode"
    tokens: int  # prompt tokens, or tokens generated a sequence
    depth: int
    batch: int
    threads: int
    isa: str
    tokens_per_second: float
    spread: float
    gbs: float
    bandwidth_share: float
    tflops: float
    flops_share: float
    logits_hash: str  # CRC-32 of the last logits


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best with so many threads."""

    gbs: float
    tflops: float
    numbers: str  # that are multiplied and added: "f32" or "bf16"


class Bench:
    """Runs the measurements of one model and one number of threads."""

    def __init__(self, transformer: Transformer, threads: int, reps: int, throughput: bool) -> None:
        import numpy as np

        self.throughput = throughput
        self.transformer = transformer
        self.config = transformer.config
        self.threads = threads
        self.reps = reps
        tiles = transformer.isa == "amx" and transformer.config["weight_type"] != "F32"
        level = transformer.isa
        if level == "amx" and not tiles:
            level = [name for name in available_isas() if name != "amx"][-1]  # no tiles multiply f32
        self.limits = Limits(
            probe_bandwidth(PROBE_BYTES, threads=threads, isa=transformer.isa),
            probe_flops(threads=threads, isa=level),
            "bf16" if tiles else "f32",
        )
        self.ids = np.random.default_rng(SEED).integers(0, self.config["vocab_size"], 1 << 20).astype(np.int32)

    def tokens(self, start: int, count: int) -> "NDArray[np.int32]":
        """`count` random ids, the same in every run; they repeat after 2**20."""
        import numpy as np

        return self.ids.take(np.arange(start, start + count), mode="wrap")

    def sessions(self, count: int, depth: int, room: int) -> list[Any]:
        """Sessions with `depth` tokens taken and room for more."""
        from llama2c._core import Session

        made = []
        for i in range(count):
            session = Session(self.transformer, context=depth + room, threads=self.threads)
            if depth:
                session.prefill(self.tokens(i, depth))
            made.append(session)
        return made

    def work(self, batch: int, rows: int) -> Batch | None:
        """Work space for steps of so many rows; None: a session's own does."""
        if batch == 1 and not self.throughput:
            return None
        return Batch(self.transformer, rows=rows, threads=self.threads, throughput=self.throughput)

    def row(
        self,
        test: str,
        tokens: int,
        depth: int,
        batch: int,
        seconds: list[float],
        kv_tokens: float,
        logits: "NDArray[np.float32]",
    ) -> Row:
        """The figures of one test, from the seconds of its repetitions."""
        steps = tokens if test == "decode" else 1
        done = tokens * batch
        middle = statistics.median(seconds)
        c = self.config
        kv_bytes = 2 * KV_BYTES[c["kv_type"]] * c["n_layers"] * c["n_kv_heads"] * c["head_dim"] * kv_tokens
        gbs = (self.transformer.token_bytes * steps + kv_bytes) / middle / 1e9
        tflops = 2 * self.transformer.token_macs * done / middle / 1e12
        return Row(
            test,
            tokens,
            depth,
            batch,
            self.threads,
            self.transformer.isa,
            done / middle,
            (max(seconds) - min(seconds)) / 2 / middle,
            gbs,
            gbs / self.limits.gbs,
            tflops,
            tflops / self.limits.tflops,
            f"{zlib.crc32(logits.tobytes()):08x}",
        )

    def prefill(self, tokens: int, depth: int, batch: int) -> Row:
        """A prompt of `tokens` for each of `batch` sequences, after `depth` others."""
        sessions = self.sessions(batch, depth, tokens)
        work = self.work(batch, tokens * batch)
        ids, seconds = self.tokens(0, tokens), []
        for rep in range(self.reps + 1):
            start = time.perf_counter()
            if work is None:
                logits = sessions[0].prefill(ids)
            else:
                logits = work.step([(s, ids, ROLE_PROMPT, False) for s in sessions])
            if rep:  # the first one warms up
                seconds.append(time.perf_counter() - start)
            for session in sessions:
                session.rewind(depth)
        return self.row("prefill", tokens, depth, batch, seconds, 0, logits)

    def decode(self, tokens: int, depth: int, batch: int) -> Row:
        """`tokens` steps of `batch` sequences, after `depth` positions."""
        sessions = self.sessions(batch, depth, tokens)
        work = self.work(batch, batch)
        ids, seconds = self.tokens(0, tokens), []
        for rep in range(self.reps + 1):
            start = time.perf_counter()
            for i in range(tokens if rep else min(tokens, 4)):
                if work is None:
                    logits = sessions[0].step(int(ids[i]))
                else:
                    logits = work.step([(s, ids[i : i + 1], ROLE_GENERATED, False) for s in sessions])
            if rep:
                seconds.append(time.perf_counter() - start)
            for session in sessions:
                session.rewind(depth)
        kv_tokens = batch * tokens * (depth + (tokens + 1) / 2)
        return self.row("decode", tokens, depth, batch, seconds, kv_tokens, logits)


def measure(arguments: argparse.Namespace, transformer: Transformer, threads: int) -> Iterator[Row | Limits]:
    """The limits, then every row that was asked for."""
    bench = Bench(transformer, threads, arguments.reps, arguments.throughput)
    yield bench.limits
    for depth in arguments.depths:
        for batch in arguments.batches:
            yield from (bench.prefill(n, depth, batch) for n in arguments.prompts if n)
            yield from (bench.decode(n, depth, batch) for n in arguments.tokens if n)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from llama2c.model import open_transformer
    from llama2c.threads import default_threads

    if 0 in arguments.batches:
        arguments.error("argument -b: 0 is less than 1")
    if arguments.threads and not 1 <= min(arguments.threads) <= max(arguments.threads) <= MAX_THREADS:
        arguments.error(f"argument -t/--threads: expected 1 to {MAX_THREADS}")
    fill_cache(arguments)
    transformer = open_transformer(
        arguments.checkpoint,
        isa=arguments.isa,
        mmap=not arguments.no_mmap,
        rope_theta=arguments.rope_theta,
        kv_type=arguments.kv_type,
        quantize=arguments.quantize,
        cache=not arguments.no_cache,
        lora=arguments.lora,
    )
    result = []
    for threads in arguments.threads or [default_threads()]:
        for item in measure(arguments, transformer, threads):
            if isinstance(item, Limits):
                limits = item
                if not arguments.json:
                    print(
                        f"{arguments.checkpoint}: {transformer.config['format']}, {transformer.isa}, "
                        f"{threads} threads; probed {limits.gbs:.1f} GB/s, {limits.tflops:.3f} TFLOP/s {limits.numbers}"
                    )
                    print("   test  tokens   depth  batch        tok/s          GB/s         TFLOP/s    logits")
            elif arguments.json:
                probed = {f"probed_{name}": value for name, value in asdict(limits).items()}
                result.append({**asdict(item), **probed})
            else:
                print(
                    f"{item.test:>7} {item.tokens:7} {item.depth:7} {item.batch:6}"
                    f" {item.tokens_per_second:10.1f} ±{item.spread:4.0%}"
                    f" {item.gbs:7.1f} {item.bandwidth_share:4.0%}"
                    f"  {item.tflops:7.3f} {item.flops_share:4.0%}  {item.logits_hash}",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(result, indent=2))
    return 0
