"""`llama2c data`: texts to train on, their vocabulary and their tokens."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama2c.cli import MAX_THREADS, Parser, finite, integer

if TYPE_CHECKING:
    from llama2c.training.documents import BadRecord
    from llama2c.training.shards import Dataset
    from llama2c.training.workers import Progress

SHOWN = 10  # bad records that are named

EPILOG = """\
examples:
  llama2c data download tinystories --out stories
  llama2c data vocab tok4096.model stories --size 4096
  llama2c data tokenize stories --tokenizer tok4096.model --out tokens --validation 0.01
  llama2c data info tokens

`llama2c data ACTION --help` explains each.
"""
INPUT = """\
INPUT is a text file (one document), a file of JSON (*.json, *.jsonl, *.ndjson: a list of records, or one a line), each
also with .gz behind, or a directory, of which all *.txt and JSON files are taken.
"""
VOCAB = """\
examples:
  llama2c data vocab tok1024.model shakespeare.txt --size 1024
  llama2c data vocab tok4096.model stories --size 4096 --max-sentences 5000000

BPE as Llama's: digits one by one, byte tokens for what has no piece of its own, no character of a text lost.
Files are read one after another, each whole; of all lines a sample is held in memory, the same in every run.

"""
TOKENIZE = """\
examples:
  llama2c data tokenize shakespeare.txt --tokenizer tok1024.model --out tokens --validation 0.1
  llama2c data tokenize stories --tokenizer tok4096.model --out tokens --validation-input stories/data00.json
  llama2c data tokenize pages.jsonl.gz --key content --tokenizer tokenizer.model --out tokens --eos

Each document is BOS and its tokens. Records that are none are left out and named. Interrupted, the same command goes on
with the files that are left; the result is the same, whatever the number of workers.

"""


def add(commands: Any) -> None:
    """Add the command and its actions to the parser."""
    command = commands.add_parser(
        "data",
        help="prepare texts for training: vocabulary, tokens",
        description="Prepare texts for training.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    add_vocab(actions)
    add_tokenize(actions)
    add_info(actions)
    add_download(actions)


def add_key(command: argparse.ArgumentParser) -> None:
    """The option --key."""
    command.add_argument("--key", metavar="NAME", help='where a JSON record has its text (default: "story" or "text")')


def add_vocab(actions: Any) -> None:
    """`llama2c data vocab`."""
    command = actions.add_parser(
        "vocab",
        help="train a vocabulary",
        description="Train a vocabulary on texts: a SentencePiece model, BPE. OUT appears when it is whole.",
        epilog=VOCAB + INPUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("output", metavar="OUT.model", help="the file to write")
    command.add_argument("inputs", metavar="INPUT", nargs="+", help="texts: see below")
    command.add_argument("--size", type=integer(1), required=True, metavar="N", help="tokens of the vocabulary")
    add_key(command)
    command.add_argument(
        "--max-sentences",
        type=integer(0),
        default=1_000_000,
        metavar="N",
        help="lines to learn from, drawn from all (default: 1000000; 0: all, held in memory)",
    )
    command.add_argument(
        "--coverage",
        type=finite,
        default=1.0,
        metavar="SHARE",
        help="of the characters that get tokens, 0.98 to 1; the rarest are spelt in bytes (default: 1)",
    )
    command.add_argument("--seed", type=integer(0), default=0, metavar="N", help="of the drawing (default: 0)")
    command.add_argument(
        "--threads",
        type=integer(1, MAX_THREADS),
        default=16,
        metavar="N",
        help="threads; the vocabulary does not depend on them, but the file tells their number (default: 16)",
    )
    command.add_argument("--force", action="store_true", help="replace OUT.model if it exists")
    command.set_defaults(run=run_vocab)


def add_tokenize(actions: Any) -> None:
    """`llama2c data tokenize`."""
    command = actions.add_parser(
        "tokenize",
        help="turn texts into shards of tokens",
        description="Turn texts into a dataset: a directory of shards of tokens, for training and validation.",
        epilog=TOKENIZE + INPUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("inputs", metavar="INPUT", nargs="+", help="texts: see below")
    command.add_argument(
        "-z", "--tokenizer", required=True, metavar="FILE", help="tokenizer.bin, a .model, tokenizer.json or GGUF"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="the directory to write")
    add_key(command)
    held_out = command.add_mutually_exclusive_group()
    held_out.add_argument(
        "--validation",
        type=finite,
        default=0.0,
        metavar="FRACTION",
        help="of the documents, the last ones, for validation; if there is one only, of its characters (default: 0)",
    )
    held_out.add_argument(
        "--validation-input",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="texts for validation; they are taken out of INPUT",
    )
    command.add_argument("--strip", action="store_true", help="take white space off both ends of each document")
    command.add_argument("--eos", action="store_true", help="put EOS behind each document")
    command.add_argument(
        "--shard-tokens", type=integer(1), metavar="N", help="begin a new shard after so many (default: one a file)"
    )
    command.add_argument(
        "--passage",
        type=integer(1),
        metavar="N",
        help="cut a document behind the first blank line of each N characters into several (default: none is cut)",
    )
    command.add_argument(
        "--workers",
        type=integer(1, MAX_THREADS),
        metavar="N",
        help="processes (default: the cores, one a file at most)",
    )
    command.add_argument("--force", action="store_true", help="replace a dataset of other inputs or options in DIR")
    command.set_defaults(run=run_tokenize)


def add_info(actions: Any) -> None:
    """`llama2c data info`."""
    command = actions.add_parser(
        "info", help="what a dataset holds", description="Tell what a dataset holds, and whether it is whole."
    )
    command.add_argument("dataset", metavar="DIR", help="what `llama2c data tokenize` has written")
    command.add_argument("--check", action="store_true", help="read all tokens: each must be of the vocabulary")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_info)


def add_download(actions: Any) -> None:
    """`llama2c data download`."""
    command = actions.add_parser(
        "download",
        help="fetch a text to train on",
        description="Fetch a text to train on from huggingface.co; this needs `pip install 'llama2c[hub]'`. "
        "An interrupted download is continued.",
    )
    command.add_argument(
        "name", choices=("tinystories",), help="TinyStories: 50 files of stories written by GPT-4 and 3.5"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="where the files go")
    command.set_defaults(run=run_download)


def run_vocab(arguments: argparse.Namespace) -> int:
    """Carry `vocab` out."""
    from llama2c.training.vocabulary import train_vocabulary

    result = train_vocabulary(
        arguments.inputs,
        arguments.output,
        arguments.size,
        key=arguments.key,
        max_sentences=arguments.max_sentences or None,
        coverage=arguments.coverage,
        seed=arguments.seed,
        threads=arguments.threads,
        overwrite=arguments.force,
    )
    show_bad(len(result.bad), result.bad)
    of = "" if result.sentences == result.of_sentences else f" of {result.of_sentences:,}"
    print(f"{result.path}: {result.size} tokens, learnt from {result.sentences:,}{of} lines")
    return 0


def run_tokenize(arguments: argparse.Namespace) -> int:
    """Carry `tokenize` out."""
    from llama2c.training.tokenizing import tokenize

    with token_bar() as show:
        result = tokenize(
            arguments.inputs,
            arguments.out,
            tokenizer=arguments.tokenizer,
            key=arguments.key,
            strip=arguments.strip,
            eos=arguments.eos,
            validation=arguments.validation,
            validation_inputs=arguments.validation_input,
            shard_tokens=arguments.shard_tokens,
            passage=arguments.passage,
            workers=arguments.workers,
            overwrite=arguments.force,
            progress=show,
        )
    if result.kept:
        print(f"{result.kept} of {result.made + result.kept} files were done already")
    print_dataset(result.dataset)
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """Carry `info` out."""
    from llama2c.training.shards import open_dataset

    dataset = open_dataset(arguments.dataset, check=arguments.check)
    if arguments.json:
        print(json.dumps(figures_of(dataset), indent=2))
    else:
        print_dataset(dataset)
    return 0


def run_download(arguments: argparse.Namespace) -> int:
    """Carry `download` out."""
    from llama2c.cli.info import size
    from llama2c.training.download import download_tinystories

    paths = download_tinystories(arguments.out, progress=lambda path: print(path, flush=True))
    files = f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
    print(f"{arguments.out}: {files}, {size(sum(path.stat().st_size for path in paths))}")
    return 0


@contextmanager
def token_bar() -> "Iterator[Progress]":
    """A bar on the standard error if that is a terminal, as a callback of tokenize()."""
    from tqdm import tqdm

    bar: Any = tqdm(unit="tok", unit_scale=True, disable=not sys.stderr.isatty(), leave=False)

    def show(tokens: int, total: int | None) -> None:
        bar.total = total
        bar.update(tokens - bar.n)

    with bar:
        yield show


def figures_of(dataset: "Dataset") -> dict[str, Any]:
    """What a dataset holds."""
    return {
        "path": dataset.path,
        "tokenizer": dataset.tokenizer_path,
        "vocab_size": dataset.vocab_size,
        "dtype": dataset.manifest.dtype,
        "eos": dataset.manifest.eos,
        "splits": {
            split: {
                "shards": len(dataset.shards(split)),
                "documents": dataset.documents(split),
                "tokens": dataset.tokens(split),
                "characters": dataset.characters(split),
            }
            for split in dataset.splits
        },
        "bad_records": dataset.manifest.bad_records,
        "first_bad_records": [str(record) for record in first_bad(dataset)],
    }


def first_bad(dataset: "Dataset") -> "list[BadRecord]":
    """The bad records that the manifest names."""
    return [record for source in dataset.manifest.sources for record in source.first_bad]


def print_dataset(dataset: "Dataset") -> None:
    """The table of a dataset; its bad records on the standard error."""
    manifest = dataset.manifest
    files = f"{len(manifest.sources)} file{'' if len(manifest.sources) == 1 else 's'}"
    print(f"{dataset.path}: from {files}, {manifest.dtype}, a vocabulary of {dataset.vocab_size}")
    print(f"  {'split':<10} {'shards':>7} {'documents':>12} {'tokens':>16} {'characters':>16} {'per token':>10}")
    for split in dataset.splits:
        tokens, characters = dataset.tokens(split), dataset.characters(split)
        each = f"{characters / tokens:.2f}" if tokens else "-"
        counts = f"{len(dataset.shards(split)):>7,} {dataset.documents(split):>12,} {tokens:>16,} {characters:>16,}"
        print(f"  {split:<10} {counts} {each:>10}")
    sys.stdout.flush()
    show_bad(manifest.bad_records, first_bad(dataset))


def show_bad(count: int, records: "Sequence[BadRecord]") -> None:
    """Name the first bad records on the standard error."""
    if count:
        sys.stderr.write(f"llama2c: {count} bad record{'' if count == 1 else 's'} left out\n")
        sys.stderr.writelines(f"  {record}\n" for record in records[:SHOWN])
        if count > SHOWN:
            sys.stderr.write("  ...\n")
