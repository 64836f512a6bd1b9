"""Decode beside llama2.c's own programs, alternating in one run; the ratios are the result.

    python benchmarks/compare_llama2c.py --run PATH/run --runq PATH/runq --tokenizer tokenizer.bin [MODEL.bin ...]

llama2.c is the reader's to build, for example `cc -Ofast -fopenmp -march=native run.c -lm -o run`. Both sides are whole
processes with the same flags and threads, and both tell their own `achieved tok/s`. Without models, random ones of the
shapes below are written to --work (tiny1b takes 5 GB there). Version 2 files go to runq, the others to run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_speed import write_model

from llama2c._core import probe_bandwidth, read_config

# shape, positions to fill
SHAPES = {
    "stories15m": ((288, 768, 6, 6, 6, 32000, 256), 250),
    "stories110m": ((768, 2048, 12, 12, 12, 32000, 1024), 120),
    "tiny1b": ((2048, 5632, 22, 32, 4, 32000, 2048), 32),
}


def rate(command: list[str], threads: int) -> float:
    """The `achieved tok/s` of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=600, check=True)
    return float(done.stderr.split(b"achieved tok/s:")[1].split()[0])


def random_models(work: Path) -> list[Path]:
    """Models of the shapes above, in both types."""
    work.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (shape, _) in SHAPES.items():
        for version, kind in ((0, "f32"), (2, "int8")):
            path = work / f"{name}-{kind}.bin"
            if not path.exists():
                write_model(path, shape, version, 64 if shape[0] % 64 == 0 else 32)
            paths.append(path)
    return paths


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--run", required=True, help="llama2.c's run")
    parser.add_argument("--runq", required=True, help="llama2.c's runq")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.bin that fits the models")
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="where random models are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--flags", default="-t 0", help="of both programs, e.g. '-t 1.0 -p 0.9 -s 1'")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for model in arguments.models or random_models(arguments.work):
        config = read_config(str(model))
        positions = next((n for name, (_, n) in SHAPES.items() if model.name.startswith(name)), 200)
        flags = [str(model), "-z", arguments.tokenizer, "-n", str(positions), *arguments.flags.split()]
        peer = [arguments.runq if config["weight_type"] == "q8" else arguments.run, *flags]
        own = [sys.executable, "-m", "llama2c", "run", *flags]
        rate(own, arguments.threads)  # brings the file into the page cache
        pairs, probes = [], []
        for round_ in range(arguments.rounds):
            sides = [own, peer] if round_ % 2 else [peer, own]
            rates = [rate(side, arguments.threads) for side in sides]
            pairs.append((rates[sides.index(own)], rates[sides.index(peer)]))
            probes.append(probe_bandwidth(1 << 29, threads=arguments.threads, repetitions=3))
        ratios = [ours / theirs for ours, theirs in pairs]
        rows.append(
            {
                "model": model.name,
                "threads": arguments.threads,
                "flags": arguments.flags,
                "tokens_per_second": statistics.median(ours for ours, _ in pairs),
                "peer_tokens_per_second": statistics.median(theirs for _, theirs in pairs),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "probed_gbs": statistics.median(probes),
                "probed_gbs_min": min(probes),
                "probed_gbs_max": max(probes),
            }
        )
        if not arguments.json:
            row = rows[-1]
            print(
                f"{row['model']:24} {row['tokens_per_second']:9.1f} tok/s"
                f"  llama2.c {row['peer_tokens_per_second']:9.1f}"
                f"  ratio {row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
                f"  probe {row['probed_gbs']:.0f} GB/s ({row['probed_gbs_min']:.0f} to {row['probed_gbs_max']:.0f})",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
