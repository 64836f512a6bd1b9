"""A row's logits are the same bits whatever the threads, the companions in the batch, and the cut of the prompt."""

import checkpoints
import ggufs
import numpy as np
import pytest
from oracle import Shape

from llama2c import ROLE_GENERATED, ROLE_PROMPT, Batch, Session, Transformer

SHAPE = Shape(256, 768, 6, 8, 2, 2000, 700)  # 4.9M weights: work for four threads in every step


@pytest.fixture(params=[0, 2, "Q4_K", "Q8_0"])
def transformer(request, tmp_path, rng, isa):
    """llama2.c's versions 0 (f32) and 2 (int8 groups), and GGUF's types by their numeric paths."""
    path = tmp_path / "model"
    if isinstance(request.param, str):
        ggufs.write(path, SHAPE, ggufs.random_tensors(rng, SHAPE, request.param))
    else:
        checkpoints.write(path, SHAPE, checkpoints.random_weights(rng, SHAPE), version=request.param)
    return Transformer(str(path), isa=isa)


@pytest.fixture
def tokens(rng, isa):
    """More than one chunk of attention, where that does not take minutes."""
    return rng.integers(0, SHAPE.vocab_size, 24 if isa == "scalar" else 300).tolist()


def generated(transformer: Transformer, tokens: list[int], threads: int) -> np.ndarray:
    session = Session(transformer, threads=threads)
    session.prefill(tokens[:-10])
    return np.stack([session.step(token) for token in tokens[-10:]])


@pytest.mark.slow
def test_prompt_rows(transformer, tokens):
    first = Session(transformer, threads=1, chunk=300).prefill_all(tokens)
    for threads in (2, 3, 4):
        assert np.array_equal(Session(transformer, threads=threads, chunk=300).prefill_all(tokens), first), threads
    for chunk in (1, 7, 64):
        session = Session(transformer, threads=2, chunk=chunk)
        assert np.array_equal(session.prefill_all(tokens), first), chunk
        session.rewind(10)  # and cut where it pleases
        assert np.array_equal(session.prefill_all(tokens[10:]), first[10:])


def test_generated_rows_and_threads(transformer, tokens):
    first = generated(transformer, tokens, 1)
    for threads in (2, 3, 4):
        assert np.array_equal(generated(transformer, tokens, threads), first), threads


def test_generated_rows_beside_others(transformer, rng):
    batch = Batch(transformer, rows=64, threads=2)
    tokens = rng.integers(0, SHAPE.vocab_size, (8, 12)).tolist()
    alone = []
    for ids in tokens:
        session = Session(transformer)
        session.prefill(ids[:5])
        alone.append([session.step(token) for token in ids[5:]])
    sessions = [Session(transformer) for _ in tokens]
    for session, ids in zip(sessions, tokens, strict=True):
        session.prefill(ids[:5])
    for i in range(5, 12):
        # other numbers of companions in every step, and once a prompt among them
        present = range(8) if i % 2 else range(0, 8, 3)
        spans = [(sessions[j], [tokens[j][i]], ROLE_GENERATED, False) for j in present]
        if i == 7:
            spans.insert(0, (Session(transformer), tokens[0][:9], ROLE_PROMPT, True))
        logits = batch.step(spans)[9 if i == 7 else 0 :]
        for row, j in zip(logits, present, strict=True):
            assert np.array_equal(row, alone[j][i - 5]), (i, j)
        for j in set(range(8)) - set(present):
            sessions[j].step(tokens[j][i])


def test_random_mixes(transformer, rng):
    """Prompts and generated rows of several sessions in any mix give what each session gives alone."""
    scripts = []
    for _ in range(5):
        spans = []
        for _ in range(4):
            role = ROLE_PROMPT if rng.random() < 0.5 else ROLE_GENERATED
            count = int(rng.integers(1, 9 if role == ROLE_PROMPT else 4))
            spans.append((rng.integers(0, SHAPE.vocab_size, count).tolist(), role))
        scripts.append(spans)
    alone = []
    for spans in scripts:
        session, batch = Session(transformer), Batch(transformer, rows=32)
        alone.append([batch.step([(session, ids, role, True)]) for ids, role in spans])
    sessions, at = [Session(transformer) for _ in scripts], [0] * len(scripts)
    batch = Batch(transformer, rows=128, threads=3)
    while any(i < 4 for i in at):
        chosen = [j for j in range(5) if at[j] < 4 and rng.random() < 0.7]
        if not chosen:
            continue
        chosen.sort(key=lambda j: scripts[j][at[j]][1] != ROLE_PROMPT)
        got = batch.step([(sessions[j], *scripts[j][at[j]], True) for j in chosen])
        row = 0
        for j in chosen:
            expected = alone[j][at[j]]
            assert np.array_equal(got[row : row + len(expected)], expected), (j, at[j])
            row += len(expected)
            at[j] += 1


def test_rewound_equals_fresh(transformer, tokens):
    session = Session(transformer)
    session.prefill(tokens)
    session.rewind(7)
    fresh = Session(transformer)
    fresh.prefill(tokens[:7])
    assert np.array_equal(session.prefill_all(tokens[:10]), fresh.prefill_all(tokens[:10]))


def test_batch_refuses(transformer, rng):
    batch = Batch(transformer, rows=8)
    a, b = Session(transformer, context=16), Session(transformer, context=16)
    a.prefill([1, 2])
    with pytest.raises(ValueError, match="a prompt span after a generated one"):
        batch.step([(a, [1], ROLE_GENERATED, False), (b, [1], ROLE_PROMPT, False)])
    with pytest.raises(RuntimeError, match="twice"):
        batch.step([(a, [1], ROLE_GENERATED, False), (a, [1], ROLE_GENERATED, False)])
    with pytest.raises(ValueError, match="rows"):
        batch.step([(a, [1] * 9, ROLE_PROMPT, False)])
    with pytest.raises(ValueError, match="rows"):
        batch.step([(a, [1] * 5, ROLE_PROMPT, False), (b, [1] * 5, ROLE_PROMPT, False)])
    with pytest.raises(ValueError, match="without tokens"):
        batch.step([])
    with pytest.raises(ValueError, match="role"):
        batch.step([(a, [1], 7, False)])
    with pytest.raises(TypeError, match="Session"):
        batch.step([(None, [1], ROLE_PROMPT, False)])
    other = Transformer(transformer.path)
    with pytest.raises(ValueError, match="another transformer"):
        batch.step([(Session(other), [1], ROLE_PROMPT, False)])
    assert (a.position, b.position) == (2, 0)
    batch.step([(b, [1], ROLE_PROMPT, False), (a, [1], ROLE_GENERATED, False)])
    assert (a.position, b.position) == (3, 1)
