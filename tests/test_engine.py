"""An engine's sequences give what each gives alone, whatever runs beside them; all end, and all memory comes back."""

import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import checkpoints
import ggufs
import numpy as np
import pytest
from oracle import TILES, WORDS, Shape

import llama2c
from llama2c import Engine, ExhaustedError, Generation, Llama, Piece, Tokenizer
from llama2c.prefixes import page_keys

VOCAB = 300
SHAPE = Shape(256, 256, 2, 4, 2, VOCAB, 320, tied=False)
PAGE = 64
NAN = 299  # a token that makes the logits of one of the models NaN
MIXES = int(os.environ.get("LLAMA2C_MIXES", "40"))


def make_tokenizer() -> Tokenizer:
    pieces = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(b"<0x%02X>" % i for i in range(256)),
        *(b" w%d" % i for i in range(VOCAB - 259)),
    ]
    types = [2, 3, 3, *[6] * 256, *[1] * (VOCAB - 259)]
    return Tokenizer.from_table(pieces, np.arange(VOCAB), types, unk=0, bos=1, eos=2)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    """A small model for each numeric path, with weights that make texts vary."""
    folder, rng, found = tmp_path_factory.mktemp("models"), np.random.default_rng(1), {}
    weights = checkpoints.random_weights(rng, SHAPE)
    for name in ("F32", "Q8_0", "Q4_K_M", "BF16", "NaN"):
        found[name] = folder / name
        if name in ("F32", "NaN"):
            if name == "NaN":
                weights["token_embd"][NAN] = np.nan
            checkpoints.write(found[name], SHAPE, weights, version=0)
        else:
            tensors = ggufs.random_tensors(rng, SHAPE, name.removesuffix("_M"))
            if name == "Q4_K_M":  # a mixture, as its files are
                finer = ggufs.random_tensors(rng, SHAPE, "Q6_K")
                tensors |= {t: finer[t] for t in finer if t.split(".")[-2] in ("attn_v", "ffn_down", "output")}
            ggufs.write(found[name], SHAPE, tensors)
    return found


@pytest.fixture
def llm(paths) -> Llama:
    return llama2c.load(paths["F32"], tokenizer=make_tokenizer(), threads=2)


def ids_of(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(3, NAN, count).tolist()


def settings_of(rng: np.random.Generator) -> dict:
    return {
        "max_tokens": int(rng.integers(0, 25)),
        "temperature": float(rng.choice([0.0, 0.7, 1.0])),
        "top_p": float(rng.choice([0.0, 0.5, 0.9])),
        "seed": int(rng.integers(1, 1000)),
        "stop": [" w7", "w1"] if rng.random() < 0.3 else (),
        "ignore_eos": bool(rng.random() < 0.5),
    }


def same(got: Generation, expected: Generation) -> bool:
    return (got.tokens, got.text, got.finish_reason, got.prompt_tokens, got.seed) == (
        expected.tokens,
        expected.text,
        expected.finish_reason,
        expected.prompt_tokens,
        expected.seed,
    )


def pages_of(ids: list[int], max_tokens: int) -> int:
    return math.ceil(min(SHAPE.context, len(ids) + max(max_tokens, 1) - 1) / PAGE)


def run_mix(path: Path, rng: np.random.Generator) -> None:
    llm = llama2c.load(path, tokenizer=make_tokenizer(), threads=int(rng.integers(1, 5)))
    bases = [ids_of(rng, 200) for _ in range(2)]
    work = []
    for _ in range(int(rng.integers(2, 11))):
        base = bases[rng.integers(2)]
        shared = int(rng.choice([0, 63, 64, 65, 128, 130, 192]))
        prompt = base[:shared] + ids_of(rng, int(rng.choice([0, 1, 5, 64, 90])))
        work.append((prompt or [1], settings_of(rng)))
    expected = [llm.generate(prompt, **settings) for prompt, settings in work]
    need = max(pages_of(prompt, settings["max_tokens"]) for prompt, settings in work)
    chunk = int(rng.choice([1, 7, 64, 100, 256]))
    page_bytes = llama2c.Pool(llm.transformer).page_bytes
    with Engine(
        llm,
        max_rows=chunk + int(rng.integers(1, 7)),
        chunk=chunk,
        kv_bytes=None if rng.random() < 0.2 else page_bytes * (need + int(rng.integers(0, 8))),
        prefix_cache=bool(rng.random() < 0.8),
    ) as engine:
        sequences, order = [None] * len(work), rng.permutation(len(work)).tolist()
        while order or engine.pending:
            while order and rng.random() < 0.3:
                i = order.pop()
                sequences[i] = engine.submit(work[i][0], **work[i][1])
            if rng.random() < 0.03:
                sequence = sequences[rng.integers(len(work))]
                if sequence is not None:
                    sequence.cancel()
            engine.step()
        for sequence, alone in zip(sequences, expected, strict=True):
            got = sequence.result()
            if got.finish_reason == "cancelled":
                assert got.tokens == alone.tokens[: len(got.tokens)]
                assert alone.text.startswith(got.text.rstrip("\ufffd"))  # half a character at the end
            else:
                assert same(got, alone), (got, alone)
        stats = engine.stats()
        # a page that two computed at once may be held twice
        assert (stats.waiting, stats.running) == (0, 0) and stats.pages_used >= stats.pages_cached
        pool = engine._pool
    assert (pool.used, pool.shared) == (0, 0)


@pytest.mark.parametrize("name", ["F32", "Q8_0", "Q4_K_M", "BF16"])
def test_random_mixes(paths, rng, name):
    """LLAMA2C_MIXES: how many; whatever the companions, order, cuts, threads, memory, cancellations, kept prefixes."""
    for _ in range(max(1, MIXES // 4)):
        run_mix(paths[name], rng)


def test_a_list_of_prompts(llm):
    prompts = ["one", "two and three", "", "one"]
    for seed in (7, [1, 2, 3, 4]):
        results = llm.generate(prompts, max_tokens=12, seed=seed)
        for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
            own = seed if isinstance(seed, int) else seed[i]
            assert same(result, llm.generate(prompt, max_tokens=12, seed=own))
    ids = [[1, 5, 9], [1, 200]]
    assert [r.prompt_tokens for r in llm.generate(ids, max_tokens=3)] == ids
    assert len({r.seed for r in llm.generate(prompts, max_tokens=1)}) == 4  # random ones differ
    assert llm.generate([]) == []
    assert same(
        llama2c.generate(["one"], model=llm, max_tokens=4, seed=1)[0], llm.generate("one", max_tokens=4, seed=1)
    )
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        llm.generate(["one"], seed=[1, 2])
    with pytest.raises(TypeError, match="list of seeds for one prompt"):
        llm.generate("one", seed=[1])
    with pytest.raises(ValueError, match="no tokens"):
        llm.generate([[1], []])
    with pytest.raises(llama2c.ContextError, match="321 tokens"):
        llm.generate([[1], [1] * 321])


def test_pieces_join_to_the_text(llm):
    seen: list[tuple] = []
    with Engine(llm) as engine:
        made = [
            engine.submit(f"{i}", max_tokens=20, seed=i + 1, on_piece=lambda *item: seen.append(item)) for i in range(5)
        ]
        streamed = list(engine.stream())
    assert streamed == seen
    for i, sequence in enumerate(made):
        pieces = [piece for owner, piece in streamed if owner is sequence]
        expected = list(llm.stream(f"{i}", max_tokens=20, seed=i + 1))
        assert pieces == expected
        assert sequence.text == "".join(piece.text for piece in pieces) and sequence.status == "finished"


class Spy:
    """Stands before an engine's batch and notes who had rows in each step."""

    def __init__(self, engine: Engine) -> None:
        self.batch, self.engine = engine._batch, engine
        self.steps: list[list] = []
        engine._batch = self

    def step_sample(self, spans, samplers, *, out):
        by_session = {sequence._session: sequence for sequence in self.engine._scheduler.running}
        self.steps.append([(by_session[session], len(ids), role) for session, ids, role in spans])
        return self.batch.step_sample(spans, samplers, out=out)


@pytest.mark.parametrize(("chunk", "at_once"), [(1, 5), (4, 6), (16, 3), (64, 10)])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_nobody_starves(llm, rng, chunk, at_once, prefix_cache):
    """A row at least every ceil(running / chunk) steps, a generated one in every step; admission in order."""
    with Engine(llm, max_rows=chunk + at_once, chunk=chunk, prefix_cache=prefix_cache) as engine:
        spy = Spy(engine)
        made = [
            engine.submit(ids_of(rng, int(rng.integers(1, 150))), max_tokens=int(rng.integers(1, 20)), ignore_eos=True)
            for _ in range(20)
        ]
        missed: dict = {}
        seen: list = []
        while engine.pending:
            before = {sequence: len(sequence.tokens) for sequence in engine._scheduler.running}
            engine.step()
            served = {sequence: (count, role) for sequence, count, role in spy.steps[-1]}
            assert len(served) <= at_once
            assert sum(count for count, role in served.values() if role == llama2c.ROLE_PROMPT) <= chunk
            for sequence, tokens in before.items():
                if tokens:  # past its prompt
                    assert sequence in served
                missed[sequence] = 0 if sequence in served else missed.get(sequence, 0) + 1
                assert missed[sequence] < math.ceil(at_once / chunk)
            seen += [sequence for sequence in engine._scheduler.running if sequence not in seen]
        assert [s for s in made if s in seen] == seen


def test_a_prompt_is_computed_once(llm, rng):
    """Submitted together or one after another, sequences of one prompt compute its whole pages once."""
    prompt = ids_of(rng, 2 * PAGE + 10)
    expected = [llm.generate(prompt, max_tokens=8, seed=seed) for seed in range(1, 7)]
    with Engine(llm) as engine:
        made = [engine.submit(prompt, max_tokens=8, seed=seed) for seed in range(1, 5)]
        engine.run()
        stats = engine.stats()
        assert (stats.prompt_tokens, stats.reused_prompt_tokens) == (2 * PAGE + 4 * 10, 3 * 2 * PAGE)
        assert (stats.pages_used, stats.pages_cached) == (2, 2)
        made += [engine.submit(prompt, max_tokens=8, seed=seed) for seed in (5, 6)]
        engine.step()
        assert engine.stats().pages_shared == 2
        engine.run()
        assert engine.stats().prompt_tokens == 2 * PAGE + 6 * 10
        for sequence, alone in zip(made, expected, strict=True):
            assert same(sequence.result(), alone)
        exact = prompt[: 2 * PAGE]  # its last row is computed for its logits
        assert same(engine.submit(exact, max_tokens=3, seed=1).result(), llm.generate(exact, max_tokens=3, seed=1))
        assert engine.stats().prompt_tokens == 3 * PAGE + 6 * 10


def test_generated_pages_are_not_reused(llm, rng):
    """What was generated has other bits than the same tokens as a prompt: only prompts' pages are taken over."""
    prompt = ids_of(rng, 30)
    with Engine(llm) as engine:
        first = engine.submit(prompt, max_tokens=100, seed=1, ignore_eos=True).result()
        longer = prompt + first.tokens + [5]
        assert same(engine.submit(longer, max_tokens=5, seed=2).result(), llm.generate(longer, max_tokens=5, seed=2))
        assert engine.stats().reused_prompt_tokens == 0


def test_less_memory_than_wanted(llm, rng):
    """All finish in a pool that holds one or two of them, and prefixes that are kept are in nobody's way."""
    page_bytes = llama2c.Pool(llm.transformer).page_bytes
    work = [(ids_of(rng, int(rng.integers(1, 200))), int(rng.integers(1, 60))) for _ in range(30)]
    expected = [llm.generate(ids, max_tokens=count, seed=9) for ids, count in work]
    with Engine(llm, kv_bytes=5 * page_bytes + 1) as engine:
        made = [engine.submit(ids, max_tokens=count, seed=9) for ids, count in work]
        while engine.pending:
            engine.step()
            stats = engine.stats()
            assert stats.pages_used + stats.pages_free == 5 and stats.pages_cached <= stats.pages_used
        assert all(same(a.result(), b) for a, b in zip(made, expected, strict=True))
        with pytest.raises(ExhaustedError, match=f"but the engine has {4 * page_bytes}") as caught:
            Engine(llm, kv_bytes=4 * page_bytes, chunk=8, max_rows=9).submit([1] * 300, max_tokens=100)
        assert isinstance(caught.value, MemoryError)
        engine.submit([1] * 300, max_tokens=20)


def test_cancelling_frees_the_pages(llm, rng):
    with Engine(llm, prefix_cache=False, max_rows=19, chunk=16) as engine:
        a, b, c = (engine.submit(ids_of(rng, 100), max_tokens=200, ignore_eos=True) for _ in range(3))
        waiting = [engine.submit([1], max_tokens=5) for _ in range(3)]
        for _ in range(30):
            engine.step()
        assert (a.status, waiting[2].status) == ("running", "waiting")
        used = engine.stats().pages_used
        a.cancel()  # no step is running: at once
        assert a.status == "finished" and engine.stats().pages_used < used
        text = a.result()
        assert text.finish_reason == "cancelled" and len(text.tokens) > 0
        waiting[2].cancel()
        assert waiting[2].result().tokens == []
        pieces = engine.step()
        assert {(s, p.finish_reason) for s, p in pieces if p.finish_reason} == {
            (a, "cancelled"),
            (waiting[2], "cancelled"),
        }
        for sequence in (b, c):
            sequence.cancel()
            sequence.cancel()
        engine.run()
        assert engine.stats().pages_used == 0
        assert [s.finish_reason == "cancelled" for s in waiting] == [False, False, True]


def test_cancelled_by_its_own_callback(llm):
    def third(sequence: llama2c.Sequence, piece: Piece) -> None:
        if len(sequence.tokens) == 3:
            sequence.cancel()

    with Engine(llm) as engine:
        sequence = engine.submit("a", max_tokens=50, ignore_eos=True, on_piece=third)
        other = engine.submit("b", max_tokens=50, ignore_eos=True, seed=1)
        engine.run()
        assert (sequence.finish_reason, len(sequence.tokens)) == ("cancelled", 3)
        assert same(other.result(), llm.generate("b", max_tokens=50, ignore_eos=True, seed=1))


def test_errors_are_of_one_sequence(paths):
    """NaN logits and callbacks that raise end their own sequence; a recycled page with NaN in it harms nobody."""
    llm = llama2c.load(paths["NaN"], tokenizer=make_tokenizer(), threads=2)
    expected = llm.generate("b", max_tokens=50, seed=1)

    def fail(sequence: llama2c.Sequence, piece: Piece) -> None:
        if len(sequence.tokens) == 2:
            raise ZeroDivisionError("in a callback")

    def step_again(sequence: llama2c.Sequence, piece: Piece) -> None:
        engine.step()

    with Engine(llm, kv_bytes=6 * llama2c.Pool(llm.transformer).page_bytes, prefix_cache=False) as engine:
        for temperature in (0.0, 1.0):
            bad = engine.submit([1, NAN] * 40, max_tokens=9, temperature=temperature)
            raising = engine.submit("a", max_tokens=50, ignore_eos=True, on_piece=fail)
            stepping = engine.submit("a", max_tokens=50, on_piece=step_again)
            good = [engine.submit("b", max_tokens=50, seed=1) for _ in range(4)]
            engine.run()
            assert [bad.finish_reason, raising.finish_reason] == ["error", "error"]
            with pytest.raises(ValueError, match="no distribution"):
                bad.result()
            with pytest.raises(ZeroDivisionError):
                raising.result()
            assert len(raising.tokens) == 2
            assert isinstance(stepping.exception, llama2c.BusyError)
            assert all(same(sequence.result(), expected) for sequence in good)
        assert engine.stats().pages_used == 0


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": float("inf")}, {"stop": ""}],
)
def test_bad_settings(llm, options):
    with Engine(llm) as engine:
        with pytest.raises(ValueError, match=next(iter(options))):
            engine.submit("a", **options)
        assert not engine.pending


def test_refusals(llm):
    for bad in ({"chunk": 0}, {"chunk": 10, "max_rows": 10}, {"kv_bytes": 5}, {"kv_bytes": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Engine(llm, **bad)
    engine = Engine(llm)
    with pytest.raises(ValueError, match="token 1 is 300"):
        engine.submit([1, 300])
    with pytest.raises(llama2c.ContextError):
        engine.submit([1] * 321)
    left = engine.submit("a")
    engine.close()
    engine.close()
    assert left.finish_reason == "cancelled" and "closed" in repr(engine)
    with pytest.raises(ValueError, match="closed"):
        engine.submit("a")
    assert engine.step() == [] and engine.stats().pages_used == 0


def test_the_model_may_be_closed(paths):
    llm = llama2c.load(paths["F32"], tokenizer=make_tokenizer())
    expected = llm.generate("a", max_tokens=5, seed=1)
    with Engine(llm) as engine:
        llm.close()
        assert same(engine.submit("a", max_tokens=5, seed=1).result(), expected)


def test_page_keys(rng):
    ids = ids_of(rng, 200)
    keys = page_keys(ids, PAGE)
    assert len(keys) == 3 and len(set(keys)) == 3
    assert page_keys(ids[:128], PAGE) == keys[:2]
    other = [ids[0] + 1, *ids[1:]]
    assert not set(page_keys(other, PAGE)) & set(keys)  # of all tokens before, not only of the page


def test_threads_submit_and_wait(llm):
    """Sixteen threads submit, some cancel; whoever waits for a result makes the steps that nobody else makes."""
    expected = [llm.generate(f"Story {i}", max_tokens=30, seed=i + 1) for i in range(16)]
    wrong: list = []
    with Engine(llm, max_rows=12, chunk=8) as engine:

        def run(i: int) -> None:
            for _ in range(4):
                other = engine.submit(f"Other {i}", max_tokens=100)
                sequence = engine.submit(f"Story {i}", max_tokens=30, seed=i + 1)
                if i % 3:
                    other.cancel()
                if not same(sequence.result(), expected[i]):
                    wrong.append(i)
                other.result()

        threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive()
        assert not wrong and not engine.pending


def test_one_drives_while_others_submit(llm):
    expected = [llm.generate(f"Story {i}", max_tokens=30, seed=i + 1) for i in range(6)]
    done = threading.Event()
    with Engine(llm) as engine:

        def drive() -> None:
            while not done.is_set():
                engine.step()

        driver = threading.Thread(target=drive)
        driver.start()
        made = [engine.submit(f"Story {i}", max_tokens=30, seed=i + 1) for i in range(6)]
        assert all(same(sequence.result(), alone) for sequence, alone in zip(made, expected, strict=True))
        done.set()
        driver.join(60)
        assert not driver.is_alive()


INTERRUPT = """
import signal, sys
import llama2c, test_engine

llm = llama2c.load(sys.argv[1], tokenizer=test_engine.make_tokenizer(), threads=2)
prompts = [[5 + i] * (60 + 40 * i) for i in range(6)]
expected = [llm.generate(p, max_tokens=40, seed=i + 1) for i, p in enumerate(prompts)]
interrupts = 0
for round in range(8):
    before = interrupts
    engine = llama2c.Engine(llm, max_rows=12, chunk=8)
    made = [engine.submit(p, max_tokens=40, seed=i + 1) for i, p in enumerate(prompts)]
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    quiet = False
    while not quiet:
        try:
            while engine.pending:
                signal.setitimer(signal.ITIMER_REAL, 0.0007 * (1 + interrupts % 5))
                engine.run()
            signal.setitimer(signal.ITIMER_REAL, 0)  # or it comes when the next round begins
            signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the last one may still be on its way
            quiet = True
        except KeyboardInterrupt:
            interrupts += 1
    for sequence, alone in zip(made, expected):
        if sequence.finish_reason == "error":
            assert isinstance(sequence.exception, KeyboardInterrupt), sequence.exception
        else:
            assert test_engine.same(sequence.result(), alone), (sequence.result(), alone)
    assert sum(s.finish_reason == "error" for s in made) <= interrupts - before
    stats = engine.stats()
    assert stats.pages_used <= stats.pages_cached, stats
    engine.close()
    assert engine.stats().pages_used == 0, engine.stats()
assert interrupts >= 8, interrupts
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs interval timers")
def test_interrupts(paths):
    """Ctrl-C at any moment of a step: the next step goes on, and at most the sequence just served is lost."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", INTERRUPT, str(paths["F32"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.stdout == "done\n", done.stderr


FORK = """
import os, sys
import llama2c, test_engine

llm = llama2c.load(sys.argv[1], tokenizer=test_engine.make_tokenizer(), threads=2)
engine = llama2c.Engine(llm)
sequence = engine.submit("a", max_tokens=20, seed=1)
engine.step()
child = os.fork()
if child == 0:
    try:
        engine.step()
    except RuntimeError:
        engine.close()
        same = test_engine.same(llm.generate(["a"], max_tokens=20, seed=1)[0], llm.generate("a", max_tokens=20, seed=1))
        os._exit(0 if same else 3)
    os._exit(4)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert test_engine.same(sequence.result(), llm.generate("a", max_tokens=20, seed=1))
sys.exit(code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_makes_its_own(paths):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(paths["F32"])]
    assert subprocess.run(command, timeout=120, check=False, env=environment).returncode == 0


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_thousand_sequences(tmp_path, rng):
    """Random cancellations and errors: every sequence ends with a reason, no page is lost, and memory is flat."""
    shape = Shape(32, 32, 1, 2, 1, VOCAB, 256, tied=False)
    weights = checkpoints.random_weights(rng, shape)
    weights["token_embd"][NAN] = np.nan
    checkpoints.write(tmp_path / "model", shape, weights, version=0)
    llm = llama2c.load(tmp_path / "model", tokenizer=make_tokenizer(), threads=1)
    bases = [ids_of(rng, 200) for _ in range(20)]
    reasons: dict[str | None, int] = {}
    resident = []

    def fail(sequence: llama2c.Sequence, piece: Piece) -> None:
        raise OSError("in a callback")

    with Engine(llm, max_rows=80, chunk=64, kv_bytes=40 * llama2c.Pool(llm.transformer).page_bytes) as engine:
        alive: list[llama2c.Sequence] = []
        submitted = 0
        while submitted < 10_000 or engine.pending:
            while submitted < 10_000 and len(alive) < 40:
                prompt = bases[rng.integers(20)][: rng.integers(1, 150)] + ids_of(rng, int(rng.integers(0, 9)))
                kind = rng.random()
                alive.append(
                    engine.submit(
                        [*prompt, NAN] if kind < 0.05 else prompt,
                        max_tokens=int(rng.integers(0, 12)),
                        seed=1,
                        on_piece=fail if 0.05 <= kind < 0.1 else None,
                    )
                )
                submitted += 1
                if submitted in (3_000, 10_000) and Path("/proc/self/statm").exists():
                    resident.append(resident_bytes())
            if rng.random() < 0.2:
                alive[rng.integers(len(alive))].cancel()
            engine.step()
            for sequence in alive:
                if sequence.status == "finished":
                    reasons[sequence.finish_reason] = reasons.get(sequence.finish_reason, 0) + 1
            alive = [sequence for sequence in alive if sequence.status != "finished"]
        stats = engine.stats()
        # a page that two computed at once may be held twice
        assert (stats.waiting, stats.running) == (0, 0) and stats.pages_used >= stats.pages_cached
        pool = engine._pool
    assert sum(reasons.values()) == 10_000 and set(reasons) == {"stop", "length", "cancelled", "error"}, reasons
    assert (pool.used, pool.shared) == (0, 0)
    assert not resident or resident[1] - resident[0] < 4 << 20, resident


def test_throughput_is_another_product(paths, isa):
    """Float weights, or tiles: many generated rows go as prompts. Integers without tiles: prompts go by bytes."""
    for name in ("F32", "Q8_0"):
        llm = llama2c.load(paths[name], tokenizer=make_tokenizer(), threads=2, isa=isa)
        rng = np.random.default_rng(5)
        count = 20 if name == "F32" else 52
        prompts = [ids_of(rng, 4) for _ in range(count)]  # one step takes all of them
        settings = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "seed": 1}
        exact = llm.generate(prompts, **settings)
        fast = llm.generate(prompts, throughput=True, **settings)
        few = llm.generate(prompts[: count - 5], throughput=True, **settings)
        if name == "F32" or isa in TILES:
            assert [r.tokens[:1] for r in fast] == [r.tokens[:1] for r in exact]  # of prompt rows in both
            for result in fast:  # every generated row was a prompt row: greedy ids are those of the prompt's own logits
                logits = llm.logits(result.prompt_tokens + result.tokens[:-1])
                assert logits[len(result.prompt_tokens) - 1 :].argmax(axis=1).tolist() == result.tokens
            assert all(same(a, b) for a, b in zip(few, exact, strict=False))
            continue
        assert all(same(a, b) for a, b in zip(few, fast, strict=False))  # in any company
        if isa not in WORDS:
            assert all(same(a, b) for a, b in zip(fast, exact, strict=True))
        for result in fast:
            session = llama2c.Session(llm.transformer)
            rows = [session.step(token) for token in result.prompt_tokens + result.tokens[:-1]]
            assert [int(row.argmax()) for row in rows[len(result.prompt_tokens) - 1 :]] == result.tokens


def test_a_batch_of_throughput_takes_prompts_as_bytes(paths, isa):
    """Bit for bit as generated rows, which a prompt of 16 bits is not. Tiles take prompts as ever."""
    transformer = llama2c.load(paths["Q4_K_M"], tokenizer=make_tokenizer(), isa=isa).transformer
    ids = ids_of(np.random.default_rng(3), 21)
    session = llama2c.Session(transformer)
    generated = np.stack([session.step(token) for token in ids])
    work = llama2c.Batch(transformer, rows=21, threads=2, throughput=True)
    got = work.step([(llama2c.Session(transformer), ids, llama2c.ROLE_PROMPT, True)])
    exact = llama2c.Session(transformer).prefill_all(ids)
    assert np.array_equal(got, exact if isa in TILES else generated)
    assert np.array_equal(exact, generated) == (isa not in (*TILES, *WORDS))
