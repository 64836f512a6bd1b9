"""Which windows of the training tokens a step sees: a function of the seed and the number of the step alone."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]


class Windows:
    """Windows of `context` tokens and the next ones, in epochs: each cuts every shard at another phase and shuffles."""

    def __init__(self, shards: Sequence[Tokens], context: int, seed: int) -> None:
        self.shards, self.context, self.seed = [shard for shard in shards if len(shard) > context], context, seed
        # One window less than fit: room for the phase.
        self.counts = [max(1, (len(shard) - 1) // context - 1) for shard in self.shards]
        self.epoch_windows = sum(self.counts)
        if not self.shards:
            raise ValueError(f"no shard has more than {context} tokens, a window and the token after it")
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Shard and start of each window, [epoch_windows][2]."""
        random = np.random.default_rng((self.seed, epoch))
        places = []
        for i, (shard, count) in enumerate(zip(self.shards, self.counts, strict=True)):
            phase = random.integers(len(shard) - count * self.context)
            starts = phase + self.context * np.arange(count, dtype=np.int64)
            places.append(np.stack([np.full(count, i, np.int64), starts], axis=1))
        order: NDArray[np.int64] = random.permutation(np.concatenate(places))
        return order

    def batch(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Windows first to first + count - 1 of all epochs, and the tokens that follow: int64 [count][context] each."""
        rows = np.empty((count, self.context + 1), np.int64)
        for row, number in zip(rows, range(first, first + count), strict=True):
            epoch, within = divmod(number, self.epoch_windows)
            shard, start = self._epoch(epoch)[within]
            row[:] = self.shards[shard][start : start + self.context + 1]
        return rows[:, :-1], rows[:, 1:]


def validation_windows(shards: Sequence[Tokens], context: int, limit: int) -> list[tuple[Tokens, Tokens]]:
    """Windows side by side and the tokens that follow, the last of a shard shorter; at most `limit`, 0: all."""
    found: list[tuple[Tokens, Tokens]] = []
    for shard in shards:
        for start in range(0, len(shard) - 1, context):
            if limit and len(found) == limit:
                return found
            window = shard[start : start + context + 1]
            found.append((window[:-1], window[1:]))
    return found
