"""load, generate, stream: the Python layer over the real 260K model."""

import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import llama2c


@pytest.fixture(scope="module")
def llm(data_file):
    return llama2c.load(data_file("models/stories260K.bin"), threads=2)


def expected(data_file, name: str) -> str:
    return data_file(f"expected/{name}.txt").read_text().removesuffix("\n")


def test_generate_gives_llama2c_text(llm, data_file):
    result = llm.generate(max_tokens=256, temperature=0)
    assert str(result) == result.text == expected(data_file, "stories260K_greedy")
    assert (result.finish_reason, len(result.tokens), result.prompt_tokens) == ("length", 256, [1])
    sampled = llm.generate(max_tokens=256, temperature=1.0, top_p=0.9, seed=42)
    assert sampled.text == expected(data_file, "stories260K_t1_p0.9_s42")
    assert sampled.seed == 42


def test_the_prompt_is_cut(llm, data_file):
    prompt = "One day, Lily met a Shoggoth"
    taken = len(llm.tokenizer.encode(prompt))
    result = llm.generate(prompt, max_tokens=129 - taken, temperature=0.8, top_p=1.0, seed=1)
    assert prompt + result.text == expected(data_file, "stories260K_t0.8_p1.0_s1_prompt")
    ids = llm.generate(np.array(llm.tokenizer.encode(prompt)), max_tokens=5, temperature=0)
    assert ids.tokens == llm.generate(prompt, max_tokens=5, temperature=0).tokens


def test_stream_joins_to_generate(llm):
    whole = llm.generate("Tim", seed=7)
    pieces = list(llm.stream("Tim", seed=7))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.token for piece in pieces if piece.token is not None] == whole.tokens
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason


def test_stop_strings(llm, data_file):
    text = expected(data_file, "stories260K_greedy")
    for stop in ("Lily", ["zebra", "toys with", "park."], ("\n",), [" big, red"]):
        stops = [stop] if isinstance(stop, str) else stop
        result = llm.generate(temperature=0, stop=stop)
        assert result.text == text[: min(text.find(s) for s in stops if s in text)]
        assert result.finish_reason == "stop"
    assert llm.generate(temperature=0, stop="zebra").text == text
    with pytest.raises(ValueError, match="stop"):
        llm.generate(stop="")


def test_random_seeds_are_told(llm):
    first, second = llm.generate(max_tokens=40), llm.generate(max_tokens=40)
    assert first.seed != second.seed
    assert llm.generate(max_tokens=40, seed=first.seed).text == first.text


def test_limits(llm):
    assert llm.generate(max_tokens=0).tokens == []
    assert len(llm.generate(max_tokens=1).tokens) == 1
    full = llm.generate([1] * 500, max_tokens=1000, temperature=0, ignore_eos=True)
    assert len(full.tokens) == 13  # 12 more positions, and the token that needs none
    assert full.finish_reason == "length"
    assert len(llm.generate([1] * 512, max_tokens=9, temperature=0, ignore_eos=True).tokens) == 1
    with pytest.raises(llama2c.ContextError, match="513 tokens, but the context 512"):
        llm.generate([1] * 513)


@pytest.mark.parametrize(
    "options",
    [{"max_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": float("inf")}],
)
def test_bad_settings(llm, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        llm.generate(**options)


@pytest.mark.parametrize("prompt", [np.array([], dtype=int), [512], [-1]])
def test_bad_prompts(llm, prompt):
    with pytest.raises(ValueError, match="expected"):
        llm.generate(prompt)


def test_bos_and_eos_end_a_text(llm):
    result = llm.generate(max_tokens=400, seed=3)
    free = llm.generate(max_tokens=400, seed=3, ignore_eos=True)
    if result.finish_reason == "stop":
        assert free.tokens[: len(result.tokens)] == result.tokens
        assert free.tokens[len(result.tokens)] in (1, 2)
    else:
        assert 1 not in free.tokens and 2 not in free.tokens


def test_timings(llm):
    timings = llm.generate("Once upon a time", max_tokens=30, temperature=0).timings
    assert (timings.prompt_tokens, timings.tokens) == (len(llm.tokenizer.encode("Once upon a time")), 30)
    assert timings.prompt_seconds > 0 and timings.tokens_per_second > 0 and timings.prompt_tokens_per_second > 0


def test_logits(llm):
    ids = [1, 403, 407, 261]
    logits = llm.logits(ids)
    assert logits.shape == (4, 512) and logits.dtype == np.float32
    session = llm.session()
    assert np.array_equal(session.prefill(ids), logits[-1])
    assert np.array_equal(llm.logits(np.array(ids, dtype=np.int64)), logits)


def test_one_call(data_file):
    path = data_file("models/stories260K.bin")
    first = llama2c.generate("Once", model=path, max_tokens=20, seed=1)
    assert first.text == llama2c.generate("Once", model=llama2c.load(path), max_tokens=20, seed=1).text


def test_sixteen_threads_of_python(llm):
    one_by_one = [llm.generate(f"Story {i}", max_tokens=60, seed=i + 1).text for i in range(16)]
    texts: dict[int, str] = {}

    def run(i: int) -> None:
        texts[i] = llm.generate(f"Story {i}", max_tokens=60, seed=i + 1).text

    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[i] for i in range(16)] == one_by_one


def test_pickle(llm):
    copy = pickle.loads(pickle.dumps(llm))
    assert (copy.path, copy.threads) == (llm.path, 2)
    assert copy.generate(seed=5, max_tokens=30).text == llm.generate(seed=5, max_tokens=30).text
    with_object = llama2c.load(llm.path, tokenizer=llm.tokenizer)
    with pytest.raises(TypeError, match="tokenizer"):
        pickle.dumps(with_object)


def test_exceptions_pickle():
    error = pickle.loads(pickle.dumps(llama2c.FormatError("x")))
    assert isinstance(error, llama2c.FormatError) and isinstance(error, ValueError)


def test_closed(data_file):
    with llama2c.load(data_file("models/stories260K.bin")) as model:
        session = model.session()
    with pytest.raises(ValueError, match="closed"):
        model.generate()
    session.prefill([1])  # what was made before lives on
    assert "closed" in repr(model)


def test_tokenizers_are_found(data_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "sub" / "model.bin"
    model.parent.mkdir()
    shutil.copyfile(data_file("models/stories260K.bin"), model)
    llm = llama2c.load(model)
    assert llm.logits([1]).shape == (1, 512)  # needs none
    with pytest.raises(llama2c.TokenizerError, match=r"no tokenizer of 512 tokens found; looked at .*tok512\.bin"):
        llm.generate()
    shutil.copyfile(data_file("tokenizers/llama2/tokenizer.bin"), model.parent / "tokenizer.bin")  # does not fit
    shutil.copyfile(data_file("models/tok512.bin"), tmp_path / "tokenizer.bin")
    assert len(llama2c.load(model).tokenizer) == 512
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(llama2c.TokenizerError, match="32000 tokens"):
        _ = llama2c.load(model).tokenizer


def test_a_tokenizer_that_does_not_fit_is_refused(data_file):
    wrong = data_file("tokenizers/llama2/tokenizer.model")
    with pytest.raises(llama2c.TokenizerError, match=r"tokenizer\.model has 32000 tokens, but the model .* has 512"):
        llama2c.load(data_file("models/stories260K.bin"), tokenizer=wrong)


def test_options_are_checked(data_file):
    path = data_file("models/stories260K.bin")
    for options in ({"threads": 0}, {"context": 0}, {"isa": "sse9"}, {"rope_theta": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options)).replace("isa", "instruction-set")):
            llama2c.load(path, **options)
    with pytest.raises(TypeError):
        llama2c.load(path, isa=3)


def test_isa_by_environment(data_file, monkeypatch):
    path = data_file("models/stories260K.bin")
    monkeypatch.setenv("LLAMA2C_ISA", "scalar")
    assert llama2c.load(path).isa == "scalar"
    assert llama2c.load(path, isa=llama2c.available_isas()[-1]).isa == llama2c.available_isas()[-1]
    monkeypatch.setenv("LLAMA2C_ISA", "no-such")
    with pytest.raises(ValueError, match="no-such"):
        llama2c.load(path)


def test_emoji_survive_a_stream(data_file):
    """A byte-level continuation: the model is made to spell an emoji, and no piece has half of it."""
    llm = llama2c.load(data_file("models/stories260K.bin"))
    ids = llm.tokenizer.encode("🦙é日", bos=False)
    from llama2c.text import TextDecoder

    decoder = TextDecoder(strip_space=True)
    pieces = [decoder.feed(llm.tokenizer.token_bytes(token)) for token in ids]
    assert "".join(pieces) + decoder.flush() == "🦙é日"
    assert all(piece in ("", "🦙", "é", "日") for piece in pieces)


INTERRUPT = """
import signal, sys
import llama2c

llm = llama2c.load(sys.argv[1])
session = llm.session(chunk=16)
signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
steps = 0
try:
    signal.setitimer(signal.ITIMER_REAL, float(sys.argv[2]))
    while True:
        session.prefill([1] * 500)
        session.rewind(0)
        steps += 1
except KeyboardInterrupt:
    assert session.position in (0, 500), session.position  # none of the prompt, or all: it came with the last step
    session.rewind(0)
    session.prefill([1, 2])
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs interval timers")
@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.05, 0.5])  # the first ones while NumPy is being imported
def test_interrupt_in_a_long_prompt(data_file, seconds):
    command = [sys.executable, "-c", INTERRUPT, str(data_file("models/stories260K.bin")), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "interrupted\n", done.stderr


def test_ids_must_be_integers(data_file):
    llm = llama2c.load(data_file("models/stories260K.bin"))
    with pytest.raises(TypeError):
        llm.generate([1, 2.5])
    assert llm.generate(np.array([1, 7]), max_tokens=3).prompt_tokens == [1, 7]


def test_a_tokenizer_beside_a_loaded_model_is_refused(data_file):
    path = data_file("models/stories260K.bin")
    llm = llama2c.load(path)
    with pytest.raises(TypeError, match="has its own"):
        llama2c.generate("Hi", model=llm, tokenizer=data_file("models/tok512.bin"))
    own = llama2c.load_tokenizer(data_file("models/tok512.bin"))
    texts = {llama2c.generate("Hi", model=path, tokenizer=t, seed=1, max_tokens=9).text for t in (None, own)}
    assert len(texts) == 1


def test_a_stream_checks_its_arguments_at_once(data_file):
    llm = llama2c.load(data_file("models/stories260K.bin"))
    with pytest.raises(ValueError, match="stop string is empty"):
        llm.stream("Hi", stop=["x", ""])
    with pytest.raises(ValueError, match="context is 0"):
        llm.session(context=0)


def test_a_pickle_names_absolute_paths(data_file, tmp_path, monkeypatch):
    path = data_file("models/stories260K.bin")
    monkeypatch.chdir(path.parent)
    pickled = pickle.dumps(llama2c.load(path.name, tokenizer="tok512.bin"))
    monkeypatch.chdir(tmp_path)
    assert len(pickle.loads(pickled).tokenizer) == 512


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 2e-39])
def test_a_temperature_without_an_inverse_is_greedy(temperature, isa):
    sampler = llama2c.Sampler(4, temperature=temperature, top_p=1.0, seed=1, isa=isa)
    assert {sampler.sample([0.0, 1.0, 3.0, 2.0]) for _ in range(50)} == {2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_distribution(temperature, isa):
    sampler = llama2c.Sampler(40, temperature=temperature, top_p=0.9, seed=1, isa=isa)
    logits = np.zeros(40, np.float32)
    for bad in (np.nan, -np.nan, np.inf):
        for place in (0, 17, 39):
            worse = logits.copy()
            worse[place] = bad
            with pytest.raises(ValueError, match="no distribution"):
                sampler.sample(worse)
    with pytest.raises(ValueError, match="no distribution"):
        sampler.sample(np.full(40, -np.inf, np.float32))
    only = np.full(40, -np.inf, np.float32)
    only[23] = -5.0
    assert sampler.sample(only) == 23
    with pytest.raises(ValueError, match="-1 random numbers"):
        sampler.skip(-1)


def test_public_names():
    for name in llama2c.__all__:
        assert getattr(llama2c, name) is not None
    assert callable(llama2c.generate)  # also after the modules below it are imported
    assert set(llama2c.__all__) <= set(dir(llama2c))
    with pytest.raises(AttributeError, match="no_such"):
        _ = llama2c.no_such
    assert Path(llama2c.__file__).name == "__init__.py"
