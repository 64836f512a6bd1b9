"""Threads, cancellation, forks: sessions share a model, and the GIL is free while the core computes."""

import os
import subprocess
import sys
import threading
import time

import checkpoints
import numpy as np
import pytest
from oracle import Shape

from llama2c import ROLE_PROMPT, Batch, BusyError, CancelledError, ContextError, Sampler, Session, Transformer

SHAPE = Shape(256, 688, 6, 8, 4, 2000, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    checkpoints.write(path, SHAPE, checkpoints.random_weights(np.random.default_rng(1), SHAPE), version=0)
    return Transformer(str(path))


def in_thread(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def test_the_gil_is_released(model):
    """A pure Python thread goes on while another is inside one step."""
    session = Session(model, chunk=512)
    inside, counts = threading.Event(), []

    def step() -> None:
        inside.set()
        session.prefill([1] * 512)
        inside.clear()

    sys.setswitchinterval(1e-4)
    thread = in_thread(step)
    inside.wait()
    while inside.is_set():
        counts.append(time.perf_counter())
    thread.join()
    # Held for the whole step, the GIL would let this thread come to it hardly ever.
    assert len(counts) > 200


def test_sixteen_threads(model, rng):
    prompts = rng.integers(0, SHAPE.vocab_size, (16, 20)).tolist()

    def run(index: int) -> tuple[list[int], np.ndarray]:
        session = Session(model, threads=1 + index % 3)
        sampler = Sampler(SHAPE.vocab_size, seed=index + 1)
        token = sampler.sample(session.prefill(prompts[index]))
        tokens = [token]
        for _ in range(20):
            tokens.append(session.step_sample(tokens[-1], sampler))
        return tokens, session.step(tokens[-1])

    one_by_one = [run(i) for i in range(16)]
    results: dict[int, tuple] = {}
    threads = [in_thread(lambda i=i: results.__setitem__(i, run(i))) for i in range(16)]
    for thread in threads:
        thread.join()
    for i, (tokens, logits) in enumerate(one_by_one):
        assert results[i][0] == tokens
        assert np.array_equal(results[i][1], logits)


def test_a_busy_session_refuses(model):
    """Two threads on one session: whoever comes second gets BusyError, and nothing breaks."""
    session = Session(model, chunk=512)
    caught: list[BusyError] = []

    def use() -> None:
        while not caught:
            try:
                session.prefill([1] * 400)
                session.step(1)
                session.rewind(0)
            except BusyError as error:
                caught.append(error)
            except ContextError:  # the other's tokens are in the way
                pass
            except ValueError as error:
                assert "rewind" in str(error)

    threads = [in_thread(use) for _ in range(2)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    session.rewind(0)
    assert np.array_equal(session.prefill([5, 6]), Session(model).prefill([5, 6]))


def test_a_prompt_is_one_operation(model):
    """However small its steps: no other thread gets in between, and nothing of a refused prompt is kept."""
    session = Session(model, chunk=4)
    expected = {token: Session(model).prefill([token] * 16) for token in (5, 6)}
    wrong = []

    def use(token: int) -> None:
        for _ in range(6):
            try:
                logits = session.prefill([token] * 16)
            except (BusyError, ContextError):
                continue
            # alone since position 0, or behind whole prompts
            if session.position % 16:
                wrong.append(session.position)
            try:
                session.rewind(0)
            except BusyError:
                continue
            if session.position == 0 and logits.shape != expected[token].shape:
                wrong.append(logits.shape)

    threads = [in_thread(use, token) for token in (5, 6)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong
    session.rewind(0)
    for token, logits in expected.items():
        assert np.array_equal(session.prefill([token] * 16), logits)
        session.rewind(0)


def test_a_session_twice_in_a_step(model):
    batch, session = Batch(model, rows=4), Session(model)
    with pytest.raises(BusyError, match="span 1"):
        batch.step([(session, [5], ROLE_PROMPT, False), (session, [6], ROLE_PROMPT, False)])
    assert session.position == 0
    session.prefill([5])  # and it is not left busy


def test_cancel_from_another_thread(model):
    session = Session(model, chunk=64)
    first = session.prefill([1, 2, 3])
    errors: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                session.prefill([1] * 400)
                session.rewind(3)
        except CancelledError as error:
            errors.append(error)

    thread = in_thread(run)
    time.sleep(0.05)
    session.cancel()
    thread.join(60)
    assert not thread.is_alive() and len(errors) == 1
    assert session.position == 3
    session.rewind(0)
    assert np.array_equal(session.prefill([1, 2, 3]), first)  # as good as new
    session.cancel()  # of no step: the next one ends
    with pytest.raises(CancelledError):
        session.step(1)
    session.step(1)
    session.cancel()
    with pytest.raises(ValueError, match="token 0"):  # a step that fails has used it up
        session.step(-1)
    session.step(1)


def test_sampler_is_for_one_thread(model):
    """Two sessions with one sampler: the second gets BusyError or its turn, never a torn state."""
    sampler = Sampler(SHAPE.vocab_size, seed=1)
    busy = []

    def run() -> None:
        session = Session(model)
        token = 1
        for _ in range(60):
            try:
                token = session.step_sample(token, sampler)
            except BusyError:
                busy.append(1)
            assert 0 <= token < SHAPE.vocab_size

    threads = [in_thread(run) for _ in range(4)]
    for thread in threads:
        thread.join()
    assert busy


FORK = """
import os, sys
import numpy as np
from llama2c import Session, Transformer

model = Transformer(sys.argv[1])
session = Session(model, threads=2)
expected = session.prefill([1] * 200)
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        fresh = Session(model, threads=2)
        same = np.array_equal(fresh.prefill([1] * 200), expected)
        session.step(1)
        os._exit(0 if same else 3)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
session.step(1)
sys.exit(max(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_works(model):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, model.path], timeout=120, check=False)
    assert done.returncode == 0


def test_a_batch_is_for_one_thread(model):
    """The second thread gets BusyError or its turn; its session is not left busy, and logits are right."""
    batch = Batch(model, rows=4)
    expected = Session(model).prefill([5, 6])
    wrong = []

    def run() -> None:
        session = Session(model)
        for _ in range(60):
            try:
                logits = batch.step([(session, [5, 6], ROLE_PROMPT, False)])
            except BusyError:
                continue
            if not np.array_equal(logits[0], expected):
                wrong.append(1)
            session.rewind(0)

    threads = [in_thread(run) for _ in range(3)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def test_sessions_keep_their_model_alive(model):
    session = Session(Transformer(model.path))
    assert np.array_equal(session.prefill([5, 6]), Session(model).prefill([5, 6]))


def test_many_sessions_come_and_go(model):
    for _ in range(300):
        Session(model, context=64).prefill([1])
