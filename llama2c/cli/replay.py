"""`llama2c replay`: does a recorded run again and compares."""

import argparse
import sys
from typing import Any

from llama2c.cli import add_threads

EPILOG = """\
examples:
  llama2c run stories15M.bin "One day" --record run.json    generate, and record
  llama2c replay run.json                                   generate again: "identical: 256 tokens"
  llama2c replay run.json --model copy.bin --threads 1      the same weights elsewhere, on one thread

The model must be that of the record, to the byte. Exit code 1 if a token differs, or if nothing could be compared: then
one line on stderr says why.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "replay",
        help="generate a recorded run again and verify it",
        description="Generate again what `llama2c run --record` has recorded, and verify that the tokens are the same.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("record", metavar="RECORD", help="the file that --record wrote")
    command.add_argument("--model", metavar="FILE", help="where the model is now (default: where it was)")
    command.add_argument(
        "-z", "--tokenizer", metavar="FILE", help="where its tokenizer is now, if that was a file of its own"
    )
    command.add_argument(
        "--lora",
        action="append",
        metavar="ADAPTER",
        help="where its adapter is now, for each in turn if there are several (default: where they were)",
    )
    add_threads(command)
    command.add_argument(
        "--isa",
        metavar="NAME",
        help="instruction-set level (default: the record's, or the best where the machine does not have it)",
    )
    command.add_argument(
        "--no-cache",
        action="store_true",
        help="for a run with --quantize: make a temporary file instead of one in the cache",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    import llama2c

    record = llama2c.Record.load(arguments.record)
    result = llama2c.replay(
        record,
        model=arguments.model,
        tokenizer=arguments.tokenizer,
        isa=arguments.isa,
        threads=arguments.threads,
        cache=not arguments.no_cache,
        lora=arguments.lora,
    )
    if arguments.isa is None and result.isa != record.machine.isa:
        sys.stderr.write(
            f"llama2c: recorded at level {record.machine.isa}, which this machine does not have: "
            f"replayed at {result.isa}\n"
        )
    if record.llama2c != llama2c.__version__ and not (result.identical and result.same_logits):
        sys.stderr.write(f"llama2c: recorded by version {record.llama2c}, replayed by {llama2c.__version__}\n")
    count = f"{result.tokens} token{'' if result.tokens == 1 else 's'}"
    if not result.identical:
        print(f"different after {count}: {result.difference}")
        return 1
    print(f"identical: {count}")
    if not result.same_logits:
        sys.stderr.write("llama2c: the logits differ, but not so much that another token was chosen\n")
    return 0
