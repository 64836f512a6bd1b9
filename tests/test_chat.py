"""Conversations: the template, the keys and values kept from turn to turn, llama2.c's random numbers."""

import ggufs
import numpy as np
import pytest
from oracle import Shape

import llama2c
from llama2c.chat import Conversation, render_turn


@pytest.fixture(scope="module")
def llm(data_file):
    return llama2c.load(data_file("models/stories260K.bin"), threads=1)


def test_template():
    assert render_turn("Hi") == "[INST] Hi [/INST]"
    assert render_turn("Hi", "Be brief.") == "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"


def test_turns_share_one_timeline(llm):
    """Two turns give what one gets who feeds all tokens by hand, one random number a position."""
    chat = Conversation(llm, system="Be kind.", seed=9, context=400)
    tokenizer = llm.tokenizer
    sampler = llama2c.Sampler(512, seed=9)
    session = llm.session(context=400)
    for turn, rendered in (("Hello", render_turn("Hello", "Be kind.")), ("And?", render_turn("And?"))):
        ids = tokenizer.encode(rendered)
        logits = session.prefill(ids)
        sampler.skip(len(ids) - 1)
        answer = []
        token = sampler.sample(logits)
        for _ in range(60):
            answer.append(token)
            token = sampler.sample(session.step(token))
        got = []
        for text in chat.reply(turn):
            got.append(text)
            if len(got) == 61:  # one more than above, whose last token was sampled but not taken
                break
        assert "".join(got[:60]).encode() == b"".join(map(tokenizer.token_bytes, answer))
        assert chat.session.position == session.position
    assert chat.generated == 122


def test_greedy_draws_no_random_numbers(llm):
    first, second = (Conversation(llm, temperature=0, seed=seed, context=100) for seed in (1, 2))
    assert list(first.reply("Hi")) == list(second.reply("Hi"))


def test_a_turn_that_does_not_fit(llm):
    chat = Conversation(llm, seed=1, context=120)
    next(iter(chat.reply("Hi")))
    before = chat.session.position
    with pytest.raises(llama2c.ContextError, match="of 120 positions left"):
        chat.reply("word " * 200)  # at once, not with the first piece
    assert chat.session.position == before
    chat.clear()
    assert chat.room == 120
    assert "".join(chat.reply("Hi"))  # an answer that fills the context ends there
    assert chat.room == 0 or chat.session.position < 120


def test_half_a_character_at_the_end_of_the_context(llm):
    """It is told, as a replacement character."""
    chat = Conversation(llm, temperature=0, seed=1)

    class Half:
        def sample(self, _: np.ndarray) -> int:
            return llm.tokenizer.find(b"<0xF0>")

        def skip(self, count: int) -> None:
            pass

    class Full:
        context, position = 512, 0

        def prefill(self, ids: list[int]) -> np.ndarray:
            self.position = 512
            return np.zeros(512, np.float32)

    chat.session, chat.sampler = Full(), Half()
    assert "".join(chat.reply("Hi")) == "\N{REPLACEMENT CHARACTER}"


def test_answers_do_not_depend_on_threads(data_file):
    texts = set()
    for threads in (1, 2, 3):
        llm = llama2c.load(data_file("models/stories260K.bin"), threads=threads)
        chat = Conversation(llm, seed=11, context=300)
        texts.add("".join(chat.reply("Tell me")))
    assert len(texts) == 1


def test_eos_is_seen_by_the_next_turn(llm, monkeypatch):
    """At EOS the answer ends, and EOS itself goes into the timeline."""
    eos_after = [5, 6, llm.tokenizer.eos]
    chat = Conversation(llm, temperature=0, seed=1)

    class Scripted:
        def __init__(self) -> None:
            self.left = list(eos_after)
            self.skipped = 0

        def sample(self, _: np.ndarray) -> int:
            return self.left.pop(0)

        def skip(self, count: int) -> None:
            self.skipped += count

    script = Scripted()
    taken = []

    class Recorder:
        context = property(lambda _: 512)
        position = property(lambda _: len(taken))

        def prefill(self, ids: list[int]) -> np.ndarray:
            taken.extend(ids)
            return np.zeros(512, np.float32)

        def step_sample(self, token: int, sampler: Scripted) -> int:
            taken.append(token)
            return sampler.sample(np.zeros(1)) if sampler.left else 7

    chat.session, chat.sampler = Recorder(), script
    assert len(list(chat.reply("Hi"))) == 3  # two tokens and the decoder's rest
    assert taken[-3:] == eos_after


def test_other_templates_are_refused(tmp_path, rng):
    """A model that was trained on another form would answer nonsense to this one."""
    shape = Shape(32, 64, 1, 2, 1, 8, 64)
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "\u2581", "ab", "[INST]"],
        "tokenizer.ggml.scores": [0.0] * 8,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    for template, fits in ((None, True), ("{{ '[INST] ' }}", True), ("{{ '<|eot_id|>' }}", False)):
        metadata = {**vocabulary, "tokenizer.chat_template": template}
        ggufs.write(tmp_path / "model.gguf", shape, ggufs.random_tensors(rng, shape, "F32"), metadata=metadata)
        llm = llama2c.load(tmp_path / "model.gguf")
        if fits:
            Conversation(llm)
        else:
            with pytest.raises(llama2c.UnsupportedError, match="not of Llama 2's kind"):
                Conversation(llm)
