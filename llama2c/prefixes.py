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

    @property
    def position(self) -> int:
        return 0 if self.session is None else self.session.position


class PrefixCache:
    """Keeps pages by forks of the sessions that computed them. For one thread at a time.

    An interrupt between any two lines may lose pages that are kept, but no memory, and never gives wrong ones.
    """

    def __init__(self, page_size: int) -> None:
        self._size = page_size
        # From the least recently used; a page stands before the one that precedes it in its prompt. Who holds it, pages
        # up to its end, pages up to the end of the holder's entry before it.
        self._pages: OrderedDict[bytes, tuple[_Holder, int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def find(self, keys: Sequence[bytes]) -> int:
        """How many pages of a prompt are kept."""
        for count, key in enumerate(keys):
            entry = self._pages.get(key)
            if entry is None or entry[0].position < entry[1] * self._size:
                return count
        return len(keys)

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
        keys = keys[:count]
        found = self.find(keys)
        if found == count:
            return holder
        held = holder if isinstance(holder, _Holder) else _Holder()
        fork = session.fork(count * self._size)
        before = max(
            (entry[1] for entry in map(self._pages.get, keys[:found]) if entry and entry[0] is held), default=0
        )
        for end in range(found + 1, count + 1):
            self._pages[keys[end - 1]] = held, end, before
            before = end
        held.session = fork  # last: an entry that its holder does not reach is none, a page without an entry would stay
        self._touch(keys)
        return held

    def evict(self) -> bool:
        """Let one page go; False if there is none."""
        if not self._pages:
            return False
        # The last of a prompt's pages goes first, and so the last of its holder's; a holder without any goes by itself.
        _, (holder, _, before) = self._pages.popitem(last=False)
        if holder.session is not None and holder.position > before * self._size:
            holder.session.rewind(before * self._size)
        return True

    def clear(self) -> None:
        """Let all pages go."""
        while self.evict():
            pass

    def _touch(self, keys: Sequence[bytes]) -> None:
        for key in reversed(keys):
            self._pages.move_to_end(key)
