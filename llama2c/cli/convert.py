"""`llama2c convert`: a model in another format, with adapters merged if asked."""

import argparse
from typing import Any

from llama2c.cli import MAX_THREADS, add_lora, integer
from llama2c.cli.info import size
from llama2c.cli.quantize import progress_bar
from llama2c.recipes import names

EPILOG = """\
examples:
  llama2c convert stories15M.bin stories15M.gguf                  the same weights as a GGUF file
  llama2c convert llama-2-7b.F16.gguf llama-2-7b.bin              for llama2.c's run.c, with tokenizer.bin beside it
  llama2c convert llama-2-7b.F16.gguf llama-2-7b.q80.bin --version 2   for its runq.c
  llama2c convert stories15M.bin stories15M/                      for transformers: config.json, model.safetensors
  llama2c convert BASE.gguf TUNED.gguf --lora ADAPTER --type Q4_K_M    an adapter merged into the weights

OUT is a GGUF file (*.gguf), a llama2.c checkpoint (*.bin), or a directory in Hugging Face's layout (one that is there,
a name without a suffix or with a slash behind it). What the format of OUT cannot hold is refused: llama2.c's files have
no place for a RoPE theta other than 10000, its scaling, an epsilon other than 1e-5, sliding windows and heads whose
sizes do not add up to dim.

types: {names}; a directory takes F32, F16 or BF16.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "convert",
        help="write a model in another format, merge adapters",
        description="Write a model in another format: GGUF, llama2.c's or Hugging Face's; it appears when it is whole.",
        epilog=EPILOG.format(names=names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("input", metavar="IN", help="the model: whatever `llama2c run` opens")
    command.add_argument("output", metavar="OUT", help="a .gguf or .bin file, or a directory")
    command.add_argument("--type", metavar="TYPE", help="type of the matrices: see below (default: that of IN)")
    command.add_argument(
        "--version",
        type=int,
        choices=(0, 1, 2),
        help="of a .bin file: 0 and 1 are F32, 2 is int8 (default: 0, which run.c reads)",
    )
    add_lora(command)
    command.add_argument(
        "-z",
        "--tokenizer",
        metavar="FILE",
        help="whose vocabulary goes along (default: that of IN, or what lies beside it)",
    )
    command.add_argument(
        "--threads",
        type=integer(1, MAX_THREADS),
        metavar="N",
        help="threads (default: OMP_NUM_THREADS, else the physical cores); the result does not depend on it",
    )
    command.add_argument("--force", action="store_true", help="replace OUT, and tokenizer.bin beside it, if they exist")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from llama2c.conversion import convert

    with progress_bar(report=False) as show:
        result = convert(
            arguments.input,
            arguments.output,
            type=arguments.type,
            version=arguments.version,
            lora=arguments.lora,
            tokenizer=arguments.tokenizer,
            threads=arguments.threads,
            overwrite=arguments.force,
            progress=show,
        )
    error = f", error {result.error:.3%}" if result.error else ""
    print(f"{result.path}: {len(result.tensors)} tensors, {size(result.bytes)} of weights{error}")
    return 0
