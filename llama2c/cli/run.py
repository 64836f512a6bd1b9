"""`llama2c run`: llama2.c's `run`, its flags and its output."""

import argparse
import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from llama2c._core import Tokenizer
from llama2c.cli import add_engine_options, add_model, add_threads, finite, integer
from llama2c.cli.quantize import fill_cache
from llama2c.generation import Run, prompt_ids
from llama2c.new_file import NewFile
from llama2c.text import TextDecoder

LLAMA2C_END = 1  # llama2.c ends a text at this token, whatever the tokenizer says
FLUSH_SECONDS = 0.02  # a reader of a pipe sees text at least that often

EPILOG = """\
examples:
  llama2c run                                                something like Shakespeare, by the packaged model
  llama2c run -i "ROMEO:" -s 7                               the same, continuing a text
  llama2c run stories15M.bin                                 a story
  llama2c run stories15M.bin "One day, Lily" -t 0.8 -n 100   continue a text
  llama2c run stories15M.bin -t 0                            always the most probable token
  llama2c run llama-2-7b-chat.Q4_K_M.gguf -m chat            a conversation
  llama2c run stories15M.bin --record run.json               a text that `llama2c replay run.json` verifies

A GGUF file has its tokenizer. Other models' is looked for beside them and in the current directory: tokenizer.bin,
tok<size>.bin, tokenizer.model, tok<size>.model, and tokenizer.json in a Hugging Face directory. The same seed gives the
same text, on any number of threads and any instruction set of one machine.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "run",
        help="generate text, or chat",
        description="Generate text with a model, or chat with it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(command, "CKPT")
    command.add_argument("text", metavar="PROMPT", nargs="?", help="text to continue; the same as -i")
    command.add_argument(
        "-t",
        "--temperature",
        type=finite,
        default=1.0,
        metavar="T",
        help="0: most probable token; 1: as the model has it (default)",
    )
    command.add_argument(
        "-p",
        "--top-p",
        type=finite,
        default=0.9,
        metavar="P",
        help="sample from the most probable tokens that together exceed P; 1: from all (default: 0.9)",
    )
    command.add_argument(
        "-s",
        "--seed",
        type=int,
        default=0,
        metavar="SEED",
        help="random seed; 0: the time (default)",
    )
    command.add_argument(
        "-n",
        "--max-tokens",
        type=integer(-0x80000000),
        metavar="N",
        help="positions to fill, the prompt's among them; 0: the whole context (default: 256; chat: 0)",
    )
    command.add_argument("-i", "--prompt", metavar="TEXT", help="text to continue; in chat the first message")
    command.add_argument(
        "-z",
        "--tokenizer",
        metavar="FILE",
        help="tokenizer.bin, a SentencePiece or Llama 3 .model, tokenizer.json or GGUF",
    )
    command.add_argument(
        "-m",
        "--mode",
        choices=("generate", "chat"),
        default="generate",
        help="generate (default) or chat",
    )
    command.add_argument("-y", "--system", metavar="TEXT", help="system prompt of a chat")
    command.add_argument(
        "--context",
        type=integer(1),
        metavar="N",
        help="positions of the context (default: what the model was trained for)",
    )
    command.add_argument(
        "--record",
        metavar="FILE",
        help="write what the text depends on as JSON, the model's hash among it, for `llama2c replay`; not for a chat",
    )
    command.add_argument("--force", action="store_true", help="replace the FILE of --record if it exists")
    add_threads(command)
    add_engine_options(command)
    command.set_defaults(run=run, error=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out."""
    import llama2c

    if arguments.text is not None and arguments.prompt is not None:
        arguments.error("two prompts: PROMPT and -i")
    if arguments.record is not None and arguments.mode == "chat":
        arguments.error("--record is for -m generate: a conversation is not recorded")
    if arguments.text is None and not os.path.exists(arguments.checkpoint):
        reason = "No such file or directory; a text for the packaged model is given by -i"
        raise FileNotFoundError(errno.ENOENT, reason, arguments.checkpoint)
    prompt = arguments.prompt if arguments.text is None else arguments.text
    fill_cache(arguments)
    with llama2c.load(
        arguments.checkpoint,
        tokenizer=arguments.tokenizer,
        threads=arguments.threads,
        isa=arguments.isa,
        mmap=not arguments.no_mmap,
        context=arguments.context,
        rope_theta=arguments.rope_theta,
        kv_type=arguments.kv_type,
        quantize=arguments.quantize,
        cache=not arguments.no_cache,
        lora=arguments.lora,
    ) as llm:
        settings = {
            # out of range means what it means in llama2.c
            "temperature": max(arguments.temperature, 0.0),
            "top_p": arguments.top_p if 0 <= arguments.top_p <= 1 else 0.9,
            "seed": arguments.seed & 0xFFFFFFFFFFFFFFFF or int(time.time()),
        }
        if arguments.mode == "chat":
            return _chat(llm, prompt, arguments.system, arguments.max_tokens or 0, settings)
        steps = 256 if arguments.max_tokens is None else max(arguments.max_tokens, 0)
        if arguments.record is None:
            return _generate(llm, prompt or "", steps, settings)
        # Opened first: a file that cannot be written is told before the text, and Ctrl-C leaves none.
        with NewFile(arguments.record, overwrite=arguments.force) as file:
            return _generate(llm, prompt or "", steps, settings, record=file)


class Writer:
    """Standard output as bytes: flushed for every piece on a terminal, else every FLUSH_SECONDS."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._out = sys.stdout.buffer
        self._every = 0.0 if sys.stdout.isatty() else FLUSH_SECONDS
        self._flushed = time.perf_counter()

    def write(self, text: str) -> None:
        """Write a piece of text."""
        self._out.write(text.encode())
        now = time.perf_counter()
        if now - self._flushed >= self._every:
            self._out.flush()
            self._flushed = now

    def flush(self) -> None:
        """Show everything now."""
        self._out.flush()


def printable(tokenizer: Tokenizer, token: int) -> bytes:
    """A token's bytes: as llama2.c prints them, without lone control characters, but with the bytes from 0x80."""
    data = tokenizer.token_bytes(token)
    if len(data) == 1 and data < b"\x80" and not (data.isspace() or b" " <= data <= b"~"):
        return b""
    return data


def ends_of(llm: Any) -> frozenset[int]:
    """The tokens that end a text: llama2.c's one for its own files, else the tokenizer's BOS and EOS."""
    if llm.config.format.startswith("llama2.c"):
        return frozenset((LLAMA2C_END,))
    return frozenset((llm.tokenizer.bos, llm.tokenizer.eos)) - {-1}


def _tokens(
    llm: Any, run: Run | None, ids: list[int], steps: int, taken: list[int], started: Callable[[], None]
) -> Iterator[int]:
    """The tokens that llama2.c's loop prints: the prompt's after BOS, then sampled ones, `steps` positions at most.

    run: None if the prompt fills them. taken: gets the sampled ones.
    """
    sampled = None
    if len(ids) > 1:
        started()
    if run is None:
        llm.session(context=steps).prefill(ids[:steps])
    else:
        run_tokens = run.tokens(ends_of(llm))
        sampled = next(run_tokens, None)
    if len(ids) == 1:
        started()
    yield from ids[1 if ids[0] == llm.tokenizer.bos else 0 : steps + 1]
    while sampled is not None:
        taken.append(sampled)
        yield sampled
        sampled = next(run_tokens, None)


def _generate(llm: Any, prompt: str, steps: int, settings: dict[str, Any], *, record: NewFile | None = None) -> int:
    steps = steps if 0 < steps <= llm.context else llm.context
    tokenizer = llm.tokenizer
    ids = prompt_ids(tokenizer, prompt)
    run = None
    if len(ids) <= steps:
        # the last token is sampled, but takes no position
        digest = None if record is None else hashlib.sha256()
        run = Run(llm, ids, max_tokens=steps - len(ids) + 1, digest=digest, **settings)
    elif record is not None:
        raise ValueError(
            f"the prompt has {len(ids)} tokens and -n is {steps}: nothing is generated, and nothing recorded"
        )
    decoder = TextDecoder(strip_space=tokenizer.add_space_prefix)
    start = 0.0
    count = 0
    taken: list[int] = []

    def started() -> None:
        # llama2.c's clock starts after the first position; ours, with a prompt in one step, before it
        nonlocal start
        start = time.perf_counter()

    writer = Writer()
    try:
        for token in _tokens(llm, run, ids, steps, taken, started):
            count += 1
            writer.write(decoder.feed(printable(tokenizer, token)))
        end = time.perf_counter()
    finally:
        writer.write(decoder.flush() + "\n")
        writer.flush()
    if count > 1:
        sys.stderr.write(f"achieved tok/s: {(count - 1) / max(end - start, 1e-9):f}\n")
    if record is not None and run is not None:
        from llama2c.recording import record_of

        record.write(record_of(llm, prompt, run, taken, ends=ends_of(llm)).to_json().encode())
    return 0


def _ask(question: str) -> str | None:
    """A line from the user; None at the end of the input."""
    sys.stdout.write(question)
    sys.stdout.flush()
    line = sys.stdin.buffer.readline()
    # bytes that are no UTF-8 reach the tokenizer as they are
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape") if line else None


def _chat(llm: Any, first: str | None, system: str | None, steps: int, settings: dict[str, Any]) -> int:
    from llama2c.chat import Conversation
    from llama2c.errors import ContextError

    if system is None:
        system = _ask("Enter system prompt (optional): ") or ""
    chat = Conversation(llm, system=system, context=min(steps, llm.context) if steps > 0 else None, **settings)
    user = first
    while True:
        if user is None:
            user = _ask("User: ")
        if user is None:
            break
        try:
            pieces = chat.reply(user)
        except ContextError as error:
            if steps > 0 or chat.session.position == 0:
                raise
            sys.stderr.write(f"llama2c: {error}: the conversation starts anew\n")
            chat.clear()
            continue
        sys.stdout.write("Assistant: ")
        writer = Writer()
        for text in pieces:
            writer.write(text)
        writer.write("\n")
        writer.flush()
        if steps > 0 and chat.room == 0:
            break
        user = None
    sys.stdout.write("\n")
    if chat.generated > 1:
        sys.stderr.write(f"achieved tok/s: {chat.generated / max(chat.seconds, 1e-9):f}\n")
    return 0
