"""`llama2c quantize`: a model file with its weights in another type."""

import argparse
import sys
from typing import Any

from llama2c.cli import MAX_THREADS, integer
from llama2c.recipes import names, recipe_of

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
    command.add_argument("input", metavar="IN", help="the model: a GGUF file or a llama2.c .bin file")
    command.add_argument("output", metavar="OUT", help="the GGUF file to write")
    command.add_argument("type", metavar="TYPE", help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, F16, ...: see below")
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
        help="whose vocabulary goes into OUT (default: that of IN, for a .bin file what lies beside it)",
    )
    command.add_argument("--force", action="store_true", help="replace OUT if it exists")
    command.set_defaults(run=run, error=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from tqdm import tqdm

    from llama2c.cli.info import size
    from llama2c.quantization import QuantizedTensor, quantize

    try:
        recipe_of(arguments.type)
    except ValueError as error:
        arguments.error(f"argument TYPE: {error}")
    bar: Any = tqdm(unit="weight", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)

    def show(done: int, total: int, tensor: QuantizedTensor | None) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if tensor is not None:
            shape = " x ".join(map(str, tensor.shape))
            types = tensor.type if tensor.source_type == tensor.type else f"{tensor.source_type} -> {tensor.type}"
            line = f"{tensor.name:<28} {shape:>16}  {types:<14} {size(tensor.bytes):>11}"
            with bar.external_write_mode():
                print(f"{line}  error {tensor.error:.3%}" if tensor.error else line, flush=True)

    with bar:
        result = quantize(
            arguments.input,
            arguments.output,
            arguments.type,
            threads=arguments.threads,
            tokenizer=arguments.tokenizer,
            overwrite=arguments.force,
            progress=show,
        )
    weights = sum(tensor.bytes for tensor in result.tensors)
    print(
        f"{result.path}: {size(result.source_bytes)} -> {size(weights)} of weights "
        f"({weights / result.source_bytes:.1%}), error {result.error:.3%}"
    )
    return 0
