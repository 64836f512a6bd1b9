"""The command line: `llama2c run|info|bench`, one module a command.

Exit codes: 0 done, 1 it failed (one line on stderr says why), 2 the arguments are wrong, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llama2c import __version__

TRACEBACK = "LLAMA2C_TRACEBACK"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"llama2c: error: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The whole command line."""
    from llama2c.cli import bench, info, run

    top = Parser(
        prog="llama2c",
        description="Run Llama models on the CPU.",
        epilog=f"Environment: {TRACEBACK}=1 shows where an error came from; LLAMA2C_ISA is the default of --isa.",
    )
    top.add_argument("--version", action="version", version=f"llama2c {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for command in (run, info, bench):
        command.add(commands)
    return top


def add_engine_options(command: argparse.ArgumentParser) -> None:
    """The options of everything that loads a model."""
    group = command.add_argument_group("engine")
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of a step (default: the physical cores)",
    )
    group.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction-set level, see `llama2c info` (default: the best; all give the same bits)",
    )
    group.add_argument(
        "--no-mmap",
        action="store_true",
        help="read the weights into memory instead of mapping the file",
    )
    group.add_argument(
        "--rope-theta",
        type=float,
        metavar="BASE",
        help="base of the rotary embedding, which llama2.c files do not store (default: 10000; Code Llama: 1e6)",
    )


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


positive.__name__ = "integer"  # argparse names the type in its messages


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `run CKPT -t 0 PROMPT` too, where argparse has settled the positionals before the options."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "text", "") is None:
        arguments.text = rest.pop()
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


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
