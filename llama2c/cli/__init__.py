"""The command line, one module a command.

Exit codes: 0 done, 1 it failed (one line on stderr says why), 2 the arguments are wrong, 130 interrupted, 141 the
reader of its output has gone.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from llama2c import __version__

TRACEBACK = "LLAMA2C_TRACEBACK"
MAX_THREADS = 1024  # of the core


# Options of `run` that take any text.
TEXTS = {
    **dict.fromkeys(("-i", "--prompt"), "--prompt"),
    **dict.fromkeys(("-y", "--system"), "--system"),
    **dict.fromkeys(("-z", "--tokenizer"), "--tokenizer"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that knows its options by their whole names only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"llama2c: error: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The whole command line."""
    from llama2c.cli import bench, cache, convert, data, info, perplexity, quantize, replay, run, train

    top = Parser(
        prog="llama2c",
        description="Run Llama models on the CPU.",
        epilog=f"Environment: {TRACEBACK}=1 shows where an error came from; LLAMA2C_ISA is the default of --isa.",
    )
    top.add_argument("--version", action="version", version=f"llama2c {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (run, replay, info, bench, perplexity, quantize, convert, data, train, cache):
        command.add(commands)
    return top


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """The options of everything that loads a model, but for --threads."""
    group = command.add_argument_group("engine")
    group.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction-set level, see `llama2c info` (default: the best)",
    )
    group.add_argument(
        "--no-mmap",
        action="store_true",
        help="read the weights into memory instead of mapping the file",
    )
    group.add_argument(
        "--rope-theta",
        type=finite,
        metavar="BASE",
        help="base of the rotary embedding (default: the file's; llama2.c files have none: 10000, Code Llama 1e6)",
    )
    group.add_argument(
        "--kv-type",
        choices=("f32", "f16", "q8"),
        help="of the keys and values of the context (default: f32 for F32 weights and llama2.c files, else f16)",
    )
    group.add_argument(
        "--quantize",
        type=recipe,
        metavar="TYPE",
        help="compute with the weights in that type, see `llama2c quantize --help`; they are kept in the cache",
    )
    group.add_argument(
        "--no-cache",
        action="store_true",
        help="with --quantize: make a temporary file instead of one in the cache",
    )
    add_lora(group)


def add_lora(command: Any) -> None:
    """The options --lora and --lora-scaled, as `lora`: (path, scale) each, in the order given."""
    command.add_argument(
        "--lora",
        dest="lora",
        type=lambda path: (path, 1.0),
        action="append",
        metavar="ADAPTER",
        help="add a LoRA adapter of PEFT's: its directory or its adapter_model.safetensors; may be given several times",
    )
    command.add_argument(
        "--lora-scaled",
        dest="lora",
        action=_Scaled,
        nargs=2,
        metavar=("ADAPTER", "SCALE"),
        help="the same, scaled: 0.5 is half of its effect",
    )


class _Scaled(argparse.Action):
    """A path and a number, appended as a pair."""

    def __call__(self, _: Any, namespace: argparse.Namespace, values: Any, __: Any = None) -> None:
        path, scale = values
        try:
            pair = (path, finite(scale))
        except ValueError:
            raise argparse.ArgumentError(self, f"invalid float value: {scale!r}") from None
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), pair])


def integer(low: int, high: int = 0x7FFFFFFF) -> Callable[[str], int]:
    """The type of an argument that is an integer from `low` to `high`."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            bound = f"less than {low}" if value < low else f"more than {high}"
            raise argparse.ArgumentTypeError(f"{value} is {bound}")
        return value

    parse.__name__ = "integer"  # argparse names the type in its messages
    return parse


def finite(text: str) -> float:
    """An argument that is a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return value


finite.__name__ = "float"


def recipe(text: str) -> str:
    """An argument that names a type to quantise to."""
    from llama2c.recipes import recipe_of

    try:
        recipe_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_model(command: argparse.ArgumentParser, metavar: str) -> None:
    """The model, a positional argument that may be left out."""
    from llama2c.packaged import packaged_model
    from llama2c.weights import FORMATS

    command.add_argument(
        "checkpoint",
        metavar=metavar,
        nargs="?",
        default=packaged_model(),
        help=f"the model: {FORMATS} (default: the packaged one)",
    )


def add_threads(command: argparse.ArgumentParser) -> None:
    """The option --threads."""
    command.add_argument(
        "--threads",
        type=integer(1, MAX_THREADS),
        metavar="N",
        help="threads of a step (default: OMP_NUM_THREADS, else the physical cores)",
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `run CKPT -t 0 PROMPT` too, where argparse has settled the positionals before the options."""
    top = parser()
    arguments, rest = top.parse_known_args(_with_dashes(sys.argv[1:] if argv is None else argv))
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "text", "") is None:
        arguments.text = rest.pop()
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _with_dashes(argv: Sequence[str]) -> list[str]:
    """The arguments of `run` with each text joined to its option: as in llama2.c, a text may begin with a dash."""
    joined: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument == "--" or argv[0] != "run":
            joined += [argument, *rest]
        elif argument in TEXTS:
            value = next(rest, None)
            joined.append(argument if value is None else f"{TEXTS[argument]}={value}")
        else:
            joined.append(argument)
    return joined


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError) and not error.args:
        text = "out of memory"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # NumPy's linear algebra is not used here; its threads would spin beside ours for the first 50 ms.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        arguments = parse(argv)
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone. What is still buffered must not fail again when the interpreter closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, ValueError, RuntimeError, MemoryError, OverflowError, LookupError) as error:
        if os.environ.get(TRACEBACK):
            raise
        sys.stderr.write(f"llama2c: error: {_message(error)}\n")
        return 1
