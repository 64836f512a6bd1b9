"""Pages of prompts that later prompts may begin with, the least recently used first to go.

A page is known by a hash of all tokens up to its end. A page is kept only while the one before it is, so that what is
kept of a prompt is always its beginning.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from llama2c._core import Session


def page_keys(ids: Sequence[int], size: int) -> list[bytes]:
    """A key for each whole page of `size` tokens: a hash of the tokens up to its end."""
    keys, key = [], b""
    for end in range(size, len(ids) + 1, size):
        key = blake2b(key + array("i", ids[end - size : end]).tobytes(), digest_size=32).digest()
        keys.append(key)
    return keys


class _Holder:
    """A fork of a session, which holds the pages of some entries of the cache and all pages before them."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.counts: list[int] = []  # for each entry the pages up to its end, ascending


class PrefixCache:
    """Keeps pages by forks of the sessions that computed them. For one thread at a time."""

    def __init__(self, page_size: int) -> None:
        self._size = page_size
        # From the least recently used; a page stands before the one that precedes it in its prompt.
        self._pages: OrderedDict[bytes, tuple[_Holder, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, keys: Sequence[bytes]) -> int:
        """How many pages of a prompt are kept."""
        count = 0
        while count < len(keys) and keys[count] in self._pages:
            count += 1
        return count

    def fork(self, keys: Sequence[bytes], count: int) -> Session:
        """A session that has taken the first `count` pages, of those that find() tells, at least 1."""
        self._touch(keys[:count])
        session = self._pages[keys[count - 1]][0].session
        assert session is not None
        return session.fork(count * self._size)

    def add(self, holder: object, session: Session, keys: Sequence[bytes], count: int) -> object:
        """Keep the first `count` pages of a session.

        holder: what this returned for the session's pages before, at first None.
        """
        missing = range(self.find(keys[:count]), count)
        if not missing:
            return holder
        held = holder if isinstance(holder, _Holder) else _Holder()
        held.session = session.fork(count * self._size)
        for index in missing:
            held.counts.append(index + 1)
            self._pages[keys[index]] = held, index + 1
        self._touch(keys[:count])
        return held

    def evict(self) -> bool:
        """Let one page go; False if there is none."""
        if not self._pages:
            return False
        _, (holder, count) = self._pages.popitem(last=False)
        # The last of its prompt's pages goes first, and so the last of its holder's.
        assert holder.session is not None and holder.counts.pop() == count
        holder.session.rewind(holder.counts[-1] * self._size if holder.counts else 0)
        return True

    def clear(self) -> None:
        """Let all pages go."""
        while self.evict():
            pass

    def _touch(self, keys: Sequence[bytes]) -> None:
        for key in reversed(keys):
            self._pages.move_to_end(key)
