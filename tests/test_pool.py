"""Pages of keys and values: shared by forks, bounded by a pool, given back, and never of influence on a result."""

import os
import subprocess
import sys
import threading

import checkpoints
import numpy as np
import pytest
from oracle import Shape

from llama2c import (
    ROLE_GENERATED,
    ROLE_PROMPT,
    Batch,
    CancelledError,
    ContextError,
    ExhaustedError,
    Pool,
    Sampler,
    Session,
    Transformer,
)

SHAPE = Shape(64, 96, 2, 4, 2, 300, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    checkpoints.write(path, SHAPE, checkpoints.random_weights(np.random.default_rng(1), SHAPE), version=0)
    return Transformer(str(path))


@pytest.fixture
def tokens(rng):
    return rng.integers(0, SHAPE.vocab_size, SHAPE.context).tolist()


def alone(model: Transformer, tokens: list[int]) -> np.ndarray:
    return Session(model).prefill(tokens)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 128, 200])
def test_a_fork_goes_on_alone(model, tokens, rng, count):
    """Both write behind the fork, in either order, and each is what it would be without the other."""
    session = Session(model, pool=Pool(model))
    session.prefill(tokens[:count])
    forks = [session.fork() for _ in range(3)]
    for number, fork in enumerate(rng.permutation([session, *forks])):
        own = [number, *tokens[count : count + 70]]
        assert np.array_equal(fork.prefill(own), alone(model, tokens[:count] + own)), number
        for token in (5, 6):
            fork.step(token)
    for fork in forks:
        fork.rewind(count)
        assert np.array_equal(fork.prefill([9]), alone(model, [*tokens[:count], 9]))


def test_pages_are_shared_until_written(model, tokens):
    pool = Pool(model)
    size = pool.page_positions
    session = Session(model, pool=pool)
    assert pool.used == 0
    session.prefill(tokens[: 2 * size + 1])
    assert (pool.used, pool.shared) == (3, 0)
    forks = [session.fork(), session.fork(2 * size), session.fork(5), session.fork(0)]
    assert (pool.used, pool.shared) == (3, 3)
    forks[0].step(1)  # copies the last page
    assert (pool.used, pool.shared) == (4, 2)
    forks[1].step(1)  # begins a page
    assert (pool.used, pool.shared) == (5, 2)
    session.step(1)  # alone on its last page by now
    assert (pool.used, pool.shared) == (5, 2)
    session.rewind(size)
    assert (pool.used, pool.shared) == (4, 2)
    session.rewind(size - 1)
    expected = alone(model, [*tokens[: size - 1], 7])
    assert np.array_equal(session.prefill([7]), expected)  # into a page that forks hold
    assert (pool.used, pool.shared) == (5, 2)
    assert np.array_equal(forks[2].prefill([7]), alone(model, [*tokens[:5], 7]))
    forks[0].rewind(2 * size)
    assert np.array_equal(forks[0].prefill([8]), alone(model, [*tokens[: 2 * size], 8]))
    del session, forks
    assert (pool.used, pool.shared) == (0, 0)


def test_forks_of_forks_in_one_step(model, tokens):
    batch = Batch(model, rows=8)
    session = Session(model)
    session.prefill(tokens[:100])
    others = [session.fork(), session.fork(90), session.fork().fork(70)]
    logits = batch.step([(s, [3], ROLE_PROMPT, False) for s in (session, *others)])
    for row, count in zip(logits, (100, 100, 90, 70), strict=True):
        assert np.array_equal(row, alone(model, [*tokens[:count], 3]))
    assert others[2].context == SHAPE.context


def test_a_fork_outlives_what_it_was_forked_from(model, tokens):
    session = Session(model, context=300)
    session.prefill(tokens[:100])
    fork = session.fork(80)
    del session
    assert np.array_equal(fork.prefill(tokens[80:290]), alone(model, tokens[:290]))
    with pytest.raises(ContextError):
        fork.prefill([1] * 11)


def test_fork_refuses(model):
    session = Session(model)
    session.prefill([1, 2, 3])
    for position in (-1, 4):
        with pytest.raises(ValueError, match=f"position {position}, expected 0 to 3"):
            session.fork(position)
    with pytest.raises(TypeError, match="fork"):
        Session(model, fork=session)
    with pytest.raises(ValueError, match="another transformer"):
        Session(model, pool=Pool(Transformer(model.path)))


def test_a_full_pool_changes_nothing(model, tokens):
    """A step that needs more pages than there are fails whole, and is as good as never begun."""
    pool = Pool(model, pages=5)
    size = pool.page_positions
    batch = Batch(model, rows=4 * size)
    a, b, c = (Session(model, pool=pool) for _ in range(3))
    a.prefill(tokens[: 2 * size])
    b.prefill(tokens[:10])
    fork = a.fork(size + 1)
    spans = [(a, [1], ROLE_PROMPT, False), (b, [1], ROLE_PROMPT, False), (c, [1] * 100, ROLE_PROMPT, False)]
    with pytest.raises(ExhaustedError, match="all 5 pages"):
        batch.step(spans)
    assert (a.position, b.position, c.position, pool.used) == (2 * size, 10, 0, 3)
    with pytest.raises(MemoryError):
        c.prefill(tokens[: 2 * size + 1])
    assert c.position == 0
    c.prefill(tokens[: 2 * size])
    assert pool.used == 5
    with pytest.raises(ExhaustedError):  # no page to copy to
        fork.step(1)
    assert np.array_equal(b.prefill([1]), alone(model, [*tokens[:10], 1]))  # needs none
    c.rewind(0)
    assert np.array_equal(fork.prefill([1]), alone(model, [*tokens[: size + 1], 1]))
    assert np.array_equal(a.prefill([1]), alone(model, [*tokens[: 2 * size], 1]))


def test_a_failed_step_gives_its_pages_back(model):
    pool = Pool(model)
    session = Session(model, pool=pool)
    with pytest.raises(ValueError, match="token 99"):
        session.prefill([1] * 99 + [-1])
    session.cancel()
    with pytest.raises(CancelledError):
        session.prefill([1] * 100)
    assert pool.used == 0
    session.prefill([1] * 100)
    session.rewind(64)
    assert pool.used == 1


def test_pages_come_back(model, rng, tokens):
    """Sessions come and go in a pool that is just large enough; what they hold was others' before."""
    pool = Pool(model, pages=12)
    expected = {n: alone(model, tokens[:n]) for n in (3, 64, 100, 190)}
    for _ in range(60):
        sessions = [Session(model, pool=pool) for _ in range(4)]
        for session in sessions:
            n = int(rng.choice(list(expected)))
            assert np.array_equal(session.prefill(tokens[:n]), expected[n])
    del session, sessions
    assert pool.used == 0


def test_threads_share_a_pool(model, tokens):
    pool = Pool(model)
    root = Session(model, pool=pool)
    root.prefill(tokens[:100])
    forks = [root.fork() for _ in range(8)]
    expected = [alone(model, [*tokens[:100], i, 1]) for i in range(8)]
    wrong = []

    def run(i: int) -> None:
        for _ in range(30):
            forks[i].prefill([i])
            again = forks[i].fork()
            if not np.array_equal(again.prefill([1]), expected[i]):
                wrong.append(i)
            forks[i].rewind(100)
            if not np.array_equal(Session(model, pool=pool).prefill(tokens[:70]), first):
                wrong.append(-1)

    first = alone(model, tokens[:70])
    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    forks.clear()
    root.rewind(0)
    assert (pool.used, pool.shared) == (0, 0)


FORK = """
import os, sys, threading
import numpy as np
from llama2c import Pool, Session, Transformer

model = Transformer(sys.argv[1])
pool = Pool(model)
stop = threading.Event()

def churn():  # takes and gives back pages all the time, also when the process forks
    while not stop.is_set():
        Session(model, pool=pool).prefill([1] * 3)

threads = [threading.Thread(target=churn) for _ in range(2)]
for thread in threads:
    thread.start()
session = Session(model, pool=pool)
session.prefill([1] * 70)
expected = Session(model).prefill([1] * 200)
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        code = 0 if np.array_equal(session.fork().prefill([1] * 130), expected) else 3
        os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
session.step(1)
sys.exit(max(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_its_own_pages(model):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, model.path], timeout=120, check=False)
    assert done.returncode == 0


def test_step_sample(model, tokens, rng):
    """As step_sample of each session alone, for any mix of spans that are sampled and spans that are not."""
    batch = Batch(model, rows=200, threads=2)
    prompts = [tokens[:5], tokens[5:70], tokens[70:100]]
    expected = []
    for i, prompt in enumerate(prompts):
        session, sampler = Session(model), Sampler(SHAPE.vocab_size, seed=i + 1)
        ids = [sampler.sample(session.prefill(prompt))]
        for _ in range(8):
            ids.append(session.step_sample(ids[-1], sampler))
        expected.append(ids)
    sessions = [Session(model, pool=Pool(model)) for _ in prompts]
    samplers = [Sampler(SHAPE.vocab_size, seed=i + 1) for i in range(3)]
    first = batch.step_sample([(s, p[:3], ROLE_PROMPT) for s, p in zip(sessions, prompts, strict=True)], [None] * 3)
    assert first == [None] * 3
    out: list[int | None] = []
    spans = [(s, p[3:], ROLE_PROMPT) for s, p in zip(sessions, prompts, strict=True)]
    assert batch.step_sample(spans, samplers, out=out) is out
    got = [[token] for token in out]
    for _ in range(8):
        chosen = [0, 2, 1] if rng.random() < 0.5 else [1]
        for j in (chosen, [j for j in range(3) if j not in chosen]):
            if j:
                spans = [(sessions[i], [got[i][-1]], ROLE_GENERATED) for i in j]
                made = batch.step_sample(spans, [samplers[i] for i in j])
                for i, token in zip(j, made, strict=True):
                    got[i].append(token)
    assert got == expected


def test_step_sample_refuses(model):
    batch, session = Batch(model, rows=4), Session(model)
    sampler = Sampler(SHAPE.vocab_size, seed=1)
    span = (session, [1], ROLE_PROMPT)
    with pytest.raises(ValueError, match="2 samplers for 1 spans"):
        batch.step_sample([span], [None, None])
    with pytest.raises(TypeError, match="Sampler or None"):
        batch.step_sample([span], [1])
    with pytest.raises(ValueError, match="of 5 tokens"):
        batch.step_sample([span], [Sampler(5)])
    with pytest.raises(ValueError, match="out has 1"):
        batch.step_sample([span], [sampler], out=[1])
    with pytest.raises(RuntimeError, match="sampler is in use"):
        batch.step_sample([span, (Session(model), [1], ROLE_PROMPT)], [sampler, sampler])
    state = sampler.state
    with pytest.raises(ValueError, match="token 0"):
        batch.step_sample([(session, [-1], ROLE_PROMPT)], [sampler])
    assert (session.position, sampler.state) == (0, state)
    batch.step_sample([span], [sampler])
    assert session.position == 1
