"""Is this change slower than its base? Both are timed in one run, in turn, on the same machine.

    python benchmarks/compare_base.py BASE/bin/python HEAD/bin/python [--rounds N] [--threshold X]

Each interpreter has one version of llama2c installed, with its `test` extra. A round runs the
pytest-benchmark cases of this directory under both, which goes first alternating, and gives each
case the ratio of its medians. What counts is the median of the ratios over the rounds: a machine
that is slow for a while slows both sides of a round. Prints a Markdown table; exits with 1 if a
case takes more than `threshold` times as long as at the base, or runs at the base only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent


def medians(python: str) -> dict[str, float]:
    """Seconds by case; without those that fail, as the base need not have what the change adds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        # -P: the checkout around this file stays out of sys.path.
        command = [python, "-P", "-m", "pytest", str(BENCHMARKS), "-q", "-p", "no:cacheprovider"]
        command += ["--benchmark-only", f"--benchmark-json={report}"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if not report.exists() or not report.stat().st_size:
            sys.exit(f"{python} measured nothing:\n{result.stdout}{result.stderr}")
        cases = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    return {case["name"]: case["stats"]["median"] for case in cases}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="Python interpreter with the base installed")
    parser.add_argument("head", help="Python interpreter with the change installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=1.15, help="default: %(default)s")
    given = parser.parse_args()

    ratios: dict[str, list[float]] = {}
    added: set[str] = set()
    lost: set[str] = set()
    for turn in range(given.rounds):
        order = [given.base, given.head] if turn % 2 == 0 else [given.head, given.base]
        times = {python: medians(python) for python in order}
        base, head = times[given.base], times[given.head]
        added |= head.keys() - base.keys()
        lost |= base.keys() - head.keys()
        for name in base.keys() & head.keys():
            ratios.setdefault(name, []).append(head[name] / base[name])

    slower = []
    print("| case | time / base | range | |\n|---|---|---|---|")
    for name, values in sorted(ratios.items()):
        ratio = statistics.median(values)
        if ratio > given.threshold:
            slower.append(name)
        verdict = "**slower**" if name in slower else ""
        print(f"| {name} | {ratio:.3f} | {min(values):.3f} - {max(values):.3f} | {verdict} |")
    for what, names in (("New, not compared", added), ("**No longer running**", lost)):
        if names:
            print(f"\n{what}: {', '.join(sorted(names))}")
    return 1 if slower or lost or not ratios else 0


if __name__ == "__main__":
    sys.exit(main())
