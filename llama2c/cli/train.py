"""`llama2c train`: a small Llama from scratch, or a model trained further."""

import argparse
import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from llama2c.training.settings import Settings, flags, read_settings

if TYPE_CHECKING:
    from llama2c.training.trainer import Progress, Training

EPILOG = """\
examples:
  llama2c data tokenize input.txt --tokenizer tok.model --out data --validation 0.1
  llama2c train --data data --out run --dim 256 --n-layers 6 --n-heads 4 --steps 2000
  llama2c train --config recipe.toml --out run             settings from a file; flags go before it
  llama2c train --out run --resume                         go on where a run stopped or was killed
  llama2c train --data data --out tuned --init-from llama.gguf --lora-rank 8
  torchrun --nproc-per-node 2 -m llama2c train --config recipe.toml
  llama2c run run/model "Once upon a time"                 the best model so far

The run's directory holds settings.toml, checkpoint.pt, metrics.jsonl, loss.svg and model/, which every command opens;
`llama2c convert run/model model.gguf` (or .bin) makes one file of it. Ctrl-C and SIGTERM save before they end the run.
A file of settings has the same names: top-level data, out, init_from; tables [model], [train] and [lora].
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "train",
        help="train a small model, or tune one",
        description="Train a Llama, from scratch or from a model's weights. Needs torch: pip install 'llama2c[train]'.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--config", metavar="FILE", help="settings in TOML")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT, with its settings")
    command.add_argument("--force", action="store_true", help="begin anew where OUT holds a run")
    groups = {section: command.add_argument_group(section) for section in ("model", "train", "lora")}
    for section, flag, field in flags():
        _add_setting(groups.get(section, command), f"{section}.{field.name}", flag, field)
    command.set_defaults(run=run)


def _add_setting(group: Any, place: str, flag: str, field: "dataclasses.Field[Any]") -> None:
    """The flag of a setting; its type is the default's."""
    default = field.default
    described = field.metadata["help"] + ("" if default == "" else f" (default: {_shown(default)})")
    options: dict[str, Any] = {"dest": place, "default": None, "help": described.replace("%", "%%")}
    if isinstance(default, bool):
        group.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, **options)
    elif isinstance(default, tuple):
        group.add_argument(f"--{flag}", type=_names, metavar="A,B,...", **options)
    else:
        group.add_argument(f"--{flag}", type=type(default), metavar=_METAVARS[type(default)], **options)


_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default).lower()


def _names(text: str) -> list[str]:
    return text.split(",")


_names.__name__ = "list"


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings that the arguments ask for. Raises OSError or ValueError."""
    from llama2c.training.run_folder import RunFolder

    changes = {
        tuple(place.split(".", 1)): value
        for place, value in vars(arguments).items()
        if "." in place and value is not None
    }
    path = arguments.config
    if arguments.resume and path is None:
        out = changes.get(("", "out"))
        if not out:
            raise ValueError("--resume needs --out, the directory of the run, or --config")
        path = RunFolder(out).settings_path
    settings = read_settings(path, changes)  # type: ignore[arg-type]
    for name in ("data", "out"):
        if not getattr(settings, name):
            raise ValueError(f"no --{name}, and none in a file of settings")
    held = RunFolder(settings.out).checkpoint_path
    if held.exists() and not arguments.resume and not arguments.force:
        raise FileExistsError(17, "it holds a run; --resume goes on with it, --force begins anew", settings.out)
    return settings


@contextmanager
def stopping() -> "Iterator[Callable[[], int]]":
    """A function that tells which signal has asked to stop, SIGINT or SIGTERM, 0 before; a second one interrupts."""
    asked = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = number

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def validation(state: "Progress") -> str:
    """What the last evaluation found, if there was one."""
    if math.isnan(state.validation):
        return ""
    return f"validation {state.validation:.4f} ({state.characters_validation:.4f} nats a character), "


@contextmanager
def progress_bar(*, quiet: bool) -> "Iterator[Callable[[Progress], None]]":
    """A bar on the standard error; a line now and then where that is no terminal."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    bar: Any = tqdm(unit="step", disable=not terminal or quiet, leave=False)

    def show(state: "Progress") -> None:
        bar.total = state.steps
        bar.update(state.step - bar.n)
        bar.set_postfix_str(
            f"loss {state.loss:.3f}, {validation(state)}{state.tokens_per_second:.0f} tok/s, MFU {state.mfu:.0%}",
            refresh=False,
        )
        if not terminal and not quiet and (state.step % 100 == 0 or state.step == state.steps):
            print(
                f"step {state.step}/{state.steps} loss {state.loss:.4f}, {validation(state)}"
                f"rate {state.learning_rate:.2e}, {state.tokens_per_second:.0f} tok/s MFU {state.mfu:.0%}",
                file=sys.stderr,
                flush=True,
            )

    with bar:
        yield show


def _outcome(result: "Training") -> str:
    if result.best_step == 0:
        return "no model yet: it comes with the first evaluation"
    if math.isinf(result.best):
        return f"model of step {result.best_step} (no text for validation)"
    per_character = f"{result.best:.4f} nats a token, {result.best_per_character:.4f} a character"
    return f"best model of step {result.best_step}: {per_character}"


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    import os

    settings = settings_of(arguments)
    try:
        from llama2c.training.trainer import train
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ValueError("llama2c train needs torch: pip install 'llama2c[train]'") from None
    quiet = os.environ.get("RANK", "0") != "0"
    with stopping() as asked, progress_bar(quiet=quiet) as show:
        result = train(settings, resume=arguments.resume, progress=show, stop=lambda: asked() != 0)
    if not quiet:
        print(f"{result.out}: step {result.step}, {_outcome(result)}", flush=True)
    if result.stopped:
        print(f"llama2c: stopped and saved; --out {result.out} --resume goes on", file=sys.stderr)
        return 128 + asked()
    return 0
