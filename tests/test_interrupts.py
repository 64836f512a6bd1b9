"""Interrupts that are kept for a while."""

import signal
from collections.abc import Iterator

import pytest

from llama2c.interrupts import Interrupts


@pytest.fixture(autouse=True)
def _python_handles_them() -> Iterator[None]:
    """A shell's background jobs are started with interrupts ignored."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_one_is_kept_until_the_end():
    interrupts = Interrupts()
    interrupts.hold()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupts.release()
    interrupts.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_is_let_through_once():
    interrupts = Interrupts()
    interrupts.hold()
    try:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.let_through()
        interrupts.let_through()
    finally:
        interrupts.release()


def test_a_handler_of_c_stays(monkeypatch):
    """Python does not know it, and so could not put it back."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)
        patch.setattr(signal, "signal", lambda *_: pytest.fail("replaced"))
        interrupts = Interrupts()
        interrupts.hold()
        interrupts.release()
