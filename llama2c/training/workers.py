"""Processes that do the jobs of tokenising, and how far they are."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from llama2c.interrupts import Interrupts
from llama2c.training.jobs import Converter, Job, Settings
from llama2c.training.shards import Part

T = TypeVar("T")
K = TypeVar("K")

# Called with the tokens made so far and an estimate of all; None before the first file is done.
Progress = Callable[[int, int | None], None]


class _StoppedError(Exception):
    """In a worker: the work is not wanted any more."""


_converter: Converter  # of a worker


def _start_worker(settings: Settings, tokens: Any, stop: Any) -> None:
    global _converter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent tells us by `stop`
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    def tally(count: int) -> None:
        if stop.value:
            raise _StoppedError
        with tokens.get_lock():
            tokens.value += count

    _converter = Converter(settings, tally)


def _end_with(parent: Any) -> None:
    """A worker whose parent was killed would wait for work for ever: it holds the queue's other end too."""
    parent.join()
    os._exit(1)


def _count(path: str) -> int:
    return _converter.count(path)


def _convert(job: Job) -> Part:
    return _converter.convert(job)


class Workers:
    """Processes that do jobs, or with one of them this process."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._tokens, self._stop = context.Value("q", 0), context.Value("b", 0, lock=False)
            start = (settings, self._tokens, self._stop)
            self._pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=start)

        self._interrupts = Interrupts()

    def __enter__(self) -> "Workers":
        if self._pool is not None:
            self._interrupts.hold()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            try:
                self._stop.value = 1
                self._pool.shutdown(cancel_futures=True)
            finally:
                self._interrupts.release()

    def count(self, files: Sequence[Path]) -> list[int]:
        """The documents of each file."""
        paths = [os.fspath(file) for file in files]
        if self._pool is not None:
            counts = {self._pool.submit(_count, path): path for path in paths}
            done = {path: future.result() for future, path in self._as_completed(counts)}
            return [done[path] for path in paths]
        converter = Converter(self._settings, lambda _: None)
        return [converter.count(path) for path in paths]

    def convert(self, jobs: Sequence[Job], progress: Progress) -> dict[str, Part]:
        """What the jobs give, by their keys."""
        parts: dict[str, Part] = {}
        estimate = _Estimate(sum(job.size for job in jobs), progress)
        # The largest first, so that none is begun when the others are nearly done.
        jobs = sorted(jobs, key=lambda job: -job.size)
        if self._pool is None:
            converter = Converter(self._settings, lambda count: estimate.show(estimate.tokens + count))
            for job in jobs:
                parts[job.key] = converter.convert(job)
                estimate.complete(job, parts[job.key])
            return parts
        waiting = {self._pool.submit(_convert, job): job for job in jobs}
        for future, job in self._as_completed(waiting, lambda: estimate.show(self._tokens.value)):
            parts[job.key] = future.result()
            estimate.complete(job, parts[job.key])
        return parts

    def _as_completed(
        self, waiting: dict[Future[T], K], tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Future[T], K]]:
        """Futures as they are done, with what they stand for; `tick` is called between, and interrupts come through."""
        while waiting:
            for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                yield future, waiting.pop(future)
            self._interrupts.let_through()
            tick()


class _Estimate:
    """How many tokens there will be, by the files that are done."""

    def __init__(self, size: int, progress: Progress) -> None:
        self.tokens = 0
        self._size = size
        self._done_size = self._done_tokens = 0
        self._progress = progress

    def complete(self, job: Job, part: Part) -> None:
        self._done_size += job.size
        self._done_tokens += sum(shard.tokens for shard in part.shards)

    def show(self, tokens: int) -> None:
        self.tokens = tokens
        total = self._done_tokens * self._size // self._done_size if self._done_tokens else None
        self._progress(tokens, None if total is None else max(total, tokens))
