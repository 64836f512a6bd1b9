"""What compare_peers.py tells of its measurements: the statistics, the table, the plot. Nothing here measures."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = "llama2c"
FORMAT, VERSION = "llama2c peer comparison", 1


@dataclass(frozen=True)
class Test:
    """A prompt of `tokens`, or `tokens` steps of `batch` sequences after `depth` positions each."""

    __test__ = False  # for pytest

    test: str  # "prefill" or "decode"
    tokens: int
    depth: int = 0
    batch: int = 1
    memory: str = ""  # of its rounds, where they are told apart by how fast the memory was

    @property
    def label(self) -> str:
        """As the table names it."""
        memory = f", memory {self.memory}" if self.memory else ""
        if self.test == "prefill":
            return f"prefill {self.tokens}{memory}"
        depth = f" at {self.depth}" if self.depth else ""
        return f"decode{depth}, {self.batch} sequences{memory}" if self.batch > 1 else f"decode{depth}{memory}"


@dataclass
class Outcome:
    """One engine's seconds of a test, a round each; `error` says why there are no more."""

    seconds: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the machine can do at best, probed beside the measurements."""

    read_gbs: float
    tflops: float
    numbers: str  # that are multiplied and added: "f32" or "bf16"


def by_memory(
    test: Test, outcomes: Mapping[str, Outcome], reads: Sequence[tuple[float, float]], bound: float
) -> list[tuple[Test, dict[str, Outcome], list[float]]]:
    """A test's rounds apart by the memory's state, and what was read in them: each round's probes, before and after it.

    A round in which the memory went from one side of the bound to the other is left out.
    """
    parts = []
    for name, state in (
        (f"below {bound:g} GB/s", [max(pair) < bound for pair in reads]),
        (f"from {bound:g} GB/s", [min(pair) >= bound for pair in reads]),
    ):
        if any(state):
            kept = {
                column: Outcome(
                    [s for s, here in zip(outcome.seconds, state, strict=outcome.error is None) if here], outcome.error
                )
                for column, outcome in outcomes.items()
            }
            read = [gbs for pair, here in zip(reads, state, strict=True) if here for gbs in pair]
            parts.append((dataclasses.replace(test, memory=f"{name} ({sum(state)} rounds)"), kept, read))
    return parts


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def results(test: Test, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A test's figures by column: tokens per second and, of peers, ours / theirs as the spread of the rounds' ratios.

    An engine that failed in any round has none: its medians would be of other rounds than ours.
    """
    ours = outcomes[OURS]
    rows: list[dict[str, Any]] = []
    for column, outcome in outcomes.items():
        row: dict[str, Any] = {"column": column, "error": outcome.error, "seconds": list(outcome.seconds)}
        done = outcome.error is None and bool(outcome.seconds)
        row["tokens_per_second"] = (
            spread([test.tokens * test.batch / seconds for seconds in outcome.seconds]) if done else None
        )
        comparable = done and column != OURS and ours.error is None
        row["ratio"] = (
            spread([theirs / mine for mine, theirs in zip(ours.seconds, outcome.seconds, strict=True)])
            if comparable
            else None
        )
        rows.append(row)
    return rows


def our_share(test: Test, rate: float, model: Mapping[str, Any], limits: Sequence[Limits]) -> dict[str, Any]:
    """What our median means beside the probed limits: weights read by decoding, multiply-adds of a prompt.

    The keys and values and attention's multiplications are not counted.
    """
    if test.test == "decode":
        used = rate / test.batch * model["token_bytes"] / 1e9
        unit, probed = "GB/s", [each.read_gbs for each in limits]
    else:
        used = 2 * rate * model["token_macs"] / 1e12
        unit, probed = f"TFLOP/s {limits[0].numbers}", [each.tflops for each in limits]
    return {"used": used, "unit": unit, "share_min": used / max(probed), "share_max": used / min(probed)}


def number(value: float) -> str:
    """Three figures or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def interval(values: Mapping[str, float], show: Any = number) -> str:
    return f"({show(values['min'])}–{show(values['max'])})"


def one_line(text: str, longest: int = 160) -> str:
    """An error as a table's cell."""
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned; the first row is its head."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _cells(test: Test, result: Mapping[str, Any], engine: Mapping[str, Any]) -> list[str]:
    name = f"{engine['engine']} {engine['version'] or ''}".rstrip()
    cells = [test.label, name, engine["weights"] or engine["type"] or "—", "—", "", ""]
    if result["tokens_per_second"] is None:
        cells[5] = one_line(result["error"] or "not measured")
        return cells
    cells[3] = f"{number(result['tokens_per_second']['median'])} {interval(result['tokens_per_second'])}"
    if result["ratio"] is not None:
        cells[4] = f"**{result['ratio']['median']:.2f}** {interval(result['ratio'], '{:.2f}'.format)}"
    share = result.get("share")
    if share is not None:
        cells[5] = f"{number(share['used'])} {share['unit']}, {share['share_min']:.0%} to {share['share_max']:.0%}"
    return cells


def table(model: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """One model's results in Markdown: a line for each test and engine."""
    columns = {engine["column"]: engine for engine in model["engines"]}
    rows = [["test", "engine", "computes with", "tok/s", "llama2c / it", "of the probed limit, or why not"]]
    for entry in model["tests"]:
        test = Test(entry["test"], entry["tokens"], entry["depth"], entry["batch"], entry["memory"])
        rows += [_cells(test, result, columns[result["column"]]) for result in entry["results"]]
    before, after = model["limits"]
    head = (
        f"{model['model']}: {report['threads']} threads, medians of {report['rounds']} rounds (least–greatest); probed "
        f"before and after: {before['read_gbs']:.1f} and {after['read_gbs']:.1f} GB/s, "
        f"{before['tflops']:.2f} and {after['tflops']:.2f} TFLOP/s {before['numbers']}"
    )
    absent = report["absent"]
    tail = f"\n\nNot installed: {', '.join(absent)}." if absent else ""
    return f"{head}\n\n{aligned(rows)}{tail}"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Tokens per second as bars from the least to the greatest: a row for each model, a column for each test."""
    from matplotlib.figure import Figure

    models = report["models"]
    tests = max(len(model["tests"]) for model in models)
    bars = max(len(model["engines"]) for model in models)
    figure = Figure(figsize=(4.2 * tests, (1.1 + 0.34 * bars) * len(models)), layout="constrained")
    panels = figure.subplots(len(models), tests, squeeze=False)
    for model, row in zip(models, panels, strict=True):
        columns = {engine["column"]: engine for engine in model["engines"]}
        for entry, axes in zip(model["tests"], row, strict=True):
            test = Test(entry["test"], entry["tokens"], entry["depth"], entry["batch"], entry["memory"])
            axes.set_title(f"{model['model']}: {test.label}", fontsize=8)
            axes.set_xlabel("tokens per second", fontsize=7)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
            names = []
            for at, result in enumerate(entry["results"]):
                engine = columns[result["column"]]
                names.append(f"{engine['engine']}\n{engine['weights'] or engine['type'] or ''}".rstrip())
                rate = result["tokens_per_second"]
                if rate is None:
                    axes.text(0, at, " failed", va="center", fontsize=7, color="0.4")
                    continue
                low, high = rate["median"] - rate["min"], rate["max"] - rate["median"]
                color = "#c44e52" if result["column"] == OURS else "#8c9fb5"
                axes.barh(at, rate["median"], xerr=[[low], [high]], color=color, ecolor="0.3", height=0.7)
            axes.set_yticks(range(len(names)), names, fontsize=6)
            axes.invert_yaxis()
            axes.set_xlim(left=0)
    figure.savefig(path)
