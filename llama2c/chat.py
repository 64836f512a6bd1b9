"""A conversation in Llama 2's chat format, whose keys and values are kept from turn to turn."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama2c._core import ContextError, Sampler, UnsupportedError, read_gguf
from llama2c.generation import random_seed
from llama2c.text import TextDecoder

if TYPE_CHECKING:
    from llama2c.model import Llama


def render_turn(user: str, system: str = "") -> str:
    """One user turn as Llama 2 was trained on it (Touvron et al., 2023); `system` goes into the first turn only."""
    if system:
        return f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]"
    return f"[INST] {user} [/INST]"


def check_template(llm: "Llama") -> None:
    """Raises UnsupportedError for a GGUF file whose own chat template is not of Llama 2's kind."""
    if not llm.config.format.startswith("GGUF"):
        return
    for item in read_gguf(llm.path, longest=0)["metadata"]:
        if item["key"] == "tokenizer.chat_template" and "[INST]" not in str(item["value"]):
            raise UnsupportedError(f"{llm.path}: its chat template is not of Llama 2's kind, [INST] ... [/INST]")


class Conversation:
    """Turns of a chat on one session.

    A seed gives llama2.c's answers: like its chat loop, this draws one random number for every position, also those of
    the prompt. When the context is full, `reply` raises ContextError; `clear` begins anew. A GGUF file whose template
    is not of this kind raises UnsupportedError.
    """

    def __init__(
        self,
        llm: "Llama",
        *,
        system: str = "",
        temperature: float = 1.0,
        top_p: float = 0.9,
        seed: int | None = None,
        context: int | None = None,
    ) -> None:
        check_template(llm)
        self.llm = llm
        self.system = system
        self.seed = random_seed() if seed is None else seed
        self.session = llm.session(context=context)
        self.sampler = Sampler(llm.config.vocab_size, temperature=temperature, top_p=top_p, seed=self.seed, isa=llm.isa)
        self.generated = 0  # tokens, in all turns
        self.seconds = 0.0  # spent on them

    @property
    def room(self) -> int:
        """Positions left."""
        return self.session.context - self.session.position

    def clear(self) -> None:
        """Forget all turns."""
        self.session.rewind(0)

    def reply(self, user: str) -> Iterator[str]:
        """The answer to a turn, in pieces of text.

        The turn is taken at once. Raises ContextError, with the conversation as it was, if it does not fit; an answer
        that fills the context ends there. An iterator left early leaves the answer so far in the conversation.
        """
        tokenizer, session, sampler = self.llm.tokenizer, self.session, self.sampler
        first = session.position == 0
        ids = tokenizer.encode(render_turn(user, self.system if first else ""), bos=True)
        if len(ids) >= self.room:
            raise ContextError(
                f"the turn has {len(ids)} tokens, but the conversation has {self.room} of "
                f"{session.context} positions left"
            )
        logits = session.prefill(ids)
        sampler.skip(len(ids) - 1)
        return self._answer(sampler.sample(logits))

    def _answer(self, token: int) -> Iterator[str]:
        tokenizer, session, sampler = self.llm.tokenizer, self.session, self.sampler
        decoder = TextDecoder(strip_space=False)
        while token != tokenizer.eos:
            self.generated += 1
            yield decoder.feed(tokenizer.token_bytes(token))
            if self.room == 0:
                break
            start = time.perf_counter()
            token = session.step_sample(token, sampler)
            self.seconds += time.perf_counter() - start
        yield decoder.flush()
        if token == tokenizer.eos and self.room:  # the answer's end belongs to what the next turn sees
            session.step_sample(token, sampler)
