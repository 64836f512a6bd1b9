"""Ctrl-C, kept for a moment that suits."""

import signal
import threading
from typing import Any


class Interrupts:
    """Keeps interrupts between `hold` and `release`, in the main thread; others get none.

    KeyboardInterrupt may strike anywhere: while the lock of a future is held, which nobody opens then, or amid an
    import that cannot be taken up again in this process.
    """

    def __init__(self) -> None:
        self._old: Any = None
        self._seen = False

    def hold(self) -> None:
        """From now on keep them; not where a handler of C has them, which could not be put back."""
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is not None:
            self._old = signal.signal(signal.SIGINT, self._note)

    def _note(self, *_: object) -> None:
        self._seen = True

    def let_through(self) -> None:
        """Do what would have been done when one came."""
        if self._seen:
            self._seen = False
            if callable(self._old):
                self._old(signal.SIGINT, None)

    def release(self) -> None:
        """Keep them no more, and let through the one that is kept."""
        if self._old is not None:
            old, self._old = self._old, None
            signal.signal(signal.SIGINT, old)
            if self._seen:
                self._seen = False
                signal.raise_signal(signal.SIGINT)
