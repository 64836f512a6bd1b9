"""Trains vocabularies of Llama's kind with the sentencepiece library.

    documents --lines, at most LONGEST characters--> sentences --sample--> SentencePieceTrainer --> .model

BPE whose pieces never cross a space, digits one by one, and a byte token for each byte of what has no piece of its own,
such as the newlines that end the sentences. Nothing of a text is changed, so decoding gives it back; only U+2581, which
spells a space in such models, comes back as one.
"""

import io
import os
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llama2c.new_file import NewFile
from llama2c.tokenizers import StrPath
from llama2c.training.documents import BadRecord, input_files, read_documents

MAX_SENTENCES = 1_000_000
THREADS = 16
LONGEST = 4096  # characters of a sentence; the library leaves out what is longer than it is told
FIXED = 259  # <unk>, <s>, </s> and 256 bytes, which every vocabulary has
_BYTES_A_CHARACTER = 4  # of UTF-8, at most

_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")


@dataclass(frozen=True)
class Vocabulary:
    """What train_vocabulary() did."""

    path: str
    size: int
    sentences: int  # learnt from
    of_sentences: int  # in the text
    bad: tuple[BadRecord, ...]


def train_vocabulary(
    inputs: Sequence[StrPath],
    path: StrPath,
    size: int,
    *,
    key: str | None = None,
    max_sentences: int | None = MAX_SENTENCES,
    coverage: float = 1.0,
    seed: int = 0,
    threads: int = THREADS,
    overwrite: bool = False,
) -> Vocabulary:
    """Write a SentencePiece model with a vocabulary of `size` tokens that is learnt from texts.

    inputs: files and directories, see documents.input_files; key: of the text in JSON records.
    path: the new file, which appears when it is whole; an existing one is replaced only if `overwrite` says so.
    max_sentences: of a larger text so many lines are drawn, each as likely as any other; the draw depends on `seed`
    alone. None: all, which the library holds in memory.
    coverage: the share of all characters that get tokens; the rarest, up to 1 - coverage, are spelt in bytes.
    threads: the vocabulary does not depend on them, but the library writes their number into the file, which is why it
    does not follow the machine.

    Raises OSError, FormatError, or ValueError for a size that the text has too many characters or too few words for,
    with the bound; nothing is left of the new file then.
    """
    if not os.fspath(path).endswith(".model"):
        raise ValueError(f"{os.fspath(path)}: expected a name that ends in .model, by which its format is told")
    import sentencepiece

    for name, value, least in ("size", size, 1), ("max_sentences", max_sentences, 1), ("threads", threads, 1):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if not 0.98 <= coverage <= 1:  # the library's bounds
        raise ValueError(f"coverage is {coverage}, expected 0.98 to 1")
    files = input_files(inputs)
    bad: list[BadRecord] = []
    documents = (document for file in files for document in read_documents(file, key=key, bad=bad.append))
    sentences = _Counted(sentence for document in documents for sentence in sentences_of(document))
    learnt = _Counted(sentences if max_sentences is None else _sample(sentences, max_sentences, seed))
    model = io.BytesIO()
    with NewFile(path, overwrite=overwrite) as file:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(learnt),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                max_sentence_length=_BYTES_A_CHARACTER * LONGEST,
                character_coverage=coverage,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                num_threads=threads,
                minloglevel=5,  # nothing is printed; errors are raised
            )
        except RuntimeError as error:
            if learnt.error is not None:  # of the reading, which the library hands on as a message only
                raise learnt.error from None
            if not learnt.count:
                raise ValueError(_nothing(len(files), bad)) from None
            raise ValueError(_refusal(size, str(error))) from None
        file.write(model.getvalue())
    return Vocabulary(os.fspath(path), size, learnt.count, sentences.count, tuple(bad))


def sentences_of(text: str) -> Iterator[str]:
    """The lines of a text that are not empty, without their ends; a long one in parts, cut at spaces if it has any.

    A cut takes the place of a space, as the library puts one before each sentence.
    """
    for line in text.split("\n"):
        start = 0
        while len(line) - start > LONGEST:
            space = line.rfind(" ", start + 1, start + LONGEST + 1)
            end = space if space > 0 else start + LONGEST
            yield line[start:end]
            start = end + 1 if space > 0 else end
        if start < len(line):
            yield line[start:]


class _Counted:
    """Sentences, their number as they pass, and the exception that ends them."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self._sentences = sentences
        self.count = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for sentence in self._sentences:
                self.count += 1
                yield sentence
        except BaseException as error:
            self.error = error
            raise


def _sample(sentences: Iterable[str], most: int, seed: int) -> Iterator[str]:
    """At most so many, all equally likely, held in memory: a reservoir."""
    chance = random.Random(seed).random
    kept: list[str] = []
    for number, sentence in enumerate(sentences, 1):
        if number <= most:
            kept.append(sentence)
        elif (place := int(chance() * number)) < most:
            kept[place] = sentence
    kept.reverse()
    while kept:  # the library takes copies: each is held once
        yield kept.pop()


def _nothing(files: int, bad: Sequence[BadRecord]) -> str:
    text = f"no text to learn from in {files} file{'' if files == 1 else 's'}"
    return f"{text}; {len(bad)} bad records, the first is {bad[0]}" if bad else text


def _refusal(size: int, message: str) -> str:
    if found := _TOO_SMALL.search(message):
        least = int(found[1])
        return (
            f"a vocabulary of {size} is too small for this text: it needs {least}, {FIXED} for bytes and control "
            f"tokens and {least - FIXED} for the characters of the text"
        )
    if found := _TOO_LARGE.search(message):
        return f"a vocabulary of {size} is too large for this text: it has words for {found[1]} tokens at most"
    return f"sentencepiece: {message}"
