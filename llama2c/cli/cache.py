"""`llama2c cache`: the models that were quantised when they were loaded."""

import argparse
import time
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "cache",
        help="list or clear the cache of models quantised by --quantize",
        description="List or clear the cache of models that --quantize (or llama2c.load's quantize=) has made. "
        "It lies in $XDG_CACHE_HOME/llama2c, else in ~/.cache/llama2c.",
    )
    command.add_argument("action", choices=("list", "clear"), help="show the files, or remove them")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from llama2c.cache import cache_entries, cache_folder, clear_cache
    from llama2c.cli.info import size

    entries = clear_cache() if arguments.action == "clear" else cache_entries()
    for entry in entries:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made))
        print(f"{made} {size(entry.bytes):>12}  {entry.path.name}")
    total = size(sum(entry.bytes for entry in entries))
    files = f"{len(entries)} file{'' if len(entries) == 1 else 's'}"
    print(f"{cache_folder()}: {files}, {total}{', removed' if arguments.action == 'clear' else ''}")
    return 0
