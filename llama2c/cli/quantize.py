"""`llama2c quantize`: a model file with its weights in another type."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama2c.cli import MAX_THREADS, integer, recipe
from llama2c.cli.info import size
from llama2c.recipes import names
from llama2c.weights import FORMATS

if TYPE_CHECKING:
    from llama2c.quantization import Progress, QuantizedTensor

EPILOG = """\
examples:
  llama2c quantize llama-2-7b.F16.gguf llama-2-7b.Q4_K_M.gguf Q4_K_M
  llama2c quantize stories15M.bin stories15M.gguf Q8_0 --tokenizer tokenizer.bin

types: {names}.

The types with K are mixtures: more bits for the classifier and for some layers' attn_v and ffn_down. Rows that are no
whole blocks of 256 weights take Q4_0 for Q2_K and Q3_K, Q5_0 for Q4_K, Q5_1 for Q5_K, Q8_0 for Q6_K; norms stay F32.
The error of a tensor is that of its weights, root mean square, relative to their own.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "quantize",
        help="write a model with its weights in another type",
        description="Write a model as a GGUF file with its weights in another type. OUT appears when it is whole.",
        epilog=EPILOG.format(names=names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("input", metavar="IN", help=f"the model: {FORMATS}")
    command.add_argument("output", metavar="OUT", help="the GGUF file to write")
    command.add_argument(
        "type", metavar="TYPE", type=recipe, help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, F16, ...: see below"
    )
    command.add_argument(
        "--threads",
        type=integer(1, MAX_THREADS),
        metavar="N",
        help="threads (default: OMP_NUM_THREADS, else the physical cores); the result does not depend on it",
    )
    command.add_argument(
        "-z",
        "--tokenizer",
        metavar="FILE",
        help="whose vocabulary goes into OUT (default: that of IN, for other files what lies beside it)",
    )
    command.add_argument("--force", action="store_true", help="replace OUT if it exists")
    command.set_defaults(run=run)


@contextmanager
def progress_bar(*, report: bool) -> "Iterator[Progress]":
    """A bar on the standard error if that is a terminal, as a callback of quantize(). report: print each tensor."""
    from tqdm import tqdm

    bar: Any = tqdm(unit="weight", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)

    def show(done: int, total: int, tensor: "QuantizedTensor | None") -> None:
        bar.total = total
        bar.update(done - bar.n)
        if tensor is not None and report:
            with bar.external_write_mode():
                print(line_of(tensor), flush=True)

    with bar:
        yield show


def line_of(tensor: "QuantizedTensor") -> str:
    """What became of a tensor."""
    shape = " x ".join(map(str, tensor.shape))
    types = tensor.type if tensor.source_type == tensor.type else f"{tensor.source_type} -> {tensor.type}"
    line = f"{tensor.name:<28} {shape:>16}  {types:<14} {size(tensor.bytes):>11}"
    return f"{line}  error {tensor.error:.3%}" if tensor.error else line


def fill_cache(arguments: argparse.Namespace) -> None:
    """For --quantize on a terminal: make under a bar what loading would make without a word."""
    if arguments.quantize is not None and not arguments.no_cache and sys.stderr.isatty():
        from llama2c.cache import quantized

        with (
            progress_bar(report=False) as show,
            quantized(arguments.checkpoint, arguments.quantize, progress=show),
        ):
            pass


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from llama2c.quantization import quantize

    with progress_bar(report=True) as show:
        result = quantize(
            arguments.input,
            arguments.output,
            arguments.type,
            threads=arguments.threads,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.force,
            progress=show,
        )
    print(
        f"{result.path}: {size(result.source_bytes)} -> {size(result.bytes)} of weights "
        f"({result.bytes / result.source_bytes:.1%}), error {result.error:.3%}"
    )
    return 0
