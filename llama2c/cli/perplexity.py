"""`llama2c perplexity`: how well a model predicts a text."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama2c.cli import add_engine_options, add_model, add_threads, integer
from llama2c.cli.quantize import fill_cache

EPILOG = """\
examples:
  llama2c perplexity text.txt                              of the packaged model
  llama2c perplexity model.gguf wiki.test.raw              as llama.cpp: windows of 512, the second half of each scored
  llama2c perplexity model.gguf wiki.test.raw --chunks 8   the first 8 windows
  llama2c perplexity model.gguf book.txt -c 2048 --json
  llama2c perplexity model.gguf book.txt -c 256 --stride 128   every token scored once, after 128 or more others
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "perplexity",
        help="how well a model predicts a text",
        description="Measure how well a model predicts a text: perplexity, nats a token and a character, bits a byte.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(command, "MODEL")
    command.add_argument("text", metavar="TEXT", help="a file of UTF-8 text; -: the standard input")
    command.add_argument(
        "-c",
        "--context",
        type=integer(4),
        metavar="N",
        help="tokens of a window (default: 512, or the model's context if that is smaller)",
    )
    command.add_argument(
        "--stride",
        type=integer(1),
        metavar="N",
        help="score every token: windows N tokens apart, each with those that the one before has not seen",
    )
    command.add_argument("--chunks", type=integer(1), metavar="N", help="windows to score (default: all)")
    command.add_argument(
        "-z",
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.bin, a SentencePiece or Llama 3 .model, tokenizer.json or GGUF",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_threads(command)
    add_engine_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    from tqdm import tqdm

    import llama2c
    from llama2c.scoring import perplexity

    raw = sys.stdin.buffer.read() if arguments.text == "-" else Path(arguments.text).read_bytes()
    text = raw.removesuffix(b"\n")  # as llama.cpp reads a file
    fill_cache(arguments)
    with llama2c.load(
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        threads=arguments.threads,
        isa=arguments.isa,
        mmap=not arguments.no_mmap,
        rope_theta=arguments.rope_theta,
        kv_type=arguments.kv_type,
        quantize=arguments.quantize,
        cache=not arguments.no_cache,
        lora=arguments.lora,
        context=arguments.context,
    ) as llm:
        result = None
        context = min(512, llm.context) if arguments.context is None else arguments.context
        steps = perplexity(llm, text, context=context, windows=arguments.chunks, stride=arguments.stride)
        bar: Any = tqdm(steps, unit="window", disable=not sys.stderr.isatty(), leave=False)
        for result in bar:
            bar.total = result.of
            bar.set_postfix_str(f"perplexity {result.value:.4f}", refresh=False)
            if not arguments.json:
                print(f"[{result.windows}]{result.value:.4f}", end=",", flush=True)
    if result is None:
        raise ValueError(f"{arguments.text}: nothing to score")
    if arguments.json:
        figures = {
            "perplexity": result.value,
            "error": result.error,
            "nats_per_token": result.nats / result.tokens,
            "nats_per_character": result.nats_per_character,
            "bits_per_byte": result.bits_per_byte,
        }
        print(json.dumps({**asdict(result), **figures}, indent=2))
        return 0
    print(f"\nperplexity {result.value:.4f} +- {result.error:.4f}", end="")
    print(f", {result.nats / result.tokens:.5f} nats a token, {result.nats_per_character:.5f} a character", end="")
    print(f", {result.bits_per_byte:.5f} bits a byte ({result.tokens} tokens, {result.bytes} bytes)")
    return 0
